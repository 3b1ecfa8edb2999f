//! Holds the rules for code: errors are typed, functions are short and take no tuples, unsafe code says why,
//! and crates that need no unsafe code forbid it. Nothing lies at the top of the repository by mistake. Works on the text of the files; macros are not expanded.

#![expect(clippy::unwrap_used, reason = "a test stops at the first file that it cannot read")]

use std::collections::BTreeSet;
use std::process::Command;

#[path = "support/sources.rs"]
mod sources;

use sources::{CRATES, blank_comments_and_strings, rust_sources, tokens_without_tests, workspace};

/// The longest function, in lines, from its `fn` to the end of its block.
const MAX_FUNCTION_LINES: usize = 70;

/// The crate roots that forbid unsafe code.
const FORBID_UNSAFE: [&str; 4] =
    ["harness/src/main.rs", "harness/simgpu/words/src/lib.rs", "scenarios/src/lib.rs", "reports/src/lib.rs"];

/// What is committed at the top of the repository.
const TOP_ENTRIES: [&str; 16] = [
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "clippy.toml",
    "docs",
    "fuzz",
    "harness",
    "reports",
    "rustfmt.toml",
    "scenarios",
    "target-trainer",
];

/// A function's signature in the code: what stands between its name and its block or semicolon.
struct Signature<'a> {
    /// Line of the name, from 1.
    line: usize,
    tokens: Vec<&'a str>,
    /// The last line of its block. The line of the semicolon if there is no block.
    last_line: usize,
}

/// All functions outside of tests.
fn signatures(code: &str) -> Vec<Signature<'_>> {
    let tokens = tokens_without_tests(code);
    let is_name = |token: &str| token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let mut found = Vec::new();
    for index in 0..tokens.len().saturating_sub(1) {
        if tokens[index].1 != "fn" || !is_name(tokens[index + 1].1) {
            continue;
        }
        let line = tokens[index + 1].0;
        let mut depth = 0;
        let rest = &tokens[index + 2..];
        let length = rest.iter().take_while(|(_, token)| {
            match *token {
                "(" | "[" => depth += 1,
                ")" | "]" => depth -= 1,
                _ => {}
            }
            depth > 0 || !matches!(*token, "{" | ";")
        });
        let length = length.count();
        let last_line = end_of_block(&rest[length..]).unwrap_or(line);
        found.push(Signature {
            line,
            tokens: rest[..length].iter().map(|(_, token)| *token).collect(),
            last_line,
        });
    }
    found
}

/// The line of the brace that closes the block at the start of the tokens.
fn end_of_block(tokens: &[(usize, &str)]) -> Option<usize> {
    let mut depth = 0;
    for (line, token) in tokens {
        match *token {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(*line);
        }
    }
    None
}

/// A `type NAME = ..;`: an alias, or a type that belongs to an implementation of a trait.
struct TypeAlias<'a> {
    /// Line of the name, from 1.
    line: usize,
    name: &'a str,
    /// What stands between `=` and `;`.
    tokens: Vec<&'a str>,
}

/// All type aliases outside of tests.
fn type_aliases(code: &str) -> Vec<TypeAlias<'_>> {
    let tokens = tokens_without_tests(code);
    let starts = (0..tokens.len().saturating_sub(1)).filter(|index| tokens[*index].1 == "type");
    let alias = |start: usize| {
        let (line, name) = tokens[start + 1];
        let rest: Vec<&str> = tokens[start + 2..].iter().map(|(_, token)| *token).collect();
        let generics = match rest.first() {
            Some(&"<") => generics_length(&rest),
            _ => 0,
        };
        let value = rest.get(generics..)?.strip_prefix(&["="])?;
        let mut depth = 0;
        let length = value.iter().take_while(|token| {
            match **token {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            depth > 0 || **token != ";"
        });
        Some(TypeAlias { line, name, tokens: value[..length.count()].to_vec() })
    };
    starts.filter_map(alias).collect()
}

/// The number of tokens of the list `<..>` at the start of the tokens, with its brackets.
fn generics_length(tokens: &[&str]) -> usize {
    1 + generic_arguments(&tokens[1..]).iter().map(|argument| argument.len() + 1).sum::<usize>()
}

/// The arguments of each `Result<..>` in the tokens, split at the outermost commas.
fn results_in<'a>(tokens: &[&'a str]) -> Vec<Vec<Vec<&'a str>>> {
    let starts = (0..tokens.len().saturating_sub(1))
        .filter(|index| tokens[*index] == "Result" && tokens[index + 1] == "<");
    starts.map(|start| generic_arguments(&tokens[start + 2..])).collect()
}

