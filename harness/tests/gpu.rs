//! GPU faults from the words of a scenario to the verdict, on a trainer of a few lines of C: a sound one raises no alarm, bad ones are
//! caught, and what the stand-in finds by itself is never silent.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use scenarios::{BaselineFacts, Event, Outcome, Record, TrialFacts, Verdict};

const PROGRAM: &str = env!("CARGO_BIN_EXE_trainwreck");

const TARGET: &str = r"
version: 1
id: stub
title: one value on the GPU
program: PROGRAM
places: {checkpoints: ckpt}
prepare: [[mkdir, -p, '{checkpoints}']]
start: ['{program}', STYLE, '{root}']
announces:
  step: '^step (?<step>\d+) loss (?<loss>\d+)'
  saved: '^saved step (?<step>\d+)'
  resumed: '^resumed from step (?<step>\d+)'
same: '^finished with (?<value>\d+)'
refused-exits: [17]
timeouts: {stall: 2 s, finish: 20 s}
";

const SCENARIO: &str = r"
version: 1
id: hw-99
title: a stub under test
severity: extra
target: {use: target.yaml, gpu: GPU}
method: [METHOD]
expect:
  - always: {outcome: [recovered]}
  - always: same-as-baseline
";

/// The program of `targets/gpu.c`.
fn compiled_stub() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/gpu.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gpu-stub-{}", std::process::id()));
    if !program.exists() {
        let done = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source).arg("-ldl").output();
        let done = done.unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    program
}

/// What a run came to.
struct StubRun {
    code: i32,
    baseline: BaselineFacts,
    trials: Vec<TrialFacts>,
    /// Lines of the trials.
    lines: Vec<String>,
    verdict: Verdict,
}

impl StubRun {
    fn outcomes(&self) -> Vec<Outcome> {
        self.trials.iter().map(|trial| trial.outcome).collect()
    }
}

fn run_stub(style: &str, gpu: &str, method: &str) -> StubRun {
    let dir = tempfile::tempdir().unwrap();
    let target = TARGET.replace("PROGRAM", compiled_stub().to_str().unwrap()).replace("STYLE", style);
    std::fs::write(dir.path().join("target.yaml"), target).unwrap();
    let scenario = dir.path().join("scenario.yaml");
    std::fs::write(&scenario, SCENARIO.replace("GPU", gpu).replace("METHOD", method)).unwrap();
    let out = dir.path().join("out");
    let run = Command::new(PROGRAM)
        .args(["run", scenario.to_str().unwrap(), "--out", out.to_str().unwrap()])
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let text =
        std::fs::read_to_string(out.join("record.jsonl")).unwrap_or_else(|error| panic!("{error}: {said}"));
    let events: Vec<Event> =
        Record::parse(&text).unwrap().entries.into_iter().map(|entry| entry.event).collect();
    let steady = events.iter().find_map(|event| match event {
        Event::Baseline(facts) => Some(facts.clone()),
        _ => None,
    });
    let verdict = events.iter().find_map(|event| match event {
        Event::Judged { verdict, .. } => Some(verdict.clone()),
        _ => None,
    });
    let said_of = |event: &Event| match event {
        Event::Output { line, .. } => Some(line.clone()),
        _ => None,
    };
    let lines = events.iter().skip_while(|event| !matches!(event, Event::TrialStarted { .. }));
    let lines = lines.filter_map(said_of).collect();
    let trials = events.into_iter().filter_map(|event| match event {
        Event::TrialEnded(facts) => Some(*facts),
        _ => None,
    });
    StubRun {
        code: run.status.code().unwrap(),
        baseline: steady.unwrap_or_else(|| panic!("no steady state: {said}")),
        trials: trials.collect(),
        lines,
        verdict: verdict.unwrap(),
    }
}

/// Why these tests can't be done here.
fn is_skipped() -> bool {
    let doctor = Command::new(PROGRAM).arg("doctor").output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let lacks = |line: &&str| {
        line.starts_with('-') && (line.contains("user-namespace") || line.contains("simulated-gpu"))
    };
    let lacking = said.lines().find(lacks);
    // A library that can't be built is no machine without a compiler.
    assert!(!said.contains("could not build"), "{said}");
    lacking.iter().for_each(|why| eprintln!("skipped: {why}"));
    lacking.is_some()
}

#[test]
fn a_sound_trainer_comes_back_from_an_error_at_any_copy_told_either_way() {
    if is_skipped() {
        return;
    }
    let method = "gpu-error: {code: [illegal-address], reported: [immediately, at-next-sync], call: {to: [copy], at: every}, max-trials: 6}";
    let played = run_stub("sound", "simulated", method);
    assert_eq!(played.baseline.counted.get("GPU calls, 1"), Some(&36), "three copies in each of 12 steps");
    assert_eq!(played.outcomes(), [Outcome::Recovered; 6], "{:?}", played.trials);
    assert!(
        played.trials.iter().all(|trial| trial.restarts == 1 && trial.evidence.len() == 1),
        "{:?}",
        played.trials
    );
    assert_eq!(played.code, 0);
}

#[test]
fn a_trainer_that_ignores_an_error_of_the_driver_is_caught() {
    if is_skipped() {
        return;
    }
    let method = "gpu-error: {code: [invalid-value], call: {function: 'cuMemcpyHtoD*', at: 7}}";
    let played = run_stub("ignores", "simulated", method);
    assert_eq!((played.outcomes(), played.code), (vec![Outcome::Corrupt], 1), "{:?}", played.trials);
}

