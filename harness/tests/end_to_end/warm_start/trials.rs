//! Runs scenarios that try crash states of a Python trainer that starts slowly, with a target that is forked and with new
//! processes, and compares what the record says of each trial. Knows nothing of the fork server.

use std::collections::BTreeMap;
use std::process::Command;

use scenarios::{
    Event, Outcome, Reason, Record, RecordEntry, TrialCounts, TrialFacts, TrialStarts, Verdict, last_attempt,
};

use super::Stage;
use crate::support::command::{TRAINWRECK, output_text};

/// Saves six times, in the way of `SAVE`.
const TRAINER: &str = r#"
import json, os, sys
import slow_import
import LIBRARY as library

latest = sys.argv[1] + "/latest"
text = open(latest).read() if os.path.exists(latest) else '{"step": 0}'
library.check(text)
step = json.loads(text)["step"]
print("resumed from step", step, flush=True)
while step < 6:
    step += 1
    print("step", step, flush=True)
    with open(f"{sys.argv[1]}/shard-{step}", "w") as file:
        file.write(f"shard {step}")
    SAVE
    print("saved step", step, flush=True)
# Nothing of another trial may be there.
print("finished with", f"{step}1" if os.path.exists("/tmp/of-a-trial") else step, flush=True)
open("/tmp/of-a-trial", "w").close()
ENDING
"#;

/// Sound: a crash leaves the old file or the new one.
const RENAMED: &str = r#"
    with open(latest + ".new", "w") as file:
        file.write(json.dumps({"step": step}))
    os.rename(latest + ".new", latest)
"#;

/// A crash may leave an empty file.
const IN_PLACE: &str = r#"
    with open(latest, "w") as file:
        file.write(json.dumps({"step": step}))
"#;

/// A crash loses the last save.
const AFTER_PROMISE: &str = r#"
    print("saved step", step, flush=True)
    with open(latest + ".new", "w") as file:
        file.write(json.dumps({"step": step}))
    os.rename(latest + ".new", latest)
"#;

const LEAVES_A_PROCESS_OR_ENDS_ITS_GROUP: &str = "
import subprocess
if text.endswith('5}'): subprocess.Popen(['sleep', '30'])
if text.endswith('4}'): os.killpg(0, 9)
";

const ENDS_ITS_PARENT: &str = "if text.endswith('4}') and os.getppid() != 1: os.kill(os.getppid(), 9)";

const TARGET: &str = r"
version: 1
id: slow-python
title: a Python trainer that starts slowly
program: PROGRAM
places: {checkpoints: ckpt}
prepare: [[/bin/mkdir, '{checkpoints}']]
start: [PYTHON, '{program}', '{checkpoints}']
verify: [/bin/sh, -c, 'test -s {checkpoints}/latest']
announces:
  step: '^step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
same: '^finished with (?<value>\d+)'
timeouts: {stall: 20 s, finish: 60 s}
";

const SCENARIO: &str = r"
version: 1
id: dur-99
title: a crash of a slow Python trainer
severity: extra
target: {use: target.yaml}
method: [crash-states: {of: [process]}]
expect:
  - always: {outcome: [recovered]}
  - always: {lost-steps: {max: 1}}
  - always: {restarts: {max: 0}}
  - always: same-as-baseline
  - always: verifies
  - always: leaves-no-process
";

/// What a run did.
struct Ran {
    text: String,
    code: Option<i32>,
    record: Record,
    /// The facts of each trial, by its number.
    trials: BTreeMap<u32, TrialFacts>,
    html: String,
}

/// How a trainer saves and ends, and a library that it uses.
#[derive(Clone, Copy)]
struct Trainer {
    save: &'static str,
    library: &'static str,
    ending: &'static str,
}

const fn trainer(save: &'static str, library: &'static str) -> Trainer {
    Trainer { save, library, ending: "" }
}

impl Trainer {
    fn source(self) -> String {
        let source = TRAINER.replace("    SAVE\n", self.save).replace("LIBRARY", self.library);
        source.replace("ENDING", self.ending)
    }

