//! Turns a checked scenario and a seed into a plan: the workload of the target and the trials.
//!
//! Pure: no clock, no files, no environment. The same scenario and seed give the same plan. A fault with `at:
//! every` expands to one trial per matching call, so the plan first states what a baseline run must count,
//! and is expanded with these counts.

mod fault_variants;
mod gpu_injections;
mod trial_selection;
mod trial_space;

use std::collections::BTreeMap;

use scenarios::{
    CallKind, CallTrigger, CrashStates, Fact, Fault, Mount, Persistence, Scenario, SubmittedFile, TargetGpu,
    TrialsPlanned, Trigger,
};

use fault_variants::{FaultPlace, FaultVariants};
use gpu_injections::GpuVariants;
use trial_space::{ChosenTrials, TrialSpace};

pub use gpu_injections::{GpuCountRequest, PlannedGpuFault};
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

/// One run of the target with one set of faults.
#[derive(Debug, Clone)]
pub struct Trial {
    /// 1-based. The same whatever bound is set: its place among all trials of the plan.
    pub number: u32,
    /// What is injected and when, one line.
    pub description: String,
    /// The faults of this trial.
    pub faults: Vec<PlannedFault>,
}

/// A fault with every choice made.
#[derive(Debug, Clone)]
pub struct PlannedFault {
    /// The fault as the scenario states it.
    pub fault: Fault,
    /// When it is injected.
    pub injection_point: InjectionPoint,
    /// For a fault that is injected at a GPU driver call. Calls are counted from `injection_point` on.
    pub gpu: Option<PlannedGpuFault>,
}

/// When exactly a fault is injected.
#[derive(Debug, Clone)]
pub enum InjectionPoint {
    /// When the fault's trigger is due.
    Trigger,
    /// At the `nth` call (1-based) that matches the trigger, in the given occurrence (1-based) of its phase
    /// or in the whole run. `call` is the same call in the baseline run, if it was counted there.
    Call { occurrence: Option<u64>, nth: u64, call: Option<CountedCall>, injection: CallInjection },
    /// Before the target is resumed, on these files.
    CrashState(PlannedCrashState),
}

/// Names a crash state of a recorded run: its index in the order in which the run's states were found. A plan
/// does not know the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashStateId(pub usize);

/// A crash state that a trial starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedCrashState {
    /// Which one it is.
    pub id: CrashStateId,
    /// Which crash leaves it, one line.
    pub description: String,
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

/// A call that a baseline run counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedCall {
    /// Kind of call.
    pub operation: CallKind,
    /// Path relative to the target's root.
    pub path: String,
    /// Requested bytes of a read or write, otherwise 0.
    pub bytes: u64,
}

/// Counts of a baseline run, with which a plan is expanded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaselineCounts {
    /// Calls that match the method's trigger, in order: one list for each occurrence of its phase, or one for
    /// the whole run.
    pub calls: Vec<Vec<CountedCall>>,
    /// Disk usage of one save, in bytes.
    pub save_bytes: u64,
    /// Crash states of a recorded run.
    pub crash_states: Vec<PlannedCrashState>,
    /// How many more crash states there are, beyond the bound.
    pub crash_states_left_out: u64,
    /// How many candidates for crash states fixed bounds left out, so that their states are not known.
    pub crash_states_not_enumerated: u64,
    /// Numbers of GPU driver calls, one for each of [`TrialPlan::gpu_count_requests`].
    pub gpu_calls: Vec<u64>,
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
        self.expects_same_weights && !self.faults.iter().any(|fault| fault.effect.spec().changes_workload())
    }

    /// The calls that the baseline run must count: those of the first call trigger.
    pub fn counted_calls(&self) -> Option<&CallTrigger> {
        self.faults.iter().find_map(|fault| match &fault.when {
            Trigger::Call(call) => Some(call),
            _ => None,
        })
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
        let occurrence = self.phase_occurrence.clamp(1, (counts.calls.len() as u64).max(1));
        let place = FaultPlace { occurrence, counts };
        let mut gpu_calls = counts.gpu_calls.as_slice();
        let variants = self.faults.iter().map(|fault| {
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
}

impl ExpandedPlan {
    /// How many trials a bound leaves out.
    pub fn left_out(&self) -> u64 {
        self.planned.possible() - u64::from(self.planned.total)
    }
}

impl std::fmt::Display for CountedCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        write!(f, "{}({name})", self.operation.name())
    }
}

impl PlannedFault {
    /// The fault's key in a scenario file.
    pub fn name(&self) -> String {
        self.fault.effect.name().to_owned()
    }

    /// What is injected and when, one line.
    fn describe(&self) -> String {
        match &self.injection_point {
            InjectionPoint::CrashState(state) => state.description.clone(),
            InjectionPoint::Call { injection: CallInjection::HoldUntilInjected, .. }
            | InjectionPoint::Trigger => {
                format!("{} {}", self.describe_effect(), self.describe_injection_point())
            }
            InjectionPoint::Call { injection, .. } if injection.is_kill() => self.describe_injection_point(),
            InjectionPoint::Call { injection, .. } => {
                format!("{}: {}", self.describe_call(), injection.describe())
            }
        }
    }

    /// The call trigger, if it has one.
    pub fn call_trigger(&self) -> Option<&CallTrigger> {
        match &self.fault.when {
            Trigger::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Whether it is injected at every later call too.
    pub fn is_persistent(&self) -> bool {
        match &self.injection_point {
            InjectionPoint::Call { injection: CallInjection::Fail { persistent, .. }, .. } => *persistent,
            _ => self.fault.persistence == Persistence::Persistent,
        }
    }

    /// Whether every later call is altered too, until the target fails.
    pub fn alters_every_later_call(&self) -> bool {
        matches!(
            &self.injection_point,
            InjectionPoint::Call { injection: CallInjection::Fail { persistent: true, .. }, .. }
        )
    }

    fn describe_effect(&self) -> String {
        match &self.gpu {
            Some(gpu_fault) => format!("{}, counted", gpu_fault.describe()),
            None => self.fault.effect.spec().describe(),
        }
    }

    /// The call at which it is injected, such as `write(weights), call 3 of save 2`.
    fn describe_call(&self) -> String {
        let InjectionPoint::Call { occurrence, nth, call, .. } = &self.injection_point else {
            return String::new();
        };
        let name = call.as_ref().map(|call| format!("{call}, ")).unwrap_or_default();
        let phase = self.call_trigger().and_then(|trigger| trigger.phase.as_ref());
        match (occurrence, phase) {
            (Some(occurrence), Some(phase)) => format!("{name}call {nth} of {phase} {occurrence}"),
            _ => format!("{name}call {nth}"),
        }
    }

    fn describe_injection_point(&self) -> String {
        match (&self.injection_point, &self.fault.when) {
            (InjectionPoint::Call { injection, .. }, _) => {
                let preposition = if injection.is_kill() { injection.describe() } else { "at".into() };
                format!("{preposition} {}", self.describe_call())
            }
            (_, Trigger::Start) => "from the start".into(),
            (_, Trigger::Step(step)) => format!("from step {step} on"),
            (_, Trigger::Output(pattern)) => format!("once it prints `{pattern}`"),
            (_, Trigger::After(time)) => format!("after {time:?}"),
            (_, Trigger::Call(_)) => "at a call".into(),
        }
    }
}