/// The arguments up to the `>` that closes the list.
fn generic_arguments<'a>(tokens: &[&'a str]) -> Vec<Vec<&'a str>> {
    let (mut depth, mut arguments, mut previous) = (0, vec![Vec::new()], "");
    for token in tokens {
        match *token {
            ">" if previous == "-" => {}
            ">" if depth == 0 => break,
            "<" | "(" | "[" => depth += 1,
            ">" | ")" | "]" => depth -= 1,
            "," if depth == 0 => {
                arguments.push(Vec::new());
                previous = token;
                continue;
            }
            _ => {}
        }
        arguments.last_mut().unwrap().push(*token);
        previous = token;
    }
    arguments
}

/// Whether a type is text or any error: such an error has no kinds that code can tell apart.
fn is_untyped_error(tokens: &[&str]) -> bool {
    tokens.iter().any(|token| matches!(*token, "String" | "str" | "dyn"))
}

/// Results with an untyped error in signatures and aliases, and aliases for errors that are untyped.
fn untyped_errors_in(text: &str) -> Vec<usize> {
    let code = blank_comments_and_strings(text);
    let has_untyped_error = |tokens: &[&str]| {
        results_in(tokens)
            .iter()
            .any(|arguments| arguments.get(1).is_some_and(|error| is_untyped_error(error)))
    };
    let is_bad_alias = |alias: &TypeAlias<'_>| {
        let is_error = ["Err", "Error"].iter().any(|end| alias.name.ends_with(end));
        has_untyped_error(&alias.tokens) || (is_error && is_untyped_error(&alias.tokens))
    };
    let functions = signatures(&code).into_iter().filter(|function| has_untyped_error(&function.tokens));
    let aliases = type_aliases(&code).into_iter().filter(is_bad_alias);
    let mut lines: Vec<usize> =
        functions.map(|function| function.line).chain(aliases.map(|alias| alias.line)).collect();
    lines.sort_unstable();
    lines
}

fn nested_results_in(text: &str) -> Vec<usize> {
    let code = blank_comments_and_strings(text);
    let is_nested = |arguments: &Vec<Vec<&str>>| {
        arguments.iter().any(|argument| argument.first() == Some(&"Result") && argument.get(1) == Some(&"<"))
    };
    let breaks = |signature: &Signature<'_>| results_in(&signature.tokens).iter().any(is_nested);
    signatures(&code).iter().filter(|signature| breaks(signature)).map(|signature| signature.line).collect()
}

/// Functions with a parameter whose type is a tuple, or a reference to one. A slice of tuples is a list of
/// pairs, and no such parameter. The unit type is no tuple.
fn tuple_parameters_in(text: &str) -> Vec<usize> {
    let code = blank_comments_and_strings(text);
    let breaks = |signature: &&Signature<'_>| {
        let tokens = &signature.tokens;
        let generics = match tokens.first() {
            Some(&"<") => generics_length(tokens),
            _ => 0,
        };
        let parameters = parameters_in(&tokens[generics + 1..]);
        parameters.iter().any(|parameter| {
            let colon =
                parameter.iter().position(|token| *token == ":").map_or(parameter.len(), |index| index + 1);
            is_tuple(&parameter[colon..])
        })
    };
    signatures(&code).iter().filter(breaks).map(|signature| signature.line).collect()
}

/// Aliases for a tuple, or for a reference to one. As the type of a parameter, they are a tuple by another
/// name.
fn tuple_aliases_in(text: &str) -> Vec<usize> {
    let code = blank_comments_and_strings(text);
    let aliases = type_aliases(&code).into_iter().filter(|alias| is_tuple(&alias.tokens));
    aliases.map(|alias| alias.line).collect()
}

/// Whether a type is a tuple of several values, or a reference to one.
fn is_tuple(type_tokens: &[&str]) -> bool {
    let is_lifetime = |index: usize| type_tokens[index] == "'" || index > 0 && type_tokens[index - 1] == "'";
    let mut indices = 0..type_tokens.len();
    let start = indices.find(|index| !matches!(type_tokens[*index], "&" | "mut") && !is_lifetime(*index));
    // `&(dyn Fn() + Sync)` has a parenthesis, but no comma of its own.
    start.is_some_and(|start| type_tokens[start] == "(" && parameters_in(&type_tokens[start + 1..]).len() > 1)
}

/// The parameters up to the parenthesis that closes the list.
fn parameters_in<'a>(tokens: &[&'a str]) -> Vec<Vec<&'a str>> {
    let (mut depth, mut parameters, mut previous) = (0, vec![Vec::new()], "");
    for token in tokens {
        match *token {
            ">" if previous == "-" => {}
            ")" if depth == 0 => break,
            "<" | "(" | "[" | "{" => depth += 1,
            ">" | ")" | "]" | "}" => depth -= 1,
            "," if depth == 0 => {
                parameters.push(Vec::new());
                previous = token;
                continue;
            }
            _ => {}
        }
        parameters.last_mut().unwrap().push(*token);
        previous = token;
    }
    parameters
}

