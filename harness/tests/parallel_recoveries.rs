//! Recoveries side by side never meet: a sound trainer that holds a port, a lock, a socket or shared memory
//! gives no finding with four jobs. A lock that becomes stale in the watched directory is always found.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
mod support;

use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Failed, Trial};
use scenarios::{Exploration, Outcome};
use support::command::{TRAINWRECK, output_text, workspace};
use support::machine::{GATE, Need, missing};
use support::scenario_run::ScenarioFiles;
use support::trial::{run_sequentially, trial};

/// What a process holds while it runs, and which a second process on the same machine could not have: functions
/// of `targets/shared_name.py`. Those of one row are held at the same time.
const HELD: [&str; 6] = [
    "tcp,tcp_any,udp,abstract_socket",
    "socket_file,locked_file,record_lock,exclusive_file,pid_file",
    "var_tmp,working_directory,home,shared_memory",
    "system_v,message_queue",
    "mapped_file",
    "restored_time",
];

/// Those of them that the kernel gives back when a process is killed. A scenario's target is killed, and then
/// starts in the same sandbox.
const GIVEN_BACK: &str = "tcp_any,abstract_socket,locked_file,record_lock";

const SAVED: &str = r"^saved step (?<step>\d+)";
const RESUMED: &str = r"^resumed from step (?<step>\d+)";

fn main() -> ExitCode {
    let missing = missing(GATE.iter().chain(&[Need::Program("python3")]));
    let mut trials: Vec<Trial> = Vec::new();
    for kinds in HELD {
        let name = format!("recoveries_that_hold_{}_never_meet", kinds.replace(',', "_and_"));
        trials.push(trial(name, missing.as_deref(), move || never_meet(kinds)));
    }
    trials.extend(trials![
        missing.clone();
        a_lock_that_becomes_stale_is_found_with_one_job_and_with_four,
        trials_side_by_side_never_meet,
    ]);
    // Each uses all cores by itself.
    run_sequentially(trials)
}

/// An exploration of `targets/shared_name.py`, with what it printed.
struct ExploredTrainer {
    code: Option<i32>,
    text: String,
    exploration: Option<Exploration>,
}

fn explore(kinds: &str, jobs: &str) -> ExploredTrainer {
    let dir = tempfile::tempdir().unwrap();
    let watch = dir.path().join("checkpoints");
    std::fs::create_dir(&watch).unwrap();
    let json = dir.path().join("result.json");
    let output = Command::new(TRAINWRECK)
        .args(["explore", "--crash", "process", "--jobs", jobs, "--saved", SAVED, "--resumed", RESUMED])
        .args(["--same", r"^final sum (\w+)", "--watch"])
        .arg(&watch)
        .arg("--json")
        .arg(&json)
        .args(["--", "python3"])
        .arg(workspace().join("harness/tests/targets/shared_name.py"))
        .arg(kinds)
        .arg(&watch)
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .output()
        .unwrap();
    let exploration = std::fs::read_to_string(&json).ok().map(|text| Exploration::parse(&text).unwrap());
    ExploredTrainer { code: output.status.code(), text: output_text(&output), exploration }
}

fn never_meet(kinds: &str) -> Result<(), Failed> {
    let explored = explore(kinds, "4");
    if explored.code != Some(0) {
        return Err(format!("exit code {:?}\n{}", explored.code, explored.text).into());
    }
    let exploration = explored.exploration.ok_or("no result")?;
    assert!(exploration.findings.is_empty());
    // Several for each job, so that they overlap.
    let recovered: u64 = exploration.outcomes.values().flat_map(|outcomes| outcomes.values()).sum();
    assert!(recovered >= 8, "{}", explored.text);
    Ok(())
}

fn a_lock_that_becomes_stale_is_found_with_one_job_and_with_four() {
    for jobs in ["1", "4"] {
        let explored = explore("stale", jobs);
        assert_eq!(explored.code, Some(1), "{}", explored.text);
        let findings = explored.exploration.unwrap().findings;
        assert!(findings.iter().any(|finding| finding.outcome == Outcome::Crashed), "{}", explored.text);
    }
}

const TARGET: &str = r"
version: 1
id: shared
title: a trainer that holds something
program: python3
places: {checkpoints: ckpt}
prepare: [[mkdir, -p, '{checkpoints}']]
start: ['{program}', SCRIPT, 'KINDS', '{checkpoints}']
announces:
  step: '^saved step (?<step>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
phases: {checkpoint-save: {begins: '^resumed', ends: '^final', place: checkpoints}}
same: '^final sum (?<value>\d+)'
timeouts: {stall: 30 s, finish: 120 s}
";

const SCENARIO: &str = r"
version: 1
id: fs-01
title: a trainer that holds something
severity: extra
target: {use: target.yaml}
method: [crash: {when: {call: {during: checkpoint-save, at: every}}, max-trials: 8}]
expect:
  - always: {outcome: [recovered]}
  - always: same-as-baseline
";

fn trials_side_by_side_never_meet() {
    let script = workspace().join("harness/tests/targets/shared_name.py");
    let target = TARGET.replace("SCRIPT", script.to_str().unwrap()).replace("KINDS", GIVEN_BACK);
    let run = ScenarioFiles { target, scenario: SCENARIO.into() };
    let run = run.run_in(Path::new("."), &["--jobs", "4"]);
    assert_eq!((run.code, run.outcomes()), (0, vec![Outcome::Recovered; 8]), "{}", run.printed);
}
