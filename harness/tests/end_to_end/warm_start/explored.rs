//! Explores a Python trainer whose recoveries are slow, with a library that a fork may share and with libraries that
//! notice a fork. Knows nothing of the fork server.

use std::process::Command;

use scenarios::{CrashCategory, Exploration, Outcome};

use super::Stage;
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

/// The same, but it needs nothing of `latest` itself.
const SOUND_TRAINER: &str = r#"
import os, sys
import LIBRARY as library

latest, resumed = sys.argv[1] + "/latest", sys.argv[1] + "/resumed"
text = open(latest).read() if os.path.exists(latest) else "0"
ACTION
library.check(text)
step = 0
while os.path.exists(f"{sys.argv[1]}/step-{step + 1}"):
    step += 1
print("resumed from step", step, flush=True)
if step:
    open(resumed, "w").close()
while step < 10:
    step += 1
    with open(latest, "w") as file:
        file.write(str(step))
    os.mkdir(f"{sys.argv[1]}/step-{step}")
    print("saved step", step, flush=True)
"#;

/// What an exploration with this library printed, and its result.
struct Explored {
    text: String,
    result: Exploration,
    code: Option<i32>,
}

fn explore(library: &str, options: &[&str]) -> Explored {
    explore_trainer(&TRAINER.replace("LIBRARY", library), options)
}

fn explore_trainer(trainer: &str, options: &[&str]) -> Explored {
    let stage = Stage::new();
    let explored = explore_on(&stage, trainer, options);
    stage.sandbox.close().unwrap();
    explored
}

/// Explores a trainer, and then what was recorded of it.
fn explore_twice(trainer: &str) -> [Explored; 2] {
    let stage = Stage::new();
    let options = [&["--out", "report"][..], &["--recording", "report/recording"]];
    let explored = options.map(|options| explore_on(&stage, trainer, options));
    stage.sandbox.close().unwrap();
    explored
}

fn explore_on(stage: &Stage, trainer: &str, options: &[&str]) -> Explored {
    for old in ["venv", "runs"] {
        let _ = std::fs::remove_dir_all(stage.path(old));
    }
    let python = stage.venv();
    stage.write("train.py", trainer);
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
    Explored { result: Exploration::parse(&json).unwrap(), text, code: output.status.code() }
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
    // The last one fails as other recoveries do, from states that are not compared before they are a finding.
    for (library, is_forked_first) in
        [("notices_fork", false), ("notices_fork_at_failure", true), ("notices_fork_late", true)]
    {
        let explored = explore(library, &[]);
        explored.assert_right();
        let text = &explored.text;
        assert_eq!(text.contains(FORKED), is_forked_first, "{text}");
        assert!(text.contains(NEW_PROCESSES) && text.contains("as a new process it"), "{text}");
        // What was printed of forked recoveries is withdrawn, and what new processes do is printed again.
        let withdrawn =
            "discarded, and all states are tried again; the line `unconfirmed` above is withdrawn";
        assert_eq!(text.contains(withdrawn), is_forked_first, "{text}");
        let unconfirmed = text.lines().filter(|line| line.starts_with("unconfirmed: "));
        let is_right: Vec<bool> = unconfirmed.map(|line| line.contains("JSONDecodeError")).collect();
        let right_at_first = library == "notices_fork_late";
        let expected = if is_forked_first { vec![right_at_first, true] } else { vec![true] };
        assert_eq!(is_right, expected, "{text}");
    }
}

pub(crate) fn what_a_library_sees_of_the_files_is_not_hidden_by_a_fork() {
    let trainer = |library: &str| SOUND_TRAINER.replace("LIBRARY", library).replace("ACTION", "");
    let cold = explore_trainer(&trainer("looks_at_size"), &["--no-warm"]);
    assert!(
        cold.code == Some(1) && cold.result.outcomes[&CrashCategory::Process].len() == 2,
        "{}",
        cold.text
    );
    let check = |library: &str, is_compared: bool, options: &[&str]| {
        let explored = explore_trainer(&trainer(library), options);
        let text = format!("{library} {options:?}\n{}", explored.text);
        assert_eq!(explored.result.outcomes, cold.result.outcomes, "{text}");
        assert_eq!(explored.code, Some(1), "{text}");
        // One that asks a program is not noticed when it is imported, but a new process does something else.
        assert_eq!(text.contains(NEW_PROCESSES), is_compared, "{text}");
        assert_eq!(text.contains("as a new process it"), is_compared, "{text}");
        let forked = explored.result.forked;
        assert_eq!(forked.is_none(), is_compared, "{text}");
        let has_compared = forked.is_none_or(|forked| {
            text.contains(&forked.to_string()) && forked.compared >= u64::from(forked.recovered.ilog(4))
        });
        assert!(has_compared, "{text}");
    };
    let libraries = [
        ("looks_at_size", false),
        ("looks_by_name", false),
        ("looks_by_program", true),
        ("never_looks", false),
    ];
    std::thread::scope(|scope| {
        for (library, is_compared) in libraries {
            let check = &check;
            scope.spawn(move || check(library, is_compared, &[]));
            scope.spawn(move || check(library, is_compared, &["--warm", library]));
        }
    });
}