fn long_functions_in(text: &str) -> Vec<usize> {
    let code = blank_comments_and_strings(text);
    let is_long = |signature: &&Signature<'_>| signature.last_line + 1 - signature.line > MAX_FUNCTION_LINES;
    signatures(&code).iter().filter(is_long).map(|signature| signature.line).collect()
}

/// SAFETY comments that only point elsewhere.
fn empty_safety_comments_in(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((before, reason)) = line.split_once("SAFETY:") else { continue };
        if before.trim() != "//" {
            continue;
        }
        // A comment of several lines is read as a whole.
        let more = lines[index + 1..].iter().map_while(|line| line.trim().strip_prefix("//"));
        let reason = [reason].into_iter().chain(more).map(str::trim).collect::<Vec<_>>().join(" ");
        let reason = reason.to_lowercase();
        let reason = reason.trim_end_matches(['.', ' ']);
        let points_elsewhere = [
            "as above",
            "as of",
            "as below",
            "as there",
            "see above",
            "see below",
            "the same",
            "ditto",
            "the caller's",
        ]
        .iter()
        .any(|phrase| reason.starts_with(phrase));
        if points_elsewhere || reason.split_whitespace().count() < 3 {
            found.push(index + 1);
        }
    }
    found
}

/// Holds a rule in all crates.
fn assert_rule(rule: &str, check: fn(&str) -> Vec<usize>) {
    let mut found = Vec::new();
    for (path, text) in CRATES.iter().flat_map(|dir| rust_sources(dir)) {
        let lines = check(&text);
        if !lines.is_empty() {
            let lines: Vec<String> = lines.iter().map(usize::to_string).collect();
            found.push(format!("{}:{}", path.display(), lines.join(",")));
        }
    }
    assert!(found.is_empty(), "{rule}: {} files:\n{}", found.len(), found.join("\n"));
}

#[test]
fn no_error_is_text_or_any_error() {
    assert_rule("untyped errors", untyped_errors_in);
}

#[test]
fn no_result_is_inside_another() {
    assert_rule("nested results", nested_results_in);
}

#[test]
fn no_parameter_is_a_tuple() {
    assert_rule("tuple parameters", tuple_parameters_in);
}

#[test]
fn no_alias_is_a_tuple() {
    assert_rule("tuple aliases", tuple_aliases_in);
}

#[test]
fn no_function_is_longer_than_70_lines() {
    assert_rule("long functions", long_functions_in);
}

#[test]
fn safety_comments_say_why() {
    assert_rule("safety comments", empty_safety_comments_in);
}

#[test]
fn crates_that_need_no_unsafe_code_forbid_it() {
    for root in FORBID_UNSAFE {
        let text = std::fs::read_to_string(workspace().join(root)).unwrap();
        assert!(text.contains("\n#![forbid(unsafe_code)]\n"), "{root}");
    }
}

#[test]
fn untyped_errors_are_found_in_signatures() {
    let bad = [
        "fn f() -> Result<u8, String> { }",
        "fn f(g: impl Fn() -> Result<(), &'static str>) { }",
        "trait T { fn f(&self) -> std::result::Result<Vec<(u8, u8)>, String>; }",
        "fn f() -> Result<u8, (Exit, String)> { }",
        "fn f() -> Result<u8, Box<dyn std::error::Error + Send>> { }",
        "fn f<'a>() -> Result<&'a u8, Cow<'a, str>> { }",
        "fn f() -> Option<Result<u8, Vec<String>>> { }",
    ];
    for text in bad {
        assert_eq!(untyped_errors_in(&format!("\n{text}")), [2], "{text}");
    }
}

#[test]
fn untyped_errors_are_found_in_aliases_and_implementations() {
    let bad = [
        "type Parsed<T> = Result<T, String>;",
        "pub(crate) type Parsed<T = u8> = std::result::Result<T, (Exit, Cow<'static, str>)>;",
        "type Answer = fn(&str) -> Result<u8, Box<dyn Error>>;",
        "impl FromStr for A { type Err = String; fn from_str(text: &str) -> Result<A, Self::Err> { } }",
        "impl TryFrom<u8> for A { type Error = &'static str; }",
        "type ParseError = Box<dyn Error>;",
    ];
    for text in bad {
        assert_eq!(untyped_errors_in(&format!("\n{text}")), [2], "{text}");
    }
}

