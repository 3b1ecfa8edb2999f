//! Turns a checked scenario and a seed into a plan: the workload of the target and the trials.
//!
//! Pure: no clock, no files, no environment. The same scenario and seed give the same plan. A fault with `at:
//! every` expands to one trial per matching call, so the plan first states what a baseline run must count,
//! and is expanded with these counts.

mod fault_variants;
mod gpu_injections;
mod planned_trial;
mod trial_selection;
mod trial_space;

use std::collections::BTreeMap;

use scenarios::{
    CallTrigger, CrashStates, Fact, Fault, Mount, Scenario, SubmittedFile, TargetGpu, TrialsPlanned, Trigger,
};

use fault_variants::{FaultPlace, FaultVariants};
use gpu_injections::GpuVariants;
use trial_space::{ChosenTrials, TrialSpace};

pub use gpu_injections::{GpuCountRequest, PlannedGpuFault};
pub use planned_trial::{
    BaselineCounts, CountedCall, CrashStateId, InjectionPoint, PlannedCrashState, PlannedFault, Trial,
};
pub use scenarios::{CallInjection, GpuInjection, PAGE_BYTES};
pub use trial_selection::{MAX_TRIALS_OF_SCENARIO, MaxTrials, TrialSelection};

/// The plan for one scenario, before it is expanded into trials.
#[derive(Debug, Clone)]
pub struct TrialPlan {
    seed: u64,
    workload: Workload,
    faults: Vec<Fault>,
    /// Which occurrence of a phase gets the faults, 1-based.
    phase_occurrence: u64,
    /// The scenario expects exactly the weights of the baseline run.
    expects_same_weights: bool,
    /// Which trials run.
    selection: TrialSelection,
}

/// What the target is given to do. It is the same in the baseline run and in every trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Seed of the target's workload.
    pub seed: u64,
    /// Settings that are passed to the target.
    pub settings: BTreeMap<String, String>,
    /// Data files that are submitted before the start.
    pub submit: Vec<SubmittedFile>,
    /// Places that are a tmpfs of their own.
    pub mounts: Vec<Mount>,
    /// The GPU that the target sees, if any.
    pub gpu: Option<TargetGpu>,
}

/// The calls that a baseline run must count for a fault.
#[derive(Debug, Clone, Copy)]
pub struct CallCountRequest<'a> {
    /// The fault's place in the method, 1-based.
    pub number: u32,
    /// Which calls.
    pub trigger: &'a CallTrigger,
}

/// Which crash states a plan needs of a recorded run.
#[derive(Debug, Clone, Copy)]
pub struct CrashStateRequest<'a> {
    /// What the scenario states.
    pub selection: &'a CrashStates,
    /// The largest number of states.
    pub max_states: u32,
    /// Which occurrence of the phase gets the crashes, 1-based.
    pub occurrence: u64,
}

/// The trials of a plan.
#[derive(Debug, Clone)]
pub struct ExpandedPlan {
    /// The trials that run, in order.
    pub trials: Vec<Trial>,
    /// How many trials there are, and what leaves out the others.
    pub planned: TrialsPlanned,
}

impl TrialPlan {
    /// The plan for one scenario. `guard_off_settings` are the settings that switch a guard off, or none.
    pub fn new(scenario: &Scenario, seed: u64, guard_off_settings: &BTreeMap<String, String>) -> TrialPlan {
        let mut settings = scenario.settings().clone();
        settings.extend(guard_off_settings.clone());
        let (submit, mounts) = (scenario.submit().to_vec(), scenario.mounts().to_vec());
        let workload = Workload { seed, settings, submit, mounts, gpu: scenario.gpu().cloned() };
        // Never the first occurrence: before the first save there is no acknowledged work that could be lost.
        let phase_occurrence = 2 + seed % 3;
        let allows_other_weights = |fact: &Fact| matches!(fact, Fact::FinalLoss { .. });
        let expects_same_weights =
            !scenario.expect().iter().any(|expectation| allows_other_weights(&expectation.fact));
        TrialPlan {
            seed,
            workload,
            faults: scenario.method().to_vec(),
            phase_occurrence,
            expects_same_weights,
            selection: TrialSelection::default(),
        }
    }

    /// What the target is given to do.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether the faults leave the workload unchanged, so that the values at the end must equal the
    /// baseline's.
    pub fn comparable(&self) -> bool {
        self.expects_same_weights && self.same_workload()
    }

