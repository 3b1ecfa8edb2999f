//! Every shipped file is valid, fits its target, and is valid by the JSON schema too.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test stops at the first failure; only the crate itself must read no files"
)]

use std::path::{Path, PathBuf};

use scenarios::{Scenario, TargetFile, schema};

fn yaml_below(directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(next) = directories.pop() {
        for path in std::fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty());
    files
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_shipped_scenario_fits_its_target() {
    for path in yaml_below("library") {
        let scenario =
            Scenario::parse(&text(&path), &path.display().to_string()).unwrap_or_else(|e| panic!("{e}"));
        let target =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("targets/{}.yaml", scenario.target()));
        let target = TargetFile::parse(&text(&target), "target").unwrap_or_else(|e| panic!("{e}"));
        scenario.check_against(&target).unwrap_or_else(|e| panic!("{e}"));
        assert!(
            path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{}-", scenario.id())),
            "{path:?}"
        );
    }
}

/// A row of the catalogue may have several scenarios: `hw-09` and `hw-09b`.
#[test]
fn each_row_of_the_catalogue_has_a_scenario_that_names_the_guard_it_relies_on() {
    let mut guarded_rows = std::collections::BTreeMap::new();
    for path in yaml_below("library") {
        let scenario = Scenario::parse(&text(&path), &path.display().to_string()).unwrap();
        let row = scenario.id().trim_end_matches(|letter: char| letter.is_ascii_lowercase()).to_owned();
        *guarded_rows.entry(row).or_insert(false) |= !scenario.guards().is_empty();
    }
    let unguarded: Vec<_> = guarded_rows.iter().filter(|(_, has_guard)| !**has_guard).collect();
    assert!(unguarded.is_empty(), "{unguarded:?}");
}

/// Words that promise that nothing is left out. Each fault has a bound, at least the default of `max-trials`.
const PROMISES: [&str; 10] =
    ["every", "each", "all", "any", "always", "everywhere", "whole", "entire", "exhaustive", "complete"];

/// The words of a title that promise that nothing is left out.
fn promises(title: &str) -> Vec<String> {
    let words = title.split(|letter: char| !letter.is_alphabetic()).map(str::to_lowercase);
    words.filter(|word| PROMISES.contains(&word.as_str())).collect()
}

#[test]
fn no_title_promises_more_than_the_bound_on_trials_allows() {
    assert_eq!(promises("Power loss at EVERY point of a save"), ["every"]);
    assert_eq!(promises("allocations fall, and anything overall"), [""; 0]);
    for path in yaml_below("library") {
        let scenario = Scenario::parse(&text(&path), "library").unwrap();
        let found = promises(scenario.title());
        assert!(found.is_empty(), "{path:?}: {found:?} in its title; the verdict says what was tried");
    }
}

#[test]
fn no_two_shipped_scenarios_share_an_id() {
    let id = |path: &PathBuf| Scenario::parse(&text(path), "").unwrap().id().to_owned();
    let files = yaml_below("library");
    let ids: std::collections::BTreeSet<String> = files.iter().map(id).collect();
    assert_eq!(ids.len(), files.len());
}

#[test]
fn the_committed_schemas_are_up_to_date() {
    for (name, fresh) in [("scenario", schema::scenario()), ("target", schema::target())] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schema/{name}-v1.json"));
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == fresh,
            "{path:?} is out of date: run `cargo run -p trainwreck -- schema --write scenarios/schema`"
        );
    }
}

#[test]
fn every_shipped_file_is_valid_by_its_schema() {
    for (directory, schema) in [("library", schema::scenario()), ("targets", schema::target())] {
        let validator = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
        for path in yaml_below(directory) {
            let value: serde_json::Value = serde_saphyr::from_str(&text(&path)).unwrap();
            let errors: Vec<String> =
                validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
            assert!(errors.is_empty(), "{path:?}: {errors:#?}");
        }
    }
}
