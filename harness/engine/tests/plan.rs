//! The plans of shipped scenarios for a seed, as golden files.

#![expect(clippy::unwrap_used, reason = "a failed expectation must stop the test")]

use std::collections::BTreeMap;
use std::path::Path;

use engine::plan::{BaselineCounts, CountedCall, CrashStateId, PlannedCrashState, TrialPlan};
use scenarios::{CallKind, Scenario};

fn assert_plan(name: &str, text: &str, seed: u64) {
    let scenario = Scenario::parse(text, name).unwrap();
    let call = |operation, path: &str, bytes| CountedCall { operation, path: path.into(), bytes };
    let save = vec![
        call(CallKind::Mkdir, "checkpoints/.tmp-step", 0),
        call(CallKind::Open, "checkpoints/.tmp-step/weights", 0),
        call(CallKind::Write, "checkpoints/.tmp-step/weights", 65536),
        call(CallKind::Fsync, "checkpoints/.tmp-step/weights", 0),
        call(CallKind::Rename, "checkpoints/.tmp-step", 0),
    ];
    let counts = BaselineCounts {
        calls: vec![save[..3].to_vec(), save.clone(), save.clone(), save],
        save_bytes: 200 * 4096,
        gpu_calls: vec![400, 60],
        ..BaselineCounts::default()
    };
    let expanded = TrialPlan::new(&scenario, seed, &BTreeMap::new()).expand(&counts);
    let trials: Vec<String> =
        expanded.trials.iter().map(|trial| format!("{}: {}", trial.number, trial.description)).collect();
    insta::assert_snapshot!(name, format!("{}\nleft out: {}", trials.join("\n"), expanded.left_out));
}

#[test]
fn every_call_of_the_save_that_the_seed_selects_is_a_trial() {
    assert_plan(
        "fs-01-seed-1",
        include_str!("../../../scenarios/library/filesystem/fs-01-kill-mid-save.yaml"),
        1,
    );
    assert_plan(
        "fs-01-seed-2",
        include_str!("../../../scenarios/library/filesystem/fs-01-kill-mid-save.yaml"),
        2,
    );
}

#[test]
fn a_sweep_tries_every_errno_that_each_call_may_return() {
    let file = include_str!("../../../scenarios/library/obscure/obs-04-errno-sweep.yaml");
    assert_plan("obs-04-seed-1", file, 1);
}

#[test]
fn trials_beyond_the_bound_are_left_out_evenly_and_counted() {
    assert_plan(
        "fs-06-seed-1",
        include_str!("../../../scenarios/library/filesystem/fs-06-disk-full.yaml"),
        1,
    );
}

/// Each kind of call and each way to report the error gets its share of the trials.
#[test]
fn gpu_trials_are_spread_over_all_call_kinds_and_injections() {
    assert_plan(
        "hw-01-seed-1",
        include_str!("../../../scenarios/library/hardware/hw-01-gpu-driver-crash.yaml"),
        1,
    );
}

#[test]
fn a_method_with_two_gpu_faults_counts_and_expands_each_separately() {
    let text = include_str!("../../../scenarios/library/hardware/hw-01-gpu-driver-crash.yaml").replace(
        "expect:",
        "  - gpu-hang: {when: {step: 3}, call: {kernel: 'attention*', at: every}, max-trials: 2}\n  \
         - gpu-state: {lost: true, xids: [79]}\nexpect:",
    );
    let scenario = Scenario::parse(&text, "two").unwrap();
    let plan = TrialPlan::new(&scenario, 1, &BTreeMap::new());
    assert_eq!(plan.gpu_count_requests().len(), 3);
    let expanded = plan.expand(&BaselineCounts { gpu_calls: vec![10, 4, 7], ..BaselineCounts::default() });
    assert_eq!((expanded.trials.len(), expanded.left_out), (12, 2 * 14 - 6 + 5));
    let last = &expanded.trials.last().unwrap().description;
    assert!(last.contains("GPU launch of attention*, 7 of 7, never ends"), "{last}");
}

/// Crash states as a recorded run would give them.
fn crash_states() -> Vec<PlannedCrashState> {
    let state = |number: u8| PlannedCrashState {
        id: CrashStateId(number.into()),
        description: format!("crash state {number}"),
    };
    (1..=3).map(state).collect()
}

/// One line for the plan, one for each trial, and one for each fault of a trial.
fn plan_text(scenario: &Scenario) -> String {
    let plan = TrialPlan::new(scenario, 1, &BTreeMap::new());
    let requests = plan.gpu_count_requests();
    let call = |operation, path: &str, bytes| CountedCall { operation, path: path.into(), bytes };
    let kinds = plan.counted_calls().map(|calls| calls.kinds.clone()).unwrap_or_default();
    let calls: Vec<CountedCall> = kinds.iter().map(|kind| call(*kind, "checkpoints/weights", 4096)).collect();
    let counts = BaselineCounts {
        calls: vec![calls.clone(), calls.clone(), calls.clone(), calls],
        save_bytes: 5 * 4096,
        crash_states: crash_states(),
        crash_states_left_out: 7,
        gpu_calls: (1..=requests.len() as u64).map(|number| 40 / number).collect(),
    };
    let expanded = plan.expand(&counts);
    let mut text = format!(
        "comparable: {}, crash states: {}, left out: {}\n",
        plan.comparable(),
        plan.crash_states().is_some(),
        expanded.left_out
    );
    for request in &requests {
        text += &format!("counts GPU calls: {:?} from {:?}\n", request.calls.kinds, request.when);
    }
    for trial in &expanded.trials {
        text += &format!("{}: {}\n", trial.number, trial.description);
        for planned in &trial.faults {
            let (name, until) = (planned.name(), &planned.fault.until);
            text += &format!("    {name}, persistent: {}, until: {until:?}\n", planned.is_persistent());
        }
    }
    text
}

#[test]
fn the_plan_of_each_shipped_scenario_is_as_committed() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/library");
    let mut count = 0;
    for domain in std::fs::read_dir(library).unwrap() {
        for file in std::fs::read_dir(domain.unwrap().path()).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let scenario = Scenario::parse(&std::fs::read_to_string(&file).unwrap(), "library").unwrap();
            insta::assert_snapshot!(format!("shipped-{}", scenario.id()), plan_text(&scenario));
            count += 1;
        }
    }
    assert!(count > 40, "{count} scenarios");
}
