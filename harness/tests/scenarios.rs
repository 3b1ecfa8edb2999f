//! One test for each shipped scenario, and one for each shipped scenario that has guards: it must be violated
//! without them. Tests that this machine cannot run are listed as ignored, with the reason.

#![expect(clippy::unwrap_used, reason = "a failed expectation must stop the test")]

#[expect(dead_code, unused_macros, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{ExitCode, Output};

use engine::run::needed_mechanisms;
use libtest_mimic::Failed;
use scenarios::Scenario;
use support::command::{output_text, run_trainwreck, workspace};
use support::machine::{Need, missing};
use support::trial::{run_sequentially, trial};

fn main() -> ExitCode {
    let needs = scenario_needs();
    let mut trials = Vec::new();
    for (id, guards) in shipped_scenarios() {
        let missing = missing(needs.get(&id).into_iter().flatten());
        let survived = id.clone();
        trials
            .push(trial(format!("{id}_is_survived"), missing.as_deref(), move || run_verb("run", &survived)));
        if !guards.is_empty() {
            trials.push(trial(
                format!("{id}_is_violated_without_its_guards"),
                missing.as_deref(),
                move || run_verb("ablate", &id),
            ));
        }
    }
    // Each scenario uses all cores by itself.
    run_sequentially(trials)
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Ids and guards, as `list` prints them.
fn shipped_scenarios() -> Vec<(String, String)> {
    let listed = lines(&run_trainwreck(&["list"]));
    let id_and_guards = |line: &String| {
        Some((line.split_whitespace().next()?.to_owned(), line.rsplit("  ").next()?.trim().to_owned()))
    };
    listed.iter().filter_map(id_and_guards).collect()
}

/// What each shipped scenario needs of the machine, by its id.
fn scenario_needs() -> BTreeMap<String, Vec<Need>> {
    let library = workspace().join("scenarios/library");
    let entries =
        |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let texts = entries(library).flat_map(entries).filter_map(|path| std::fs::read_to_string(path).ok());
    let read = |text: String| {
        let scenario = Scenario::parse(&text, "library").unwrap_or_else(|error| panic!("{error}"));
        let needs = needed_mechanisms(&scenario).into_iter().map(Need::Mechanism).collect();
        (scenario.id().to_owned(), needs)
    };
    texts.map(read).collect()
}

fn run_verb(verb: &str, id: &str) -> Result<(), Failed> {
    let out = tempfile::tempdir()?;
    let output = run_trainwreck(&[verb, id, "--out", &out.path().join("out").display().to_string()]);
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}{}", output.status, output_text(&output)).into())
}
