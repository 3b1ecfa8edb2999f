//! One test for each shipped scenario, and one for each shipped scenario that has guards: it must be violated
//! without them. Tests that this machine cannot run are listed as ignored, with the reason.

#![expect(clippy::unwrap_used, reason = "a failed expectation must stop the test")]

#[expect(dead_code, unused_macros, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use engine::run::needed_mechanisms;
use libtest_mimic::Failed;
use scenarios::Scenario;
use support::command::{output_text, run_trainwreck, workspace};
use support::machine::{Need, missing};
use support::trial::{run_sequentially, trial};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for scenario in shipped_scenarios() {
        let needs: Vec<Need> = needed_mechanisms(&scenario).into_iter().map(Need::Mechanism).collect();
        let missing = missing(&needs);
        let [survived, violated] = [scenario.id().to_owned(), scenario.id().to_owned()];
        trials.push(trial(format!("{survived}_is_survived"), missing.as_deref(), move || {
            run_verb("run", &survived)
        }));
        if !scenario.guards().is_empty() {
            let name = format!("{violated}_is_violated_without_its_guards");
            trials.push(trial(name, missing.as_deref(), move || run_verb("ablate", &violated)));
        }
    }
    // Each scenario uses all cores by itself.
    run_sequentially(trials)
}

/// All scenarios of the library, by their IDs. The command must list the same: otherwise a scenario would not
/// be shipped, and nobody would notice.
fn shipped_scenarios() -> Vec<Scenario> {
    let entries = |dir: PathBuf| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let domains = entries(workspace().join("scenarios/library")).filter(|path| path.is_dir());
    let is_yaml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "yaml");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        Scenario::parse(&text, "library").unwrap_or_else(|error| panic!("{error}"))
    };
    let mut scenarios: Vec<Scenario> = domains.flat_map(entries).filter(is_yaml).map(read).collect();
    scenarios.sort_by(|a, b| a.id().cmp(b.id()));
    let list = output_text(&run_trainwreck(&["list"]));
    let words: BTreeSet<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let unlisted: Vec<&str> = scenarios.iter().map(Scenario::id).filter(|id| !words.contains(id)).collect();
    assert!(scenarios.len() > 40 && unlisted.is_empty(), "not listed: {unlisted:?}\n{list}");
    scenarios
}

fn run_verb(verb: &str, id: &str) -> Result<(), Failed> {
    let out = tempfile::tempdir()?;
    let output = run_trainwreck(&[verb, id, "--out", &out.path().join("out").display().to_string()]);
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}{}", output.status, output_text(&output)).into())
}
