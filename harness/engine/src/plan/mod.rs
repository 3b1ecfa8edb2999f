//! Turns a checked scenario and a seed into a plan: the workload of the target and the trials.
//!
//! Pure: no clock, no files, no environment. The same scenario and seed give the same plan. A fault with `at:
//! every` expands to one trial per matching call, so the plan first states what a baseline run must count,
//! and is expanded with these counts.

mod gpu_injections;

use std::collections::BTreeMap;

use scenarios::{
    CallKind, CallSite, CallTrigger, CrashStates, Fact, Fault, Mount, Occurrence, Persistence, Scenario,
    SubmittedFile, TargetGpu, Trigger, Until,
};

pub use gpu_injections::{GpuCountRequest, PlannedGpuFault};
pub use scenarios::{CallInjection, GpuInjection, PAGE_BYTES};

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
    /// 1-based.
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
    /// Numbers of GPU driver calls, one for each of [`TrialPlan::gpu_count_requests`].
    pub gpu_calls: Vec<u64>,
}

/// The trials of a plan.
#[derive(Debug, Clone)]
pub struct ExpandedPlan {
    /// The trials, in order.
    pub trials: Vec<Trial>,
    /// How many more trials there are, beyond `max-trials`.
    pub left_out: u64,
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
            let (max_states, occurrence) = (fault.max_trials, self.phase_occurrence);
            Some(CrashStateRequest { selection, max_states, occurrence })
        })
    }

    /// Expands the plan into its trials.
    pub fn expand(&self, counts: &BaselineCounts) -> ExpandedPlan {
        let occurrence = self.phase_occurrence.clamp(1, (counts.calls.len() as u64).max(1));
        let mut combinations: Vec<Vec<PlannedFault>> = vec![Vec::new()];
        let mut left_out = counts.crash_states_left_out;
        let mut gpu_calls = counts.gpu_calls.as_slice();
        for fault in &self.faults {
            let own_count = gpu_injections::count_requests(fault).len().min(gpu_calls.len());
            let (counted, others) = gpu_calls.split_at(own_count);
            gpu_calls = others;
            let gpu_faults = gpu_injections::planned_gpu_faults(fault, counted, self.seed);
            left_out += gpu_faults.as_ref().map_or(0, |gpu| gpu.left_out);
            let variants = planned_variants(fault, occurrence, counts, gpu_faults.map(|gpu| gpu.faults));
            let (sampled, not_sampled) = sample_evenly(variants, fault.max_trials, self.seed);
            left_out += not_sampled;
            combinations = combinations
                .iter()
                .flat_map(|faults| {
                    sampled.iter().map(|variant| [faults.as_slice(), std::slice::from_ref(variant)].concat())
                })
                .collect();
        }
        let trial = |(index, faults): (usize, Vec<PlannedFault>)| Trial {
            number: u32::try_from(index + 1).unwrap_or(u32::MAX),
            description: faults.iter().map(PlannedFault::describe).collect::<Vec<_>>().join("; then "),
            faults,
        };
        ExpandedPlan { trials: combinations.into_iter().enumerate().map(trial).collect(), left_out }
    }
}

/// The fault with each choice made: the effect's own choices, the injection point, the GPU fault.
fn planned_variants(
    fault: &Fault,
    occurrence: u64,
    counts: &BaselineCounts,
    gpu: Option<Vec<PlannedGpuFault>>,
) -> Vec<PlannedFault> {
    let gpu_faults: Vec<Option<PlannedGpuFault>> =
        gpu.map_or_else(|| vec![None], |gpu_faults| gpu_faults.into_iter().map(Some).collect());
    let mut all = Vec::new();
    for effect in fault.effect.choices(counts.save_bytes) {
        // A fault that reverts itself does so after its own time.
        let until = effect.spec().reverts_after().map_or_else(|| fault.until.clone(), Until::After);
        let fault = Fault { effect, until, ..fault.clone() };
        for injection_point in injection_points(&fault, occurrence, counts) {
            all.extend(gpu_faults.iter().map(|gpu| PlannedFault {
                fault: fault.clone(),
                injection_point: injection_point.clone(),
                gpu: gpu.clone(),
            }));
        }
    }
    all
}

fn injection_points(fault: &Fault, occurrence: u64, counts: &BaselineCounts) -> Vec<InjectionPoint> {
    match &fault.when {
        _ if fault.effect.spec().crash_states().is_some() => {
            counts.crash_states.iter().map(|state| InjectionPoint::CrashState(state.clone())).collect()
        }
        Trigger::Call(trigger) => call_injection_points(fault, trigger, occurrence, counts),
        _ => vec![InjectionPoint::Trigger],
    }
}

fn call_injection_points(
    fault: &Fault,
    trigger: &CallTrigger,
    occurrence: u64,
    counts: &BaselineCounts,
) -> Vec<InjectionPoint> {
    let occurrence = trigger.phase.as_ref().map(|_| occurrence);
    let calls = counts.calls.get(occurrence.unwrap_or(1) as usize - 1).map_or(&[][..], Vec::as_slice);
    let (selected, is_one_of_every) = match trigger.occurrence {
        Occurrence::Every => (1..=calls.len() as u64, true),
        Occurrence::Nth(nth) => (u64::from(nth)..=u64::from(nth), false),
    };
    selected
        .flat_map(|nth| {
            let call = calls.get(nth as usize - 1);
            let site = CallSite {
                kind: call.map(|call| call.operation),
                len_bytes: call.map_or(0, |call| call.bytes),
                is_one_of_every,
                is_last: nth == calls.len() as u64,
                is_persistent: fault.persistence == Persistence::Persistent,
            };
            let point =
                move |injection| InjectionPoint::Call { occurrence, nth, call: call.cloned(), injection };
            fault.effect.spec().call_injections(&site).into_iter().map(point)
        })
        .collect()
}

impl std::fmt::Display for CountedCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        write!(f, "{}({name})", self.operation.name())
    }
}

/// At most `max` items, evenly spread, and the number that was left out. The first and the last are always
/// kept; the seed shifts those between.
fn sample_evenly<T>(all: Vec<T>, max: u32, seed: u64) -> (Vec<T>, u64) {
    let (count, max) = (all.len() as u64, u64::from(max.max(1)));
    if count <= max {
        return (all, 0);
    }
    let shift = seed % (count / max).max(1);
    let position = |nth: u64| match nth {
        0 => 0,
        nth if nth == max - 1 => count - 1,
        nth => (nth * (count - 1) / (max - 1).max(1) + shift).min(count - 2),
    };
    let chosen: std::collections::BTreeSet<u64> = (0..max).map(position).collect();
    let left_out = count - chosen.len() as u64;
    let sampled =
        all.into_iter().zip(0..).filter(|(_, index)| chosen.contains(index)).map(|(item, _)| item).collect();
    (sampled, left_out)
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