    /// Runs the scenario with these options, each in a directory of its own.
    fn run(self, options: &[&str]) -> Ran {
        let stage = Stage::new();
        let python = stage.venv();
        stage.write("train.py", &self.source());
        let target = TARGET.replace("PROGRAM", &stage.text("train.py")).replace("PYTHON", &python);
        stage.write("target.yaml", &target);
        stage.write("scenario.yaml", SCENARIO);
        let output = Command::new(TRAINWRECK)
            .args(["run", "scenario.yaml", "--out", "report", "--jobs", "2"])
            .args(options)
            .current_dir(stage.path(""))
            .output()
            .unwrap();
        let text = output_text(&output);
        let read = |name: &str| {
            std::fs::read_to_string(stage.path("report").join(name)).unwrap_or_else(|_| panic!("{text}"))
        };
        let record = Record::parse(&read("record.jsonl")).unwrap();
        let html = read("report.html");
        let analyzed = Command::new(TRAINWRECK)
            .args(["analyze", "report/record.jsonl"])
            .current_dir(stage.path(""))
            .output()
            .unwrap();
        let judged_again = output_text(&analyzed);
        assert!(judged_again.contains("as recorded"), "{judged_again}");
        stage.sandbox.close().unwrap();
        Ran { trials: trials_of(&record), text, code: output.status.code(), record, html }
    }

    /// Runs the scenario with a forked target and with new processes, at the same time.
    fn run_both(self) -> [Ran; 2] {
        std::thread::scope(|scope| {
            let warm = scope.spawn(|| self.run(&[]));
            let cold = self.run(&["--no-warm"]);
            [warm.join().unwrap(), cold]
        })
    }
}

/// Runs the scenario in both ways with each trainer, all at the same time: they mostly wait.
fn run_all<const N: usize>(trainers: [Trainer; N]) -> [[Ran; 2]; N] {
    std::thread::scope(|scope| {
        let runs = trainers.map(|trainer| scope.spawn(move || trainer.run_both()));
        runs.map(|run| run.join().unwrap())
    })
}

fn trials_of(record: &Record) -> BTreeMap<u32, TrialFacts> {
    let mut entries: BTreeMap<u32, Vec<&RecordEntry>> = BTreeMap::new();
    for entry in &record.entries {
        if let Some(trial @ 1..) = entry.trial {
            entries.entry(trial).or_default().push(entry);
        }
    }
    let ended = |entries: &[&RecordEntry]| {
        last_attempt(entries).iter().find_map(|entry| match &entry.event {
            Event::TrialEnded(facts) => Some((**facts).clone()),
            _ => None,
        })
    };
    entries.iter().map(|(number, entries)| (*number, ended(entries).unwrap())).collect()
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_ascii_digit()).collect()
}

impl Ran {
    fn starts(&self) -> Option<&TrialStarts> {
        self.record.entries.iter().find_map(|entry| match &entry.event {
            Event::TrialStarts(starts) => Some(starts),
            _ => None,
        })
    }

    /// The text of the verdict, with each expectation that is not met and its trials.
    fn verdict(&self) -> String {
        let verdict = self.record.entries.iter().find_map(|entry| match &entry.event {
            Event::Judged { verdict, .. } => Some(verdict),
            _ => None,
        });
        match verdict.unwrap() {
            Verdict::Violated { reasons } => {
                let texts = reasons.iter().map(|reason| {
                    let Reason { trial, expectation, found, kind } = reason;
                    format!("{trial:?} {expectation}: {} ({kind:?})", without_digits(found))
                });
                texts.collect::<Vec<_>>().join("\n")
            }
            other => format!("{other:?}"),
        }
    }

    fn discarded(&self) -> usize {
        let entries = self.record.entries.iter();
        entries.filter(|entry| matches!(entry.event, Event::TrialDiscarded)).count()
    }

    /// All that is known of each trial, apart from times and memory.
    fn deeds(&self) -> BTreeMap<u32, String> {
        let deed = |facts: &TrialFacts| {
            let timeless = TrialFacts {
                recovery_seconds: facts.recovery_seconds.map(|_| 0.0),
                peak_memory_bytes: None,
                seconds: 0.0,
                ..facts.clone()
            };
            // Processes that are left have other numbers in each run.
            let probes = timeless.probes.iter().map(|probe| without_digits(&probe.found)).collect::<Vec<_>>();
            format!("{:?} {probes:?}", TrialFacts { probes: Vec::new(), ..timeless })
        };
        self.trials.iter().map(|(number, facts)| (*number, deed(facts))).collect()
    }

