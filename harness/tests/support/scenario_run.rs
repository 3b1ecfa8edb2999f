//! Runs one scenario with a target that the test writes, and reads its record.

use std::path::Path;
use std::process::Command;

use scenarios::{BaselineFacts, Event, Outcome, Record, TrialFacts, Verdict};

use super::command::{TRAINWRECK, output_text};

/// A scenario file and the target file that it uses under the name `target.yaml`.
pub(crate) struct ScenarioFiles {
    pub(crate) target: String,
    pub(crate) scenario: String,
}

impl ScenarioFiles {
    /// Runs the scenario.
    pub(crate) fn run(&self) -> ScenarioRun {
        self.run_in(Path::new("."), &[])
    }

    /// Runs the scenario in a directory, with more options.
    pub(crate) fn run_in(&self, cwd: &Path, options: &[&str]) -> ScenarioRun {
        let dir = tempfile::tempdir().unwrap();
        let [target, scenario, out] =
            ["target.yaml", "scenario.yaml", "out"].map(|name| dir.path().join(name));
        std::fs::write(target, &self.target).unwrap();
        std::fs::write(&scenario, &self.scenario).unwrap();
        let mut command = Command::new(TRAINWRECK);
        command.arg("run").arg(&scenario).arg("--out").arg(&out).args(options).current_dir(cwd);
        let output = command.output().unwrap();
        let printed = output_text(&output);
        // A scenario that was skipped has a record, too.
        let record = std::fs::read_to_string(out.join("record.jsonl"))
            .unwrap_or_else(|error| panic!("{error}: {printed}"));
        let entries = Record::parse(&record).unwrap().entries;
        let events = entries.into_iter().map(|entry| entry.event).collect();
        ScenarioRun { code: output.status.code().unwrap(), printed, events }
    }
}

/// Result of a run.
pub(crate) struct ScenarioRun {
    /// Exit code of the command.
    pub(crate) code: i32,
    /// What the command printed.
    pub(crate) printed: String,
    events: Vec<Event>,
}

impl ScenarioRun {
    pub(crate) fn baseline(&self) -> &BaselineFacts {
        let baseline = self.events.iter().find_map(|event| match event {
            Event::Baseline(facts) => Some(facts),
            _ => None,
        });
        baseline.unwrap_or_else(|| panic!("no baseline: {}", self.printed))
    }

    pub(crate) fn trials(&self) -> Vec<&TrialFacts> {
        let trials = self.events.iter().filter_map(|event| match event {
            Event::TrialEnded(facts) => Some(&**facts),
            _ => None,
        });
        trials.collect()
    }

    /// All events of the run, in order.
    pub(crate) fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.iter()
    }

    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        self.trials().into_iter().map(|trial| trial.outcome).collect()
    }

    pub(crate) fn verdict(&self) -> &Verdict {
        let verdict = self.events.iter().find_map(|event| match event {
            Event::Judged { verdict, .. } => Some(verdict),
            _ => None,
        });
        verdict.unwrap_or_else(|| panic!("no verdict: {}", self.printed))
    }

    /// Lines that the target printed in the trials.
    pub(crate) fn trial_output(&self) -> Vec<&str> {
        let trials = self.events.iter().skip_while(|event| !matches!(event, Event::TrialStarted { .. }));
        let lines = trials.filter_map(|event| match event {
            Event::Output { line, .. } => Some(line.as_str()),
            _ => None,
        });
        lines.collect()
    }
}
