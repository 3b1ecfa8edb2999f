//! A trial with every choice made: its faults, and when exactly each is injected; and the counts of a baseline
//! run that the choices depend on. Knows not how they are chosen.

use std::collections::BTreeMap;
use std::fmt;

use scenarios::{CallInjection, CallKind, CallTrigger, Fault, FaultId, Measurements, Persistence, Trigger};

use super::gpu_injections::PlannedGpuFault;

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
    /// Its place in the method, 1-based.
    pub number: u32,
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
    /// For each fault that waits for a call, by its place in the method: the calls that match its trigger, in
    /// order, one list for each occurrence of its phase, or one for the whole run.
    pub calls: BTreeMap<u32, Vec<Vec<CountedCall>>>,
    /// The steps that the target announced, in order, each once.
    pub steps: Vec<u64>,
    /// Disk usage of one save, in bytes.
    pub save_bytes: u64,
    /// The files below the root at the end of the run, by their paths relative to it.
    pub files: Vec<String>,
    /// Crash states of a recorded run.
    pub crash_states: Vec<PlannedCrashState>,
    /// How many more crash states there are, beyond the bound.
    pub crash_states_left_out: u64,
    /// How many candidates for crash states fixed bounds left out, so that their states are not known.
    pub crash_states_not_enumerated: u64,
    /// Numbers of GPU driver calls, one for each of the plan's requests for counts of GPU calls.
    pub gpu_calls: Vec<u64>,
}

impl BaselineCounts {
    /// What the choices of faults depend on.
    pub(super) fn measurements(&self) -> Measurements<'_> {
        Measurements { save_bytes: self.save_bytes, files: &self.files }
    }
}

impl fmt::Display for CountedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        write!(f, "{}({name})", self.operation.name())
    }
}

impl PlannedFault {
    /// Which fault of the method it is.
    pub fn id(&self) -> FaultId {
        FaultId { number: self.number, key: self.fault.effect.name().to_owned() }
    }

    /// Whether it waits for a call that the baseline run made.
    pub fn waits_for_counted_call(&self) -> bool {
        matches!(&self.injection_point, InjectionPoint::Call { call: Some(_), .. })
    }

    /// What is injected and when, one line.
    pub(super) fn describe(&self) -> String {
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

    /// The trigger, if the fault waits for a step or another line.
    pub fn line_trigger(&self) -> Option<&Trigger> {
        Some(&self.fault.when).filter(|trigger| matches!(trigger, Trigger::Step(_) | Trigger::Output(_)))
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
    pub fn describe_call(&self) -> String {
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
            (_, Trigger::Restart) => "before it is started again".into(),
            (_, Trigger::Step(step)) => format!("from step {step} on"),
            (_, Trigger::EveryStep) => "from each step on".into(),
            (_, Trigger::Output(pattern)) => format!("once it prints `{pattern}`"),
            (_, Trigger::After(time)) => format!("after {time:?}"),
            (_, Trigger::Call(_)) => "at a call".into(),
        }
    }
}