#[test]
fn a_wrong_number_or_a_nan_of_any_launch_is_met_by_who_looks_and_caught_in_who_does_not() {
    if is_skipped() {
        return;
    }
    for with in ["nan", "wrong"] {
        let call = "call: {kernel: 'planted_*', at: every}, max-trials: 3";
        let method = format!("gpu-overwrite: {{with: {with}, {call}}}");
        let sound = run_stub("sound", "simulated", &method);
        assert_eq!(sound.outcomes(), [Outcome::Recovered; 3], "{:?}", sound.trials);
        assert!(sound.trials.iter().all(|trial| trial.restarts == 1), "{:?}", sound.trials);
        let trusting = run_stub("trusts", "simulated", &method);
        assert_eq!(trusting.outcomes(), [Outcome::Corrupt; 3], "{:?}", trusting.trials);
    }
}

#[test]
fn a_kernel_that_never_ends_hangs_a_trainer_without_a_watchdog() {
    if is_skipped() {
        return;
    }
    let played = run_stub("sound", "simulated", "gpu-hang: {when: {step: 3}, call: {at: 2}}");
    assert_eq!((played.outcomes(), played.code), (vec![Outcome::Hung], 1), "{:?}", played.trials);
    assert_eq!(played.trials[0].evidence.len(), 1);
}

#[test]
fn a_call_that_never_comes_leaves_the_scenario_inconclusive() {
    if is_skipped() {
        return;
    }
    let played = run_stub("sound", "simulated", "gpu-error: {code: [unknown], call: {to: [copy], at: 1000}}");
    assert!(matches!(&played.verdict, Verdict::Inconclusive { why } if why.contains("did not land")));
    assert_eq!(played.code, 3);
}

#[test]
fn a_lost_gpu_is_lost_to_new_processes_too_until_it_is_put_back() {
    if is_skipped() {
        return;
    }
    let back =
        run_stub("sound", "simulated", "gpu-state: {lost: true, when: {step: 5}, until: {after: 250 ms}}");
    assert_eq!(back.outcomes(), [Outcome::Recovered], "{:?}", back.trials);
    assert!(back.trials[0].restarts >= 1);
    let gone = run_stub("sound", "simulated", "gpu-state: {lost: true, when: {step: 5}}");
    assert_eq!(gone.outcomes(), [Outcome::Refused], "{:?}", gone.trials);
    assert_eq!(gone.trials[0].evidence.len(), 1, "{:?}", gone.trials);
}

#[test]
fn nvml_tells_the_state_while_the_fault_lasts_and_then_what_it_told_before() {
    if is_skipped() {
        return;
    }
    let state = "temperature: 93, ecc-corrected: 12, when: {step: 3}, until: {output: '93 C'}";
    let played = run_stub("sound", "simulated", &format!("gpu-state: {{{state}}}"));
    assert_eq!((played.outcomes(), played.code), (vec![Outcome::Recovered], 0), "{:?}", played.trials);
    let watched: Vec<&String> = played.lines.iter().filter(|line| line.starts_with("watched")).collect();
    let [before, hot, after] = watched.as_slice() else { panic!("{watched:?}") };
    assert_eq!(*hot, "watched: error 0, 93 C, 12 corrected");
    assert!(before == after && before.ends_with("0 corrected"), "{watched:?}");
}

#[test]
fn an_allocation_finds_no_room_in_memory_of_small_pieces() {
    if is_skipped() {
        return;
    }
    let method = "gpu-fragment: {holes: 512 B, call: {to: [allocate], at: 1}}";
    let roomy = run_stub("sound", "{simulated: {devices: 2, memory: 1 MiB}}", method);
    assert_eq!(roomy.outcomes(), [Outcome::Recovered], "{:?}", roomy.trials);
    assert_eq!(roomy.trials[0].restarts, 1, "4 KiB find no room, and the next process has memory of its own");
}

#[test]
fn what_the_stand_in_finds_undisturbed_is_told_and_nothing_is_judged() {
    if is_skipped() {
        return;
    }
    let played = run_stub("overruns", "simulated", "gpu-state: {temperature: 90}");
    assert!(!played.baseline.ended_well && !played.baseline.gpu_defects.is_empty(), "{:?}", played.baseline);
    assert!(
        matches!(&played.verdict, Verdict::Inconclusive { why } if why.contains("the simulated GPU found"))
    );
    assert_eq!(played.code, 3);
}

#[test]
fn where_there_is_no_card_a_real_gpu_is_skipped_and_why_is_said() {
    let doctor = Command::new(PROGRAM).arg("doctor").output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    if said.lines().any(|line| line.contains("real-gpu") && !line.starts_with('-')) {
        eprintln!("skipped: this machine has a card");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = TARGET.replace("PROGRAM", compiled_stub().to_str().unwrap()).replace("STYLE", "sound");
    std::fs::write(dir.path().join("target.yaml"), target).unwrap();
    let scenario = dir.path().join("scenario.yaml");
    let method = "gpu-error: {code: [launch-failed], call: {to: [launch], at: 1}}";
    std::fs::write(&scenario, SCENARIO.replace("GPU", "real").replace("METHOD", method)).unwrap();
    let out = dir.path().join("out");
    let mut run = Command::new(PROGRAM);
    run.args(["run", scenario.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let run = run.output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success() && said.contains("1 skipped") && said.contains("real-gpu"), "{said}");
}