#[test]
fn typed_errors_tests_and_texts_have_no_untyped_error() {
    let good = "fn one() -> Result<String, MyError> { let x: &str = \"-> Result<u8, String>\"; }\n\
                // fn two() -> Result<u8, String>\n\
                fn three() -> Result<BTreeMap<u8, String>, E<Errno>> {}\n\
                impl<'de> Visitor<'de> for V { type Value = String;\n\
                fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {} }\n\
                fn four(text: &str) -> io::Result<String> {}\n\
                type Read<T> = Result<(T, String), ReadError>; type Names = Vec<String>;\n\
                trait T { type Error: Into<String>; }\n\
                impl FromStr for A { type Err = UnknownName; }\n\
                #[cfg(test)]\nmod tests { fn five() -> Result<u8, String> { } type Err = String; }";
    assert_eq!(untyped_errors_in(good), []);
}

#[test]
fn nested_results_are_found() {
    let bad = "fn one() -> Result<Result<u8, A>, B> {}\nfn two() -> io::Result<u8> {}\n\
               fn three() -> Result<File, Result<u8, C>> {}";
    assert_eq!(nested_results_in(bad), [1, 3]);
    assert_eq!(nested_results_in("fn one() -> Result<Vec<Result<u8, A>>, B> {}"), []);
}

#[test]
fn tuple_parameters_are_found_but_not_lists_of_pairs_or_functions_of_several_values() {
    let bad = "fn one((a, b): (u8, u8)) {}\nfn two<F: Fn(u8, u8)>(f: F, pair: &(u8, u8)) {}\n\
               fn three(&self, size: &mut (u8, u8)) -> u8 { 1 }\n\
               fn four<'a>(pair: &'a mut (u8, u8)) {}";
    assert_eq!(tuple_parameters_in(bad), [1, 2, 3, 4]);
    let good = "fn one(a: u8, pairs: &[(u8, u8)]) -> (u8, u8) {}\nfn two(f: impl Fn((u8, u8)) -> u8, unit: ()) {}\n\
                fn three(f: &dyn Fn(u8, u8), g: &(dyn Fn(u8, u8) + Sync)) { g((1, 2)) }";
    assert_eq!(tuple_parameters_in(good), []);
}

#[test]
fn tuple_aliases_are_found_but_not_lists_of_pairs_or_functions_of_several_values() {
    let bad = "type Pair = (u8, u8);\npub(super) type Weighted<'a> = (&'a Sample, f32);\n\
               impl T for A {\ntype Value = &'static (u8, [u8; 2]);\n}";
    assert_eq!(tuple_aliases_in(bad), [1, 2, 4]);
    let good = "type Unit = ();\ntype Pairs = Vec<(u8, u8)>;\ntype Call = extern \"C\" fn(u8, u8) -> u8;\n\
                type Shared = &'static (dyn Fn(u8, u8) + Sync);\ntype Slice<'a> = &'a [(u8, u8)];\n\
                #[cfg(test)]\nmod tests { type Pair = (u8, u8); }";
    assert_eq!(tuple_aliases_in(good), []);
}

#[test]
fn long_functions_are_found() {
    let lines = |count: usize| format!("fn f(\n) {{\n{}}}\nfn g() {{}}\n", "x();\n".repeat(count));
    assert_eq!(long_functions_in(&lines(67)), []);
    assert_eq!(long_functions_in(&lines(68)), [1]);
}

#[test]
fn safety_comments_that_only_point_elsewhere_are_found() {
    let bad = "// SAFETY: as above.\n    // SAFETY: As of [`set`].\nlet a = 1;\n// SAFETY: the caller's.\n// SAFETY: yes";
    assert_eq!(empty_safety_comments_in(bad), [1, 2, 4, 5]);
    let good = "// SAFETY: the pointer is from `Box::into_raw`, and nobody\n// else has it.\n\
                // SAFETY: fd is\n// open as above.\nlet text = \"SAFETY: as above\";";
    assert_eq!(empty_safety_comments_in(good), []);
}

/// What git has, at the top. `None`: this is no checkout, or there is no git.
fn top_entries() -> Option<BTreeSet<String>> {
    let arguments = ["ls-files", "--cached"];
    let listed = Command::new("git").current_dir(workspace()).args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    let top = |path: &str| path.split('/').next().unwrap_or_default().trim_matches('"').to_owned();
    listed.status.success().then(|| text.lines().map(top).collect())
}

#[test]
fn nothing_else_lies_at_the_top_of_the_repository() {
    // In a package without git, nothing can be committed by mistake.
    let Some(found) = top_entries() else { return };
    let known: BTreeSet<String> = TOP_ENTRIES.map(str::to_owned).into();
    let other: Vec<_> = found.difference(&known).collect();
    assert!(other.is_empty(), "left behind by a script? otherwise add it to TOP_ENTRIES: {other:?}");
    assert!(found.len() > 10, "git lists the files: {found:?}");
}
