//! The plans of shipped scenarios for a seed, as golden files.

#![expect(clippy::unwrap_used, reason = "a failed expectation must stop the test")]

use std::collections::BTreeMap;
use std::path::Path;

use engine::plan::{
    BaselineCounts, CountedCall, CrashStateId, MAX_TRIALS_OF_SCENARIO, MaxTrials, PlannedCrashState,
    TrialPlan, TrialSelection,
};
use scenarios::{CallKind, Scenario, TrialBound, TrialsPlanned};

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
        calls: [(1, vec![save[..3].to_vec(), save.clone(), save.clone(), save])].into(),
        save_bytes: 200 * 4096,
        gpu_calls: vec![400, 60],
        ..BaselineCounts::default()
    };
    let expanded = TrialPlan::new(&scenario, seed, &BTreeMap::new()).expand(&counts);
    let trials: Vec<String> =
        expanded.trials.iter().map(|trial| format!("{}: {}", trial.number, trial.description)).collect();
    insta::assert_snapshot!(name, format!("{}\nleft out: {}", trials.join("\n"), expanded.left_out()));
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
    // Of 28 variants of the first fault and 7 of the second.
    assert_eq!((expanded.trials.len(), expanded.left_out()), (12, 28 * 7 - 12));
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

/// Files as three checkpoints of two jobs leave them.
fn made_up_files() -> Vec<String> {
    let files = |job: &str, step: u32| {
        ["manifest.json", "weights"].map(|name| format!("checkpoints/{job}/step-{step:06}/{name}"))
    };
    let steps = [20, 25, 30];
    let of_job = |job: &'static str| steps.into_iter().flat_map(move |step| files(job, step));
    of_job("a").chain(of_job("b")).collect()
}

/// Counts as a baseline run would give them to this plan.
fn made_up_counts(plan: &TrialPlan) -> BaselineCounts {
    let requests = plan.gpu_count_requests();
    let call = |operation, path: &str, bytes| CountedCall { operation, path: path.into(), bytes };
    let counted = |kinds: &[CallKind]| -> Vec<CountedCall> {
        kinds.iter().map(|kind| call(*kind, "checkpoints/weights", 4096)).collect()
    };
    let counts = plan.call_counts();
    let calls = counts.iter().map(|request| (request.number, vec![counted(&request.trigger.kinds); 4]));
    BaselineCounts {
        calls: calls.collect(),
        steps: (1..=40).collect(),
        save_bytes: 5 * 4096,
        files: made_up_files(),
        crash_states: crash_states(),
        crash_states_left_out: 7,
        crash_states_not_enumerated: 0,
        gpu_calls: (1..=requests.len() as u64).map(|number| 40 / number).collect(),
    }
}

/// One line for the plan, one for each trial, and one for each fault of a trial.
fn plan_text(scenario: &Scenario) -> String {
    let plan = TrialPlan::new(scenario, 1, &BTreeMap::new());
    let requests = plan.gpu_count_requests();
    let counts = made_up_counts(&plan);
    let expanded = plan.expand(&counts);
    let mut text = format!(
        "comparable: {}, crash states: {}, left out: {}, unit: {:?}\n",
        plan.comparable(),
        plan.crash_states().is_some(),
        expanded.left_out(),
        expanded.planned.unit
    );
    for request in &requests {
        text += &format!("counts GPU calls: {:?} from {:?}\n", request.calls.kinds, request.when);
    }
    for trial in &expanded.trials {
        text += &format!("{}: {}\n", trial.number, trial.description);
        for planned in &trial.faults {
            let (key, until) = (planned.id().key, &planned.fault.until);
            text += &format!("    {key}, persistent: {}, until: {until:?}\n", planned.is_persistent());
        }
    }
    text
}

/// All shipped scenarios.
fn shipped() -> Vec<Scenario> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/library");
    let domains = std::fs::read_dir(library).unwrap().map(|domain| domain.unwrap().path());
    let files =
        domains.flat_map(|domain| std::fs::read_dir(domain).unwrap().map(|file| file.unwrap().path()));
    let yaml = files.filter(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    let parse = |file| Scenario::parse(&std::fs::read_to_string(file).unwrap(), "library").unwrap();
    yaml.map(parse).collect()
}

