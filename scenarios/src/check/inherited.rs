//! The environment variables of a target file: which names can be set, and which are inherited. Reads no
//! environment.

use std::collections::BTreeMap;

use crate::yaml::problem::{Problem, SourceSpan};
use crate::yaml::spanned::Spanned;

/// The problem with the name of an environment variable, if it cannot be one.
pub(super) fn variable_name_problem(name: &str, span: SourceSpan) -> Option<Problem> {
    let message = match name {
        "" => "the name of an environment variable is empty".to_owned(),
        _ if name.contains('=') => {
            format!("`{name}` cannot be the name of an environment variable: it contains `=`")
        }
        _ if name.contains('\0') => {
            "the name of an environment variable cannot contain a NUL byte".to_owned()
        }
        _ => return None,
    };
    Some(Problem::at(span, message).help("write the name alone"))
}

/// The inherited variables, without those that `environment` sets: they have the value from there.
pub(super) fn checked_inherit<V>(
    names: &[Spanned<String>],
    environment: &BTreeMap<String, V>,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let mut inherited: Vec<String> = Vec::new();
    for name in names {
        if let Some(problem) = variable_name_problem(&name.value, name.span) {
            problems.push(problem);
        } else if name.value.contains(['*', '?']) {
            let message = format!("`{}` is not a name: patterns are not supported here", name.value);
            problems.push(name.problem(message).help("list the variables by their names"));
        } else if inherited.contains(&name.value) {
            problems.push(name.problem(format!("`{}` is inherited twice", name.value)).help("remove one"));
        }
        if !environment.contains_key(&name.value) {
            inherited.push(name.value.clone());
        }
    }
    inherited
}
