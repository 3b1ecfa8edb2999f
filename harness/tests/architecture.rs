//! House rules as tests: the map names what exists, and nobody grows out of the rules unseen.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn rust_sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["harness", "scenarios", "reports", "target-trainer"].map(|room| workspace().join(room)).into();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files
}

#[test]
fn every_path_in_architecture_md_exists() {
    let map = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
    let named: Vec<&str> = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains('/') && !word.contains([' ', '<', '*', '{']))
        .collect();
    assert!(named.len() > 20, "the map names its rooms: {named:?}");
    let missing: Vec<&&str> = named.iter().filter(|path| !workspace().join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_rust_file_opens_with_a_module_comment() {
    let silent: Vec<PathBuf> = rust_sources()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "{silent:?}");
}

#[test]
fn unsafe_code_is_only_in_files_named_for_it() {
    let word = ["uns", "afe "].concat();
    let has =
        |text: &str| text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(&word));
    // The stand-in for a driver is made of nothing else, and the head of its crate says where; its plan maps one file.
    let stand_in = workspace().join("harness/simgpu");
    let named = |path: &Path| {
        ["sys.rs", "cuda.rs", "hooks.rs"].iter().any(|name| path.ends_with(name))
            || path.starts_with(&stand_in)
    };
    let stray: Vec<PathBuf> = rust_sources()
        .into_iter()
        .filter(|(path, text)| has(text) && !named(path))
        .map(|(path, _)| path)
        .collect();
    assert!(stray.is_empty(), "{stray:?}");
}

#[test]
fn no_rust_file_is_longer_than_500_lines() {
    let long: Vec<(usize, PathBuf)> = rust_sources()
        .into_iter()
        .map(|(path, text)| (text.lines().count(), path))
        .filter(|(lines, _)| *lines > 500)
        .collect();
    assert!(long.is_empty(), "{long:?}");
}

#[test]
fn the_trainer_does_not_depend_on_the_harness() {
    let forbidden = ["scenarios", "reports", "trainwreck"];
    let manifest = std::fs::read_to_string(workspace().join("target-trainer/Cargo.toml")).unwrap();
    assert!(forbidden.iter().all(|room| !manifest.contains(&format!("\n{room} "))));
}

#[test]
fn the_engine_does_not_use_the_reports_or_the_command() {
    let uses = |room: &str| {
        rust_sources()
            .into_iter()
            .filter(move |(path, _)| {
                path.starts_with(workspace().join("harness/src"))
                    && !path.starts_with(workspace().join("harness/src/cli"))
            })
            .any(|(_, text)| text.contains(room))
    };
    assert!(!uses("reports::") && !uses("crate::cli"));
}
