//! Holds the rules of the code base as tests: `ARCHITECTURE.md` is up to date, files are short and open with
//! a comment, unsafe code is in its place, and the crates depend on one another only as planned.
//! `vocabulary.rs` holds the rules for names.

#![expect(clippy::unwrap_used, reason = "a test stops at the first file that it cannot read")]

use std::path::{Path, PathBuf};

/// The longest line of text and kernels, in characters. rustfmt holds the same limit for Rust.
const MAX_LINE_CHARS: usize = 110;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All files below `dir` with one of these extensions, each with its text. Build outputs and reports of runs
/// are left out.
fn files_below(dir: &Path, extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let skipped = ["target", ".git", "fuzz/target", "reports/out"].map(|path| workspace().join(path));
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() && !skipped.contains(&path) {
                dirs.push(path);
            } else if path.extension().is_some_and(|own| extensions.iter().any(|wanted| own == *wanted)) {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files
}

fn rust_sources() -> Vec<(PathBuf, String)> {
    let crates = ["harness", "scenarios", "reports", "target-trainer"];
    crates.iter().flat_map(|name| files_below(&workspace().join(name), &["rs"])).collect()
}

#[test]
fn every_path_in_architecture_md_exists() {
    let text = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
    let paths: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.contains('/') && !code.contains([' ', '<', '*', '{']))
        .collect();
    assert!(paths.len() > 20, "ARCHITECTURE.md names the parts of the project by path: {paths:?}");
    let missing: Vec<&&str> = paths.iter().filter(|path| !workspace().join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_rust_file_opens_with_a_module_comment() {
    let without_comment: Vec<PathBuf> = rust_sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(without_comment.is_empty(), "{without_comment:?}");
}

#[test]
fn unsafe_code_is_only_in_files_named_for_it() {
    let keyword = ["uns", "afe "].concat();
    let uses_keyword =
        |text: &str| text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(&keyword));
    // The whole crate `simgpu` is an interface to C, and the head of its `lib.rs` names the places with
    // unsafe code. Its plan maps a file into memory.
    let shim = workspace().join("harness/simgpu");
    let is_allowed = |path: &Path| {
        ["sys.rs", "cuda.rs", "hooks.rs"].iter().any(|name| path.ends_with(name)) || path.starts_with(&shim)
    };
    let misplaced: Vec<PathBuf> = rust_sources()
        .into_iter()
        .filter(|(path, text)| uses_keyword(text) && !is_allowed(path))
        .map(|(path, _)| path)
        .collect();
    assert!(misplaced.is_empty(), "{misplaced:?}");
}

/// Test programs without the standard harness: the directory or the stem of each, from the manifests.
fn programs_with_trials() -> Vec<PathBuf> {
    let mut programs = Vec::new();
    for package in ["harness", "target-trainer"] {
        let dir = workspace().join(package);
        let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
        let tables = manifest.split("[[test]]").skip(1).filter(|table| table.contains("harness = false"));
        let name = |table: &str| Some(table.split("name = \"").nth(1)?.split('"').next()?.to_owned());
        programs.extend(tables.filter_map(name).map(|name| dir.join("tests").join(name)));
    }
    programs
}

/// Such a program does not know the attribute: the test would never run, and nothing would be said.
#[test]
fn no_test_program_with_trials_has_a_function_marked_as_a_test() {
    let programs = programs_with_trials();
    assert!(programs.len() > 8, "{programs:?}");
    let attribute = ["#[te", "st]"].concat();
    let marked: Vec<PathBuf> = rust_sources()
        .into_iter()
        .filter(|(path, text)| {
            let is_of = |program: &PathBuf| path.starts_with(program) || path.with_extension("") == *program;
            programs.iter().any(is_of) && text.lines().any(|line| line.trim() == attribute)
        })
        .map(|(path, _)| path)
        .collect();
    assert!(marked.is_empty(), "list them in `trials![..]` instead: {marked:?}");
}

/// Documentation does not count: a file must not become worse by being explained.
#[test]
fn no_rust_file_has_more_than_500_lines_of_code() {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    let long: Vec<(usize, PathBuf)> = rust_sources()
        .into_iter()
        .map(|(path, text)| (text.lines().filter(is_code).count(), path))
        .filter(|(lines, _)| *lines > 500)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn the_trainer_does_not_depend_on_the_harness() {
    let forbidden = ["scenarios", "reports", "engine", "trainwreck"];
    let manifest = std::fs::read_to_string(workspace().join("target-trainer/Cargo.toml")).unwrap();
    assert!(forbidden.iter().all(|name| !manifest.contains(&format!("\n{name} "))));
}

#[test]
fn the_engine_does_not_depend_on_the_reports_or_the_command() {
    let manifest = std::fs::read_to_string(workspace().join("harness/engine/Cargo.toml")).unwrap();
    assert!(["reports", "trainwreck"].iter().all(|name| !manifest.contains(&format!("\n{name} "))));
}

/// The lines of a text that are too long, as (line number, length). With `is_markdown`, rows of tables, lines
/// with a URL, and the output of commands (blocks marked `console` or `text`) may be longer, because they
/// cannot be wrapped.
fn long_lines(text: &str, is_markdown: bool) -> Vec<(usize, usize)> {
    let mut is_command_output = false;
    let mut long = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            is_command_output = matches!(language.trim(), "console" | "text");
        }
        let exempt = is_command_output || line.trim_start().starts_with('|') || line.contains("://");
        let length = line.chars().count();
        if length > MAX_LINE_CHARS && !(is_markdown && exempt) {
            long.push((index + 1, length));
        }
    }
    long
}

#[test]
fn no_line_of_markdown_or_of_a_kernel_is_longer_than_110_characters() {
    let markdown = files_below(&workspace(), &["md"]).into_iter().map(|file| (file, true));
    let kernels = files_below(&workspace().join("target-trainer/kernels"), &["cu", "h"]);
    let mut long = Vec::new();
    for ((path, text), is_markdown) in markdown.chain(kernels.into_iter().map(|file| (file, false))) {
        let lines = long_lines(&text, is_markdown).into_iter();
        long.extend(lines.map(|(line, length)| format!("{}:{line}: {length}", path.display())));
    }
    assert!(long.is_empty(), "{} lines:\n{}", long.len(), long.join("\n"));
}

#[test]
fn long_lines_are_found_apart_from_tables_urls_and_command_output() {
    let long = "x".repeat(MAX_LINE_CHARS + 1);
    let text =
        format!("{long}\n| {long}\nhttps://{long}\n```console\n{long}\n```\n```yaml\n{long}\n```\n{long}");
    assert_eq!(long_lines(&text, true), [(1, 111), (8, 111), (10, 111)]);
    assert_eq!(long_lines(&"ä".repeat(MAX_LINE_CHARS), true), []);
    assert_eq!(long_lines(&format!("// {long} https://example.com"), false).len(), 1);
}