    /// Compares each trial and the verdict with those of new processes.
    fn assert_like(&self, cold: &Ran) {
        let text = format!("{}\n--- cold:\n{}", self.text, cold.text);
        assert!(self.trials.len() >= 20, "{text}");
        for (trial, deeds) in self.deeds() {
            assert_eq!(Some(&deeds), cold.deeds().get(&trial), "trial {trial}\n{text}");
        }
        assert_eq!(self.trials.len(), cold.trials.len(), "{text}");
        assert_eq!(self.verdict(), cold.verdict(), "{text}");
        assert_eq!(self.code, cold.code, "{text}");
        assert_eq!(cold.starts(), None, "{text}");
        let tried: u64 = TrialCounts::by_scenario(&self.record).values().map(TrialCounts::tried).sum();
        assert_eq!(tried, self.trials.len() as u64, "{text}");
        let told = self.starts().unwrap_or_else(|| panic!("{text}")).to_string();
        for (name, report) in [("console", &self.text), ("page", &self.html)] {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            let escaped = words(&told).replace('&', "&amp;").replace('\'', "&#39;");
            let has_it = [words(&told), escaped].iter().any(|told| words(report).contains(told));
            assert!(has_it, "the {name} does not say: {told}\n{report}");
        }
    }
}

pub(crate) fn trials_that_are_forked_end_as_trials_with_new_processes() {
    let trainers = [
        (trainer(RENAMED, "plain"), None),
        (trainer(IN_PLACE, "plain"), Some(Outcome::Crashed)),
        (trainer(AFTER_PROMISE, "plain"), Some(Outcome::LostWork)),
        (
            Trainer { ending: LEAVES_A_PROCESS_OR_ENDS_ITS_GROUP, ..trainer(RENAMED, "plain") },
            Some(Outcome::Recovered),
        ),
    ];
    for ([warm, cold], (_, outcome)) in run_all(trainers.map(|(trainer, _)| trainer)).iter().zip(trainers) {
        warm.assert_like(cold);
        let text = &warm.text;
        let Some(TrialStarts::Forked { trials, compared }) = warm.starts() else { panic!("{text}") };
        assert_eq!(*trials, warm.trials.len() as u64, "{text}");
        assert!(*compared >= u64::from(trials.ilog2()), "{text}");
        assert_eq!(warm.discarded(), 0, "{text}");
        assert_eq!(warm.code, Some(if outcome.is_some() { 1 } else { 0 }), "{text}");
        if let Some(outcome) = outcome {
            assert!(warm.trials.values().any(|facts| facts.outcome == outcome), "{text}");
        }
    }
}

pub(crate) fn a_target_that_notices_the_fork_is_a_new_process_in_all_trials() {
    let differs = "does something else if the target is forked";
    let ends_parent = Trainer { ending: ENDS_ITS_PARENT, ..trainer(RENAMED, "plain") };
    let trainers = [
        (trainer(RENAMED, "notices_fork"), differs),
        (trainer(IN_PLACE, "notices_fork_at_failure"), differs),
        (ends_parent, "the Python interpreter from which recoveries are forked has ended"),
    ];
    for ([warm, cold], (_, reason)) in run_all(trainers.map(|(trainer, _)| trainer)).iter().zip(trainers) {
        warm.assert_like(cold);
        let text = &warm.text;
        let Some(TrialStarts::NewProcesses { why, discarded }) = warm.starts() else { panic!("{text}") };
        assert!(why.contains(reason), "{why}");
        assert_eq!(*discarded, warm.discarded() as u64, "{text}");
        assert!(*discarded > 0 && text.contains("run again"), "{text}");
    }
}

pub(crate) fn modules_that_are_named_are_imported_once_or_the_reason_is_said() {
    let trainer = trainer(RENAMED, "plain");
    let few = ["--max-trials", "4", "--warm"];
    let [named, unknown, cold] = std::thread::scope(|scope| {
        let run = |modules: &'static str| scope.spawn(move || trainer.run(&[&few[..], &[modules]].concat()));
        let runs = [run("slow_import,json"), run("no_such_module")];
        let cold = trainer.run(&["--max-trials", "4", "--no-warm"]);
        let [named, unknown] = runs.map(|run| run.join().unwrap());
        [named, unknown, cold]
    });
    for warm in [&named, &unknown] {
        assert_eq!((warm.deeds(), warm.code), (cold.deeds(), cold.code), "{}", warm.text);
    }
    let is_forked = matches!(named.starts(), Some(TrialStarts::Forked { trials: 4, compared: 1.. }));
    assert!(is_forked, "{}", named.text);
    let why = "because a Python that has imported the libraries could not be used (ModuleNotFoundError";
    assert!(unknown.text.contains(why) && unknown.text.contains("no_such_module"), "{}", unknown.text);
    let output = Command::new(TRAINWRECK).args(["run", "fs-01", "--warm", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", output_text(&output));
    assert!(output_text(&output).contains("--warm: none of these scenarios"), "{}", output_text(&output));
}
