//! GPU faults from the scenario file to the verdict, with a trainer of a few lines of C. A correct trainer
//! raises no alarm, a known-bad trainer is caught, and defects that the shim finds are always reported.

use libtest_mimic::Trial;
use scenarios::{Outcome, Verdict};

use crate::support::c_target;
use crate::support::machine::{Need, SIMULATED_GPU, missing};
use crate::support::scenario_run::{ScenarioFiles, ScenarioRun};
use crate::support::small_target::LONG_STALL;

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
timeouts: {stall: STALL, finish: 120 s}
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

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = trials![
        missing(&SIMULATED_GPU);
        a_correct_trainer_recovers_from_an_error_at_any_copy_reported_in_either_way,
        a_trainer_that_ignores_a_driver_error_is_caught,
        a_trainer_that_checks_values_survives_a_wrong_number_or_nan_and_a_trusting_trainer_is_caught,
        a_kernel_that_never_ends_hangs_a_trainer_without_a_watchdog,
        a_call_that_never_comes_leaves_the_scenario_inconclusive,
        a_lost_gpu_is_lost_for_new_processes_too_until_it_is_restored,
        nvml_reports_the_changed_state_during_the_fault_and_the_original_state_after_it,
        an_allocation_fails_in_fragmented_memory,
        a_gpu_defect_in_the_baseline_is_reported_and_nothing_is_judged,
    ];
    trials.extend(trials![
        missing(&[Need::Mechanism("user-namespace"), Need::NoMechanism("real-gpu")]);
        without_a_gpu_a_real_gpu_scenario_is_skipped_with_the_reason,
    ]);
    trials
}

/// Runs one scenario with `targets/gpu.c` in the given style.
fn run_stub(style: &str, gpu: &str, method: &str) -> ScenarioRun {
    let program = c_target::compile("gpu.c", &[]).unwrap();
    let target = TARGET.replace("PROGRAM", program.to_str().unwrap()).replace("STYLE", style);
    // Only what is expected to hang needs a short time.
    let target = target.replace("STALL", if method.starts_with("gpu-hang") { "2 s" } else { LONG_STALL });
    ScenarioFiles { target, scenario: SCENARIO.replace("GPU", gpu).replace("METHOD", method) }.run()
}

fn a_correct_trainer_recovers_from_an_error_at_any_copy_reported_in_either_way() {
    let method = "gpu-error: {code: [illegal-address], reported: [immediately, at-next-sync], \
                  call: {to: [copy], at: every}, max-trials: 6}";
    let run = run_stub("sound", "simulated", method);
    assert_eq!(run.baseline().counted.get("GPU calls, 1"), Some(&36), "three copies in each of 12 steps");
    assert_eq!(run.outcomes(), [Outcome::Recovered; 6], "{:?}", run.trials());
    assert!(
        run.trials().iter().all(|trial| trial.restarts == 1 && trial.evidence.len() == 1),
        "{:?}",
        run.trials()
    );
    assert_eq!(run.code, 0);
}

fn a_trainer_that_ignores_a_driver_error_is_caught() {
    let method = "gpu-error: {code: [invalid-value], call: {function: 'cuMemcpyHtoD*', at: 7}}";
    let run = run_stub("ignores", "simulated", method);
    assert_eq!((run.outcomes(), run.code), (vec![Outcome::Corrupt], 1), "{:?}", run.trials());
}

fn a_trainer_that_checks_values_survives_a_wrong_number_or_nan_and_a_trusting_trainer_is_caught() {
    for with in ["nan", "wrong"] {
        let call = "call: {kernel: 'planted_*', at: every}, max-trials: 3";
        let method = format!("gpu-overwrite: {{with: {with}, {call}}}");
        let sound = run_stub("sound", "simulated", &method);
        assert_eq!(sound.outcomes(), [Outcome::Recovered; 3], "{:?}", sound.trials());
        assert!(sound.trials().iter().all(|trial| trial.restarts == 1), "{:?}", sound.trials());
        let trusting = run_stub("trusts", "simulated", &method);
        assert_eq!(trusting.outcomes(), [Outcome::Corrupt; 3], "{:?}", trusting.trials());
    }
}

