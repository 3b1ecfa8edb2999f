//! The fault `limits`, and the expectations about what processes use: each finds a trainer that uses a resource
//! badly, and is silent about its twin that does not.

use libtest_mimic::Trial;

use crate::support::command::workspace;
use crate::support::machine::{GATE, Need, SANDBOX, missing};
use crate::support::scenario_run::{ScenarioFiles, ScenarioRun};
use crate::support::small_target::{LONG_STALL, SmallTarget};

/// What must be printed, and the exit code.
struct Expected {
    code: i32,
    said: &'static [&'static str],
}

/// A scenario of a trainer that works in this way.
struct Row {
    way: &'static str,
    method: &'static str,
    expect: &'static str,
    expected: Expected,
}

const fn survived(way: &'static str, method: &'static str, expect: &'static str) -> Row {
    Row { way, method, expect, expected: Expected { code: 0, said: &["1 survived"] } }
}

const fn violated(
    way: &'static str,
    method: &'static str,
    expect: &'static str,
    said: &'static [&'static str],
) -> Row {
    Row { way, method, expect, expected: Expected { code: 1, said } }
}

const FILES: &str = "limits: {open-files: 9, when: {step: 2}}";
const SIZE: &str = "limits: {file-size: 16 KiB, when: {step: 4}, until: {output: '^step 7'}}";
const PROCESSES: &str = "limits: {processes: 1, when: {step: 4}, until: {after: 300 ms}}";
const CRASH: &str = "crash: {when: {step: 8}}";
const RECOVERED: &str = "{outcome: [recovered]}";

const OF_FILES_AND_SIZES: [Row; 8] = [
    violated("leak", FILES, RECOVERED, &["open(ckpt/", "failed with EMFILE", "crashed"]),
    Row {
        way: "plain",
        method: FILES,
        expect: RECOVERED,
        expected: Expected { code: 3, said: &["no call below the root failed with EMFILE"] },
    },
    violated("leak", CRASH, "{open-files: {max: 8}}", &["open files of one process"]),
    survived("plain", CRASH, "{open-files: {max: 8}}"),
    survived("save", SIZE, RECOVERED),
    violated("save-blindly", SIZE, RECOVERED, &["failed with EFBIG", "error-swallowed"]),
    violated("threads", CRASH, "{threads: {max: 6}}", &["threads"]),
    survived("plain", CRASH, "{threads: {max: 6}}"),
];

const OF_PROCESSES: [Row; 4] = [
    violated("helper", PROCESSES, "{restarts: {max: 0}}", &["of a process or thread refused", "restarts by"]),
    survived("helper-again", PROCESSES, "{restarts: {max: 0}}"),
    violated("zombies", CRASH, "{zombie-time: {max: 100 ms}}", &["ms as a zombie"]),
    survived("helper", CRASH, "{zombie-time: {max: 100 ms}}"),
];

pub(crate) fn trials() -> Vec<Trial> {
    let with =
        |needs: &[Need]| missing(SANDBOX.iter().chain(&GATE).chain(&[Need::Program("python3")]).chain(needs));
    let mut trials = trials![
        with(&[]);
        limits_of_files_and_sizes_are_noticed,
        a_limit_lasts_over_a_restart_and_is_lifted,
        work_that_a_fault_adds_hides_no_lost_promise,
    ];
    trials.extend(trials![
        with(&[Need::Mechanism("process-cgroup")]);
        limits_of_processes_are_noticed,
    ]);
    trials
}

fn run(way: &str, method: &str, expect: &str) -> ScenarioRun {
    let script = workspace().join("harness/tests/targets/resources.py");
    let start = format!("['{{program}}', '{}', '{{root}}', {way}]", script.display());
    let target = SmallTarget { program: "python3", start: &start, stall: LONG_STALL, more: "" }.to_yaml();
    let method: String = method.split("; ").map(|fault| format!("  - {fault}\n")).collect();
    let scenario = format!(
        "version: 1\nid: res-03\ntitle: a limit\nseverity: low\ntarget: {{use: target.yaml}}\nmethod:\n{method}\
         expect:\n  - always: {expect}\n"
    );
    ScenarioFiles { target, scenario }.run()
}

fn check(rows: &[Row]) {
    for Row { way, method, expect, expected } in rows {
        let run = run(way, method, expect);
        let context = format!("{way}, {method}, {expect}:\n{}", run.printed);
        assert_eq!(run.code, expected.code, "{context}");
        for said in expected.said {
            assert!(run.printed.contains(said), "`{said}` is missing: {context}");
        }
    }
}

fn limits_of_files_and_sizes_are_noticed() {
    check(&OF_FILES_AND_SIZES);
}

fn limits_of_processes_are_noticed() {
    check(&OF_PROCESSES);
}

/// The trainer is started anew under the limit, and its saves fail until the limit is lifted.
fn a_limit_lasts_over_a_restart_and_is_lifted() {
    let method =
        "limits: {file-size: 16 KiB, when: {step: 4}, until: {output: '^step 11'}}; crash: {when: {step: 8}}";
    let run = run("save", method, RECOVERED);
    assert_eq!(run.code, 0, "{}", run.printed);
    let failed = run.trial_output().iter().filter(|line| line.starts_with("save failed")).count();
    // At the steps 6, and 6 and 9 again after the crash.
    assert_eq!(failed, 3, "{}", run.printed);
}

/// With a further job, a line without a name may be about that one. That is said, and is no success.
fn work_that_a_fault_adds_hides_no_lost_promise() {
    let added = "plant: {place: checkpoints, files: [{name: more, holds: {text: more}}], when: {step: 2}, optional: true}";
    let method = format!("{added}; {CRASH}");
    for (way, said) in [("confused", "began a job again"), ("plain", "1 survived")] {
        let run = run(way, &method, RECOVERED);
        assert_eq!(run.code, if way == "plain" { 0 } else { 3 }, "{}", run.printed);
        assert!(run.printed.contains(said), "{}", run.printed);
    }
}
