//! GPU faults from the scenario file to the verdict, with a trainer of a few lines of C. A correct trainer
//! raises no alarm, a known-bad trainer is caught, and defects that the shim finds are always reported.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed expectation must stop the test, and a skipped test prints the reason"
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

/// Path of the compiled `targets/gpu.c`.
fn compiled_stub() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets/gpu.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("gpu-stub-{}", std::process::id()));
    if !program.exists() {
        let output = Command::new("cc").args(["-O1", "-o"]).arg(&program).arg(&source).arg("-ldl").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    program
}

/// Result of a run of the stub.
struct StubRun {
    code: i32,
    baseline: BaselineFacts,
    trials: Vec<TrialFacts>,
    /// Recorded output of the trials.
    lines: Vec<String>,
    verdict: Verdict,
}

impl StubRun {
    fn outcomes(&self) -> Vec<Outcome> {
        self.trials.iter().map(|trial| trial.outcome).collect()
    }
}

/// Runs one scenario with the stub in the given style.
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
    let output = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    let text =
        std::fs::read_to_string(out.join("record.jsonl")).unwrap_or_else(|error| panic!("{error}: {output}"));
    let events: Vec<Event> =
        Record::parse(&text).unwrap().entries.into_iter().map(|entry| entry.event).collect();
    let baseline = events.iter().find_map(|event| match event {
        Event::Baseline(facts) => Some(facts.clone()),
        _ => None,
    });
    let verdict = events.iter().find_map(|event| match event {
        Event::Judged { verdict, .. } => Some(verdict.clone()),
        _ => None,
    });
    let output_line = |event: &Event| match event {
        Event::Output { line, .. } => Some(line.clone()),
        _ => None,
    };
    let lines = events.iter().skip_while(|event| !matches!(event, Event::TrialStarted { .. }));
    let lines = lines.filter_map(output_line).collect();
    let trials = events.into_iter().filter_map(|event| match event {
        Event::TrialEnded(facts) => Some(*facts),
        _ => None,
    });
    StubRun {
        code: run.status.code().unwrap(),
        baseline: baseline.unwrap_or_else(|| panic!("no baseline: {output}")),
        trials: trials.collect(),
        lines,
        verdict: verdict.unwrap(),
    }
}

/// Whether this machine lacks a mechanism. Prints which one.
fn is_skipped() -> bool {
    let doctor = Command::new(PROGRAM).arg("doctor").output().unwrap();
    let output = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let is_missing = |line: &&str| {
        line.starts_with('-') && (line.contains("user-namespace") || line.contains("simulated-gpu"))
    };
    let missing = output.lines().find(is_missing);
    // A library that cannot be built is a failure, not a missing mechanism.
    assert!(!output.contains("could not build"), "{output}");
    missing.iter().for_each(|why| eprintln!("skipped: {why}"));
    missing.is_some()
}

#[test]
fn a_correct_trainer_recovers_from_an_error_at_any_copy_reported_in_either_way() {
    if is_skipped() {
        return;
    }
    let method = "gpu-error: {code: [illegal-address], reported: [immediately, at-next-sync], \
                  call: {to: [copy], at: every}, max-trials: 6}";
    let run = run_stub("sound", "simulated", method);
    assert_eq!(run.baseline.counted.get("GPU calls, 1"), Some(&36), "three copies in each of 12 steps");
    assert_eq!(run.outcomes(), [Outcome::Recovered; 6], "{:?}", run.trials);
    assert!(
        run.trials.iter().all(|trial| trial.restarts == 1 && trial.evidence.len() == 1),
        "{:?}",
        run.trials
    );
    assert_eq!(run.code, 0);
}

#[test]
fn a_trainer_that_ignores_a_driver_error_is_caught() {
    if is_skipped() {
        return;
    }
    let method = "gpu-error: {code: [invalid-value], call: {function: 'cuMemcpyHtoD*', at: 7}}";
    let run = run_stub("ignores", "simulated", method);
    assert_eq!((run.outcomes(), run.code), (vec![Outcome::Corrupt], 1), "{:?}", run.trials);
}