#[test]
fn the_plan_of_each_shipped_scenario_is_as_committed() {
    let scenarios = shipped();
    for scenario in &scenarios {
        insta::assert_snapshot!(format!("shipped-{}", scenario.id()), plan_text(scenario));
    }
    assert!(scenarios.len() > 40, "{} scenarios", scenarios.len());
}

/// A plan with another bound, and the trials that it gives: number and description.
fn bounded(scenario: &Scenario, selection: TrialSelection) -> (TrialsPlanned, BTreeMap<u32, String>) {
    let plan = TrialPlan::new(scenario, 5, &BTreeMap::new());
    let counts = BaselineCounts { crash_states_left_out: 0, ..made_up_counts(&plan) };
    let expanded = plan.with_selection(selection).expand(&counts);
    let trials: BTreeMap<u32, String> =
        expanded.trials.iter().map(|trial| (trial.number, trial.description.clone())).collect();
    assert_eq!(trials.len(), expanded.trials.len(), "a number occurs twice");
    (expanded.planned, trials)
}

#[test]
fn a_trial_has_the_same_number_with_any_bound() {
    for scenario in shipped() {
        let with_max = |max| bounded(&scenario, TrialSelection { max, only: None });
        let (planned, all) = with_max(MaxTrials::All);
        assert_eq!((planned.total as usize, planned.bound), (all.len(), None));
        assert_eq!(planned.possible, all.len() as u64);
        assert!(all.keys().copied().eq(1..=planned.total), "{}", scenario.id());
        for max in [1, 2, 3, 7, 20] {
            let (planned, some) = with_max(MaxTrials::AtMost(max));
            assert_eq!(some.len(), all.len().min(max as usize), "{}", scenario.id());
            assert!(some.iter().all(|(number, what)| all[number] == *what), "{}", scenario.id());
            assert_eq!(planned.possible, all.len() as u64);
            assert_eq!(planned.bound.is_some(), some.len() < all.len());
            assert_eq!(some, with_max(MaxTrials::AtMost(max)).1);
        }
        for (number, what) in &all {
            for max in [MaxTrials::FromScenario, MaxTrials::AtMost(1), MaxTrials::All] {
                let (planned, only) = bounded(&scenario, TrialSelection { max, only: Some(*number) });
                assert_eq!(only, BTreeMap::from([(*number, what.clone())]));
                assert_eq!(planned.to_run(), 1);
            }
        }
        for beyond in [0, planned.total + 1, u32::MAX] {
            let selection = TrialSelection { max: MaxTrials::All, only: Some(beyond) };
            let (planned, none) = bounded(&scenario, selection);
            assert!(none.is_empty() && planned.to_run() == 0, "{}", scenario.id());
        }
    }
}

/// Two faults with many variants each have more combinations than a plan can hold.
#[test]
fn a_product_of_two_faults_is_bounded_and_counted() {
    let text = include_str!("../../../scenarios/library/hardware/hw-11-wrong-number.yaml")
        .replace("expect:", "  - gpu-hang: {call: {at: every}}\nexpect:");
    let scenario = Scenario::parse(&text, "two").unwrap();
    let counts = BaselineCounts { gpu_calls: vec![7000, 80_000], ..BaselineCounts::default() };
    for (max, total) in [(MaxTrials::All, MAX_TRIALS_OF_SCENARIO), (MaxTrials::AtMost(10), 10)] {
        let selection = TrialSelection { max, only: None };
        let plan = TrialPlan::new(&scenario, 1, &BTreeMap::new()).with_selection(selection);
        let planned = plan.expand(&counts).planned;
        assert_eq!((planned.total, planned.possible), (total, 7000 * 80_000));
        let expected = if total == 10 { TrialBound::Option } else { TrialBound::Limit };
        assert_eq!(planned.bound, Some(expected));
    }
}
