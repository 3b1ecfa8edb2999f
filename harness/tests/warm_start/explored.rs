//! Explores a Python trainer whose recoveries are slow, with a library that a fork may share and with libraries that
//! notice a fork. Knows nothing of the fork server.

use std::process::Command;

use scenarios::{CrashCategory, Exploration, Outcome};

use crate::Stage;
use crate::support::command::{TRAINWRECK, output_text};

/// Reads `latest`, which is written in place. Slow enough that forks are worth it.
const TRAINER: &str = r#"
import json, os, sys, time
import LIBRARY as library

time.sleep(0.3)
latest = sys.argv[1] + "/latest"
text = open(latest).read() if os.path.exists(latest) else '{"step": 0}'
library.check(text)
step = json.loads(text)["step"]
print("resumed from step", step, flush=True)
while step < 12:
    step += 1
    with open(f"{sys.argv[1]}/shard-{step}", "w") as file:
        file.write(f"shard {step}")
    with open(latest, "w") as file:
        file.write(json.dumps({"step": step}))
    print("saved step", step, flush=True)
"#;

/// What an exploration with this library printed, and its result.
struct Explored {
    text: String,
    result: Exploration,
}

fn explore(library: &str, options: &[&str]) -> Explored {
    let stage = Stage::new();
    let python = stage.venv();
    stage.write("train.py", &TRAINER.replace("LIBRARY", library));
    std::fs::create_dir(stage.path("runs")).unwrap();
    let output = Command::new(TRAINWRECK)
        .args(["explore", "--watch", "runs", "--crash", "process", "--jobs", "2", "--json", "result.json"])
        .args(["--saved", r"^saved step (?<step>\d+)", "--resumed", r"^resumed from step (?<step>\d+)"])
        .args(options)
        .args(["--", &python, "train.py", "runs"])
        .current_dir(stage.path(""))
        .output()
        .unwrap();
    let text = output_text(&output);
    let json = std::fs::read_to_string(stage.path("result.json")).unwrap_or_else(|_| panic!("{text}"));
    stage.sandbox.close().unwrap();
    Explored { result: Exploration::parse(&json).unwrap(), text }
}

impl Explored {
    /// What each new process does: it fails where `latest` is empty.
    fn assert_right(&self) {
        let outcomes = &self.result.outcomes[&CrashCategory::Process];
        let crashed = outcomes.get(&Outcome::Crashed).copied().unwrap_or(0);
        let recovered = outcomes.get(&Outcome::Recovered).copied().unwrap_or(0);
        assert!(crashed > 0 && recovered > crashed, "{}", self.text);
        assert_eq!(crashed + recovered, self.result.tried, "{}", self.text);
        assert!(self.text.contains("JSONDecodeError"), "{}", self.text);
    }
}

const FORKED: &str = "recoveries are forked from a Python that has imported the libraries";
const NEW_PROCESSES: &str = "each recovery is a new process";

pub(crate) fn slow_recoveries_are_forked_without_being_told() {
    let explored = explore("plain", &[]);
    explored.assert_right();
    assert!(explored.text.contains(FORKED) && !explored.text.contains(NEW_PROCESSES), "{}", explored.text);
    let told = explore("plain", &["--no-warm"]);
    told.assert_right();
    assert!(!told.text.contains(FORKED) && !told.text.contains(NEW_PROCESSES), "{}", told.text);
    assert_eq!(told.result.outcomes, explored.result.outcomes);
}

pub(crate) fn a_library_that_notices_the_fork_makes_new_processes_of_all_recoveries() {
    for (library, is_forked_first) in [("notices_fork", false), ("notices_fork_at_failure", true)] {
        let explored = explore(library, &[]);
        explored.assert_right();
        let text = &explored.text;
        assert_eq!(text.contains(FORKED), is_forked_first, "{text}");
        assert!(text.contains(NEW_PROCESSES) && text.contains("as a new process it"), "{text}");
    }
}

pub(crate) fn a_bounded_time_ends_well_and_counts_what_was_not_tried() {
    // The controls alone sleep for longer.
    let explored = explore("plain", &["--no-warm", "--max-time", "1s"]);
    let Exploration { tried, untried, max_time_s, states, .. } = explored.result;
    assert!(tried == 0 && untried == states && max_time_s == Some(1.0), "{}", explored.text);
    let line =
        format!("stopped after 1 s (--max-time): 0 of {states} states; {states} states were not tried");
    assert!(explored.text.contains(&line), "{}", explored.text);
    let unbounded = explore("plain", &["--max-time", "1h"]).result;
    assert_eq!((unbounded.tried, unbounded.untried, unbounded.max_time_s), (unbounded.states, 0, None));
}