#[test]
fn a_trainer_that_checks_values_survives_a_wrong_number_or_nan_and_a_trusting_trainer_is_caught() {
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
    let run = run_stub("sound", "simulated", "gpu-hang: {when: {step: 3}, call: {at: 2}}");
    assert_eq!((run.outcomes(), run.code), (vec![Outcome::Hung], 1), "{:?}", run.trials);
    assert_eq!(run.trials[0].evidence.len(), 1);
}

#[test]
fn a_call_that_never_comes_leaves_the_scenario_inconclusive() {
    if is_skipped() {
        return;
    }
    let run = run_stub("sound", "simulated", "gpu-error: {code: [unknown], call: {to: [copy], at: 1000}}");
    assert!(matches!(&run.verdict, Verdict::Inconclusive { why } if why.contains("was not effective")));
    assert_eq!(run.code, 3);
}

#[test]
fn a_lost_gpu_is_lost_for_new_processes_too_until_it_is_restored() {
    if is_skipped() {
        return;
    }
    let restored =
        run_stub("sound", "simulated", "gpu-state: {lost: true, when: {step: 5}, until: {after: 250 ms}}");
    assert_eq!(restored.outcomes(), [Outcome::Recovered], "{:?}", restored.trials);
    assert!(restored.trials[0].restarts >= 1);
    let lost = run_stub("sound", "simulated", "gpu-state: {lost: true, when: {step: 5}}");
    assert_eq!(lost.outcomes(), [Outcome::Refused], "{:?}", lost.trials);
    assert_eq!(lost.trials[0].evidence.len(), 1, "{:?}", lost.trials);
}

#[test]
fn nvml_reports_the_changed_state_during_the_fault_and_the_original_state_after_it() {
    if is_skipped() {
        return;
    }
    let state = "temperature: 93, ecc-corrected: 12, when: {step: 3}, until: {output: '93 C'}";
    let run = run_stub("sound", "simulated", &format!("gpu-state: {{{state}}}"));
    assert_eq!((run.outcomes(), run.code), (vec![Outcome::Recovered], 0), "{:?}", run.trials);
    let watched: Vec<&String> = run.lines.iter().filter(|line| line.starts_with("watched")).collect();
    let [before, hot, after] = watched.as_slice() else { panic!("{watched:?}") };
    assert_eq!(*hot, "watched: error 0, 93 C, 12 corrected");
    assert!(before == after && before.ends_with("0 corrected"), "{watched:?}");
}

#[test]
fn an_allocation_fails_in_fragmented_memory() {
    if is_skipped() {
        return;
    }
    let method = "gpu-fragment: {holes: 512 B, call: {to: [allocate], at: 1}}";
    let fragmented = run_stub("sound", "{simulated: {devices: 2, memory: 1 MiB}}", method);
    assert_eq!(fragmented.outcomes(), [Outcome::Recovered], "{:?}", fragmented.trials);
    assert_eq!(
        fragmented.trials[0].restarts, 1,
        "4 KiB do not fit, and the next process has memory of its own"
    );
}

#[test]
fn a_gpu_defect_in_the_baseline_is_reported_and_nothing_is_judged() {
    if is_skipped() {
        return;
    }
    let run = run_stub("overruns", "simulated", "gpu-state: {temperature: 90}");
    assert!(!run.baseline.ended_well && !run.baseline.gpu_defects.is_empty(), "{:?}", run.baseline);
    assert!(matches!(&run.verdict, Verdict::Inconclusive { why } if why.contains("the simulated GPU found")));
    assert_eq!(run.code, 3);
}

#[test]
fn without_a_gpu_a_real_gpu_scenario_is_skipped_with_the_reason() {
    let doctor = Command::new(PROGRAM).arg("doctor").output().unwrap();
    let output = String::from_utf8_lossy(&doctor.stdout).into_owned();
    if output.lines().any(|line| line.contains("real-gpu") && !line.starts_with('-')) {
        eprintln!("skipped: this machine has a GPU");
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
    let output = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success() && output.contains("1 skipped") && output.contains("real-gpu"), "{output}");
}
