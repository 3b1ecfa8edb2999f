//! A scenario and a seed -> the plan, as golden files.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::collections::BTreeMap;

use scenarios::{FileCallKind, Scenario};
use trainwreck::plan::{BaselineCounts, CountedCall, TrialPlan};

fn assert_plan(name: &str, text: &str, seed: u64) {
    let scenario = Scenario::parse(text, name).unwrap();
    let call = |operation, path: &str, bytes| CountedCall { operation, path: path.into(), bytes };
    let save = vec![
        call(FileCallKind::Mkdir, "checkpoints/.tmp-step", 0),
        call(FileCallKind::Open, "checkpoints/.tmp-step/weights", 0),
        call(FileCallKind::Write, "checkpoints/.tmp-step/weights", 65536),
        call(FileCallKind::Fsync, "checkpoints/.tmp-step/weights", 0),
        call(FileCallKind::Rename, "checkpoints/.tmp-step", 0),
    ];
    let counts = BaselineCounts {
        calls: vec![save[..3].to_vec(), save.clone(), save.clone(), save],
        save_bytes: 200 * 4096,
        gpu_calls: vec![400, 60],
        ..BaselineCounts::default()
    };
    let unfolded = TrialPlan::new(&scenario, seed, &BTreeMap::new()).expand(&counts);
    let trials: Vec<String> =
        unfolded.trials.iter().map(|trial| format!("{}: {}", trial.number, trial.description)).collect();
    insta::assert_snapshot!(name, format!("{}\nleft out: {}", trials.join("\n"), unfolded.left_out));
}

#[test]
fn every_call_of_a_save_that_the_seed_chooses_is_a_trial() {
    assert_plan(
        "fs-01-seed-1",
        include_str!("../../scenarios/library/filesystem/fs-01-kill-mid-save.yaml"),
        1,
    );
    assert_plan(
        "fs-01-seed-2",
        include_str!("../../scenarios/library/filesystem/fs-01-kill-mid-save.yaml"),
        2,
    );
}

#[test]
fn a_sweep_tries_every_errno_that_each_call_may_return() {
    let file = include_str!("../../scenarios/library/observability/obs-04-errno-sweep.yaml");
    assert_plan("obs-04-seed-1", file, 1);
}

#[test]
fn what_a_bound_leaves_out_is_spread_evenly_and_counted() {
    assert_plan("fs-06-seed-1", include_str!("../../scenarios/library/filesystem/fs-06-disk-full.yaml"), 1);
}

/// Each kind of call and each way to tell the error has its share of the few trials.
#[test]
fn the_calls_of_a_gpu_are_spread_over_all_kinds_and_ways() {
    assert_plan(
        "hw-01-seed-1",
        include_str!("../../scenarios/library/hardware/hw-01-gpu-driver-crash.yaml"),
        1,
    );
}

#[test]
fn a_method_with_two_gpu_faults_counts_and_unfolds_each_by_itself() {
    let text = include_str!("../../scenarios/library/hardware/hw-01-gpu-driver-crash.yaml").replace(
        "expect:",
        "  - gpu-hang: {when: {step: 3}, call: {kernel: 'attention*', at: every}, max-trials: 2}\n  - gpu-state: {lost: true, xids: [79]}\nexpect:",
    );
    let scenario = Scenario::parse(&text, "two").unwrap();
    let plan = TrialPlan::new(&scenario, 1, &BTreeMap::new());
    assert_eq!(plan.gpu_count_requests().len(), 3);
    let unfolded = plan.expand(&BaselineCounts { gpu_calls: vec![10, 4, 7], ..BaselineCounts::default() });
    assert_eq!((unfolded.trials.len(), unfolded.left_out), (12, 2 * 14 - 6 + 5));
    let last = &unfolded.trials.last().unwrap().description;
    assert!(last.contains("GPU launch of attention*, 7 of 7, never ends"), "{last}");
}