fn a_kernel_that_never_ends_hangs_a_trainer_without_a_watchdog() {
    let run = run_stub("pauses", "simulated", "gpu-hang: {when: {step: 3}, call: {at: 2}}");
    assert_eq!((run.outcomes(), run.code), (vec![Outcome::Hung], 1), "{:?}", run.trials());
    assert_eq!(run.trials()[0].evidence.len(), 1);
}

fn a_call_that_never_comes_leaves_the_scenario_inconclusive() {
    let run = run_stub("sound", "simulated", "gpu-error: {code: [unknown], call: {to: [copy], at: 1000}}");
    assert!(matches!(run.verdict(), Verdict::Inconclusive { why } if why.contains("were not effective")));
    assert_eq!(run.code, 3);
}

fn a_lost_gpu_is_lost_for_new_processes_too_until_it_is_restored() {
    let restored =
        run_stub("pauses", "simulated", "gpu-state: {lost: true, when: {step: 5}, until: {after: 250 ms}}");
    assert_eq!(restored.outcomes(), [Outcome::Recovered], "{:?}", restored.trials());
    assert!(restored.trials()[0].restarts >= 1);
    let lost = run_stub("pauses", "simulated", "gpu-state: {lost: true, when: {step: 5}}");
    assert_eq!(lost.outcomes(), [Outcome::Refused], "{:?}", lost.trials());
    assert_eq!(lost.trials()[0].evidence.len(), 1, "{:?}", lost.trials());
}

fn nvml_reports_the_changed_state_during_the_fault_and_the_original_state_after_it() {
    let state = "temperature: 93, ecc-corrected: 12, when: {step: 3}, until: {output: '93 C'}";
    let run = run_stub("pauses", "simulated", &format!("gpu-state: {{{state}}}"));
    assert_eq!((run.outcomes(), run.code), (vec![Outcome::Recovered], 0), "{:?}", run.trials());
    let printed = run.trial_output();
    let watched: Vec<&&str> = printed.iter().filter(|line| line.starts_with("watched")).collect();
    let [before, hot, after] = watched.as_slice() else { panic!("{watched:?}") };
    assert_eq!(**hot, "watched: error 0, 93 C, 12 corrected");
    assert!(before == after && before.ends_with("0 corrected"), "{watched:?}");
}

fn an_allocation_fails_in_fragmented_memory() {
    let method = "gpu-fragment: {holes: 512 B, call: {to: [allocate], at: 1}}";
    let fragmented = run_stub("sound", "{simulated: {devices: 2, memory: 1 MiB}}", method);
    assert_eq!(fragmented.outcomes(), [Outcome::Recovered], "{:?}", fragmented.trials());
    assert_eq!(
        fragmented.trials()[0].restarts,
        1,
        "4 KiB do not fit, and the next process has memory of its own"
    );
}

fn a_gpu_defect_in_the_baseline_is_reported_and_nothing_is_judged() {
    let run = run_stub("overruns", "simulated", "gpu-state: {temperature: 90}");
    assert!(!run.baseline().ended_well && !run.baseline().gpu_defects.is_empty(), "{:?}", run.baseline());
    assert!(
        matches!(run.verdict(), Verdict::Inconclusive { why } if why.contains("the simulated GPU found"))
    );
    assert_eq!(run.code, 3);
}

fn without_a_gpu_a_real_gpu_scenario_is_skipped_with_the_reason() {
    let run = run_stub("sound", "real", "gpu-error: {code: [launch-failed], call: {to: [launch], at: 1}}");
    let printed = &run.printed;
    assert!(run.code == 3 && printed.contains("1 skipped") && printed.contains("real-gpu"), "{printed}");
}
