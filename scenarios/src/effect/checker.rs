//! What the checks of a file share: the problems so far, the names that only a target file can confirm, and
//! the checks that several faults need. Knows no fault.

use std::collections::BTreeMap;

use crate::effect::target_need::TargetNeed;
use crate::yaml::problem::{Problem, SourceSpan};
use crate::yaml::spanned::Spanned;

/// What a name in a scenario refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameKind {
    Place,
    Phase,
    Guard,
    DataKind,
}

/// A name that can be checked only against the target file.
#[derive(Debug, Clone)]
pub(crate) struct TargetName {
    pub(crate) kind: NameKind,
    pub(crate) name: Spanned<String>,
}

/// Collects the problems of a scenario file.
#[derive(Default)]
pub(crate) struct Checker {
    /// No value had to be removed from the tree. A list that is empty was then written empty, so it is worth
    /// reporting.
    pub(crate) is_complete: bool,
    pub(crate) problems: Vec<Problem>,
    pub(crate) target_names: Vec<TargetName>,
    pub(crate) target_needs: Vec<TargetNeed>,
    /// Places with a mount of their own, each with whether its inodes are limited.
    pub(crate) mounts: BTreeMap<String, bool>,
    /// Where the method begins, for problems of a fault as a whole.
    pub(crate) method_span: SourceSpan,
}

impl Checker {
    /// Adds a problem of the method as a whole, with what to do about it.
    pub(crate) fn method_problem(&mut self, message: impl Into<String>, help: impl Into<String>) {
        self.problems.push(Problem::at(self.method_span, message).help(help));
    }

    /// Checks that a list was not written empty.
    pub(crate) fn require_not_empty<T>(&mut self, list: &Spanned<Vec<T>>, message: &str) {
        if list.value.is_empty() && self.is_complete {
            self.problems.push(list.problem(message));
        }
    }

    /// Checks that a number is at least 1.
    pub(crate) fn require_positive(&mut self, number: &Spanned<u32>, key: &str) -> u32 {
        if number.value == 0 {
            self.problems.push(number.problem(format!("`{key}` must be at least 1")));
        }
        number.value
    }

    /// Notes a name for the check against the target file.
    pub(crate) fn target_name(&mut self, kind: NameKind, name: &Spanned<String>) -> String {
        self.target_names.push(TargetName { kind, name: name.clone() });
        name.value.clone()
    }

    /// Checks that a place has a mount of its own.
    pub(crate) fn mounted_place(&mut self, place: &Spanned<String>, with_inodes: bool) -> String {
        match (self.mounts.get(&place.value), with_inodes) {
            (None, _) if self.is_complete => {
                let help = format!(
                    "add to `mounts`: {{place: {}, size: 64 MiB{}}}",
                    place.value,
                    if with_inodes { ", inodes: 512" } else { "" }
                );
                self.problems
                    .push(place.problem(format!("`{}` has no mount of its own", place.value)).help(help));
            }
            (Some(false), true) => {
                self.problems.push(
                    place
                        .problem(format!("the mount of `{}` does not limit its inodes", place.value))
                        .help("add `inodes: 512` to the mount"),
                );
            }
            _ => {}
        }
        self.target_name(NameKind::Place, place)
    }
}