    /// Whether the faults leave the workload unchanged.
    pub fn same_workload(&self) -> bool {
        !self.faults.iter().any(|fault| fault.effect.spec().changes_workload())
    }

    /// Whether a fault gives the target more to do.
    pub fn adds_work(&self) -> bool {
        self.faults.iter().any(|fault| fault.effect.spec().adds_work())
    }

    /// Whether a fault makes calls of the target fail.
    pub fn makes_calls_fail(&self) -> bool {
        self.faults.iter().any(|fault| fault.effect.spec().makes_calls_fail())
    }

    /// The calls that the baseline run must count, for each fault that waits for a call.
    pub fn call_counts(&self) -> Vec<CallCountRequest<'_>> {
        let numbered = self.faults.iter().zip(1..);
        let requests = numbered.filter_map(|(fault, number)| match &fault.when {
            Trigger::Call(trigger) => Some(CallCountRequest { number, trigger }),
            _ => None,
        });
        requests.collect()
    }

    /// The GPU driver calls that the baseline run must count.
    pub fn gpu_count_requests(&self) -> Vec<GpuCountRequest> {
        self.faults.iter().flat_map(gpu_injections::count_requests).collect()
    }

    /// The crash states that are tried, if the method tries any.
    pub fn crash_states(&self) -> Option<CrashStateRequest<'_>> {
        self.faults.iter().find_map(|fault| {
            let selection = fault.effect.spec().crash_states()?;
            // The states are found in the order of their numbers.
            let max_states = self.selection.max_of_fault(fault).max(self.selection.only.unwrap_or(0));
            let occurrence = self.phase_occurrence;
            Some(CrashStateRequest { selection, max_states, occurrence })
        })
    }

    /// Chooses other trials than those that the scenario's own bounds leave.
    pub fn with_selection(self, selection: TrialSelection) -> TrialPlan {
        TrialPlan { selection, ..self }
    }

    /// Expands the plan into its trials.
    pub fn expand(&self, counts: &BaselineCounts) -> ExpandedPlan {
        let mut gpu_calls = counts.gpu_calls.as_slice();
        let variants = self.faults.iter().zip(1..).map(|(fault, number)| {
            let place = self.place_of(number, counts);
            let own_count = gpu_injections::count_requests(fault).len().min(gpu_calls.len());
            let (counted, others) = gpu_calls.split_at(own_count);
            gpu_calls = others;
            FaultVariants::of(fault, place, GpuVariants::of(fault, counted, self.seed))
        });
        let space = TrialSpace { variants: variants.collect() };
        let ChosenTrials { trials, planned } = space.choose(&self.selection, self.seed);
        let not_enumerated = counts.crash_states_not_enumerated;
        ExpandedPlan { trials, planned: TrialsPlanned { not_enumerated, ..planned } }
    }

    fn place_of<'a>(&self, number: u32, counts: &'a BaselineCounts) -> FaultPlace<'a> {
        let occurrences = counts.calls.get(&number).map_or(0, Vec::len) as u64;
        let occurrence = self.phase_occurrence.clamp(1, occurrences.max(1));
        FaultPlace { number, is_alone: self.faults.len() == 1, occurrence, counts }
    }

    /// Why there is no trial, if a fault waits for a call that the baseline run did not make, or finds nothing to
    /// choose from in what it left.
    pub fn why_no_trial(&self, counts: &BaselineCounts) -> Option<String> {
        let why = |request: CallCountRequest<'_>| {
            let fault = self.faults.get(request.number as usize - 1)?;
            fault_variants::unreached_call(fault, request.trigger, self.place_of(request.number, counts))
        };
        let unreached = self.call_counts().into_iter().find_map(why);
        let without_steps = |(fault, number): (&Fault, u32)| {
            fault_variants::without_steps(fault, self.place_of(number, counts))
        };
        let unreached = unreached.or_else(|| self.faults.iter().zip(1..).find_map(without_steps));
        let no_choice = |fault: &Fault| fault.effect.spec().why_no_choice(counts.measurements());
        unreached.or_else(|| self.faults.iter().find_map(no_choice))
    }
}

impl ExpandedPlan {
    /// How many trials a bound leaves out.
    pub fn left_out(&self) -> u64 {
        self.planned.possible() - u64::from(self.planned.total)
    }
}
