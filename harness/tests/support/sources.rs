//! Reads the files of the workspace for the tests of its rules, and takes Rust code apart into tokens. Knows
//! no rule.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

/// Directories with build outputs and reports of runs. Hidden directories except `.ci` are skipped too.
const SKIPPED_DIRS: [&str; 5] = ["target", "fuzz/target", "fuzz/artifacts", "fuzz/coverage", "out"];

/// The source directory of each crate.
pub(crate) const CRATES: [&str; 8] = [
    "harness/src",
    "harness/engine/src",
    "harness/simgpu/src",
    "harness/simgpu/plan/src",
    "harness/simgpu/words/src",
    "scenarios/src",
    "reports/src",
    "target-trainer/src",
];

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All files below `dir` that `wanted` accepts, as (path from the workspace's root, text), in the order of
/// the paths.
pub(crate) fn files_below(dir: &str, wanted: impl Fn(&Path) -> bool) -> Vec<(PathBuf, String)> {
    let (root, mut files) = (workspace(), Vec::new());
    let mut dirs = vec![root.join(dir)];
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let relative = path.strip_prefix(&root).unwrap().to_path_buf();
            if path.is_dir() {
                let is_hidden = relative.to_string_lossy().starts_with('.') && !relative.starts_with(".ci");
                let is_skipped = SKIPPED_DIRS.iter().any(|skipped| relative == Path::new(skipped));
                if !is_hidden && !is_skipped && !path.is_symlink() {
                    dirs.push(path);
                }
            } else if wanted(&relative) {
                files.push((relative, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()));
            }
        }
    }
    files.sort();
    files
}

/// Whether the file has one of these extensions.
pub(crate) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|own| extensions.contains(&own))
}

/// All Rust files below `dir`, as of [`files_below`].
pub(crate) fn rust_sources(dir: &str) -> Vec<(PathBuf, String)> {
    files_below(dir, |path| has_extension(path, &["rs"]))
}

/// The code with comments, strings and characters replaced by spaces. Line breaks stay.
pub(crate) fn blank_comments_and_strings(text: &str) -> String {
    // In this order: line and block comments (two levels deep), raw strings, strings, characters but not
    // lifetimes.
    static NOT_CODE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(concat!(
            r"(?s)//[^\n]*",
            r"|/\*(?:[^/*]|/[^*]|\*[^/]|/\*.*?\*/)*\*/",
            r#"|\b[bc]?r"[^"]*""#,
            r###"|\b[bc]?r#".*?"#|\b[bc]?r##".*?"##"###,
            r#"|"(?:[^"\\]|\\.)*""#,
            r"|'(?:\\(?:u\{[0-9a-fA-F_]+\}|x[0-9a-fA-F]{2}|.)|[^'\\])'",
        ))
        .unwrap()
    });
    let spaces = |found: &regex::Captures<'_>| -> String {
        found[0].chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }).collect()
    };
    NOT_CODE.replace_all(text, spaces).into_owned()
}

/// The identifiers and punctuation marks of blanked code, each with its line number from 1.
pub(crate) fn tokens(code: &str) -> Vec<(usize, &str)> {
    static TOKEN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[A-Za-z_][A-Za-z0-9_]*|[^\sA-Za-z_0-9]").unwrap());
    let lines = code.lines().enumerate();
    lines.flat_map(|(index, line)| TOKEN.find_iter(line).map(move |t| (index + 1, t.as_str()))).collect()
}

/// The tokens without the items that are compiled for tests only.
pub(crate) fn tokens_without_tests(code: &str) -> Vec<(usize, &str)> {
    let all = tokens(code);
    let names: Vec<&str> = all.iter().map(|(_, token)| *token).collect();
    let mut kept = Vec::new();
    let mut index = 0;
    while index < all.len() {
        let rest = &names[index..];
        let is_test = rest.starts_with(&["#", "[", "cfg", "(", "test", ")", "]"])
            || rest.starts_with(&["#", "[", "cfg", "(", "all", "(", "test"]);
        if is_test {
            index = end_of_item(&names, index + rest.iter().take_while(|token| **token != "]").count() + 1);
        } else {
            kept.push(all[index]);
            index += 1;
        }
    }
    kept
}

/// The index behind the item that begins at `start`: behind its block, or behind its semicolon.
fn end_of_item(names: &[&str], start: usize) -> usize {
    let (mut depth, mut index) = (0, start);
    while let Some(token) = names.get(index) {
        index += 1;
        match *token {
            "{" | "(" | "[" => depth += 1,
            "}" if depth == 1 => break,
            "}" | ")" | "]" => depth -= 1,
            ";" if depth == 0 => break,
            _ => {}
        }
    }
    index
}