/// Each does it only after a second crash, where the first exploration could not show it.
pub(crate) fn recoveries_that_end_their_group_or_the_interpreter_are_tried_all_the_same() {
    let when = "if os.path.exists(resumed) and not text:";
    for (action, is_forked, code) in [
        ("import signal; os.killpg(0, signal.SIGKILL)", true, 1),
        ("os.getppid() == 1 or os.kill(os.getppid(), 9)", false, 0),
    ] {
        let trainer = SOUND_TRAINER.replace("LIBRARY", "slow_import");
        let trainer = trainer.replace("ACTION", &format!("{when} {action}"));
        let (warm, cold) = std::thread::scope(|scope| {
            let warm = scope.spawn(|| explore_trainer(&trainer, &["--depth", "2"]));
            let cold = explore_trainer(&trainer, &["--depth", "2", "--no-warm"]);
            (warm.join().unwrap(), cold)
        });
        let text = format!("{action}\n{}\n--- cold:\n{}", warm.text, cold.text);
        assert_eq!((warm.code, cold.code), (Some(code), Some(code)), "{text}");
        let outcomes = |explored: &Explored| -> Vec<_> {
            explored.result.second.iter().map(|second| second.outcomes.clone()).collect()
        };
        assert_eq!(outcomes(&warm), outcomes(&cold), "{text}");
        assert!(warm.result.second.len() > 2, "{text}");
        assert_eq!(warm.result.second.iter().all(|second| second.forked.is_some()), is_forked, "{text}");
        let told = "could not be used (the Python interpreter from which recoveries are forked has ended)";
        assert_eq!(warm.text.contains(NEW_PROCESSES) && warm.text.contains(told), !is_forked, "{text}");
    }
}

pub(crate) fn a_kept_recording_has_the_time_of_its_run() {
    let [kept, again] = explore_twice(&SOUND_TRAINER.replace("LIBRARY", "slow_import").replace("ACTION", ""));
    for explored in [&kept, &again] {
        assert!(explored.text.contains(FORKED) && explored.result.forked.is_some(), "{}", explored.text);
    }
    assert!(kept.result.recording_seconds > 0.4, "{}", kept.text);
    assert_eq!(again.result.recording_seconds, kept.result.recording_seconds, "{}", again.text);
    assert_eq!(again.result.outcomes, kept.result.outcomes, "{}", again.text);
}

pub(crate) fn a_bounded_time_ends_well_and_counts_what_was_not_tried() {
    // The controls alone sleep for longer. Recoveries are not forked then, and nothing is said about it.
    let explored = explore("plain", &["--max-time", "1s"]);
    let is_about_start = |line: &&str| line.contains(FORKED) || line.contains(NEW_PROCESSES);
    assert_eq!(explored.text.lines().find(is_about_start), None, "{}", explored.text);
    assert!(!explored.text.contains("candidates: \n"), "{}", explored.text);
    assert_eq!(explored.text.matches("not tried").count(), 1, "{}", explored.text);
    assert!(!explored.text.contains("no state was tried"), "{}", explored.text);
    let Exploration { tried, untried, max_time_s, states, .. } = explored.result;
    assert!(tried == 0 && untried == states && max_time_s == Some(1.0), "{}", explored.text);
    let line =
        format!("stopped after 1 s (--max-time): 0 of {states} states; {states} states were not tried");
    assert!(explored.text.contains(&line), "{}", explored.text);
    let unbounded = explore("plain", &["--max-time", "1h"]).result;
    assert_eq!((unbounded.tried, unbounded.untried, unbounded.max_time_s), (unbounded.states, 0, None));
}
