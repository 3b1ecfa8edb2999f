//! Turns a checked scenario into the plan that the run obeys.
//!
//! Pure: no clock, no files, no environment. The same scenario and seed give the same plan; where the method strikes
//! at every one of many like moments, the plan says how they are counted, and unfolds once the steady state has counted them.

mod gpu_injections;

use std::collections::BTreeMap;
use std::time::Duration;

use scenarios::{
    CallTrigger, CrashStates, Effect, Errno, Fact, Fault, FileCallKind, KillPoint, Mount, Occurrence,
    Persistence, Replacement, Scenario, SubmittedFile, TargetGpu, Trigger,
};

use crate::explore::CrashState;

pub use gpu_injections::{GpuCountRequest, GpuInjection, PlannedGpuFault};

/// Bytes in a page: the smallest amount by which a tmpfs fills.
pub const PAGE_BYTES: u64 = 4096;

/// What will be done.
#[derive(Debug, Clone)]
pub struct TrialPlan {
    seed: u64,
    workload: Workload,
    faults: Vec<Fault>,
    /// Which turn of a phase is struck, 1-based.
    phase_occurrence: u64,
    /// The scenario expects the undisturbed run's weights to the last bit.
    expects_same_weights: bool,
}

/// What the target is given to do, the same in the steady state and in every trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub seed: u64,
    pub settings: BTreeMap<String, String>,
    pub submit: Vec<SubmittedFile>,
    pub mounts: Vec<Mount>,
    pub gpu: Option<TargetGpu>,
}

/// One way of striking.
#[derive(Debug, Clone)]
pub struct Trial {
    /// 1-based.
    pub number: u32,
    pub description: String,
    pub faults: Vec<PlannedFault>,
}

/// A fault with nothing left open.
#[derive(Debug, Clone)]
pub struct PlannedFault {
    pub fault: Fault,
    pub injection_point: InjectionPoint,
    /// For a fault that fills a disk: how many bytes it leaves.
    pub leave_bytes: Option<u64>,
    /// For a fault that is made of a call of the GPU's driver; `moment` is then when it is armed.
    pub gpu: Option<PlannedGpuFault>,
}

/// When, exactly.
#[derive(Debug, Clone)]
pub enum InjectionPoint {
    /// As the fault's trigger says.
    Trigger,
    /// At the `nth` call (1-based) that the trigger speaks of, in that turn (1-based) of its phase or in the whole run.
    /// `call`: what it was in the steady state, if it was counted there.
    Call { occurrence: Option<u64>, nth: u64, call: Option<CountedCall>, injection: CallInjection },
    /// Before the target is resumed, on these files.
    CrashState(PlannedCrashState),
}

/// Files as a crash leaves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedCrashState {
    pub state: CrashState,
    /// Which crash, in a few words.
    pub description: String,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallInjection {
    KillBefore,
    /// So many bytes are written first.
    KillInside {
        bytes: u64,
    },
    KillAfter,
    Fail {
        errno: Errno,
        performed: bool,
        persistent: bool,
    },
    Short {
        bytes: u32,
    },
    Delay {
        duration: Duration,
    },
    Swap {
        by: Replacement,
    },
    /// The call waits until the fault has struck.
    HoldUntilInjected,
}

/// A call that the steady state counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedCall {
    pub operation: FileCallKind,
    /// Below the root.
    pub path: String,
    pub bytes: u64,
}

/// Figures of the steady state that a plan unfolds over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BaselineCounts {
    /// Calls that the method's trigger speaks of, in order: of each turn of its phase, or of the whole run.
    pub calls: Vec<Vec<CountedCall>>,
    /// Bytes that one save takes.
    pub save_bytes: u64,
    /// Crash states of a recorded run, and how many like them a bound left out.
    pub crash_states: Vec<PlannedCrashState>,
    pub crash_states_left_out: u64,
    /// Calls of the GPU's driver, one figure for each of [`Plan::gpu_counters`].
    pub gpu_calls: Vec<u64>,
}

/// Trials of a plan, and how many like them were left out by `max-trials`.
#[derive(Debug, Clone)]
pub struct ExpandedPlan {
    pub trials: Vec<Trial>,
    pub left_out: u64,
}

impl TrialPlan {
    /// The plan for one scenario, with the settings of a guard that was taken away.
    pub fn new(scenario: &Scenario, seed: u64, without_guard: &BTreeMap<String, String>) -> TrialPlan {
        let mut settings = scenario.settings().clone();
        settings.extend(without_guard.clone());
        let (submit, mounts) = (scenario.submit().to_vec(), scenario.mounts().to_vec());
        let workload = Workload { seed, settings, submit, mounts, gpu: scenario.gpu().cloned() };
        // Never the first: before a first save nothing has been promised that could be lost.
        let phase_occurrence = 2 + seed % 3;
        let near = |fact: &Fact| matches!(fact, Fact::FinalLoss { .. });
        let expects_same_weights = !scenario.expect().iter().any(|one| near(&one.fact));
        TrialPlan {
            seed,
            workload,
            faults: scenario.method().to_vec(),
            phase_occurrence,
            expects_same_weights,
        }
    }

    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether the faults leave the workload and the device as they were, so that the end must be the steady state's.
    pub fn comparable(&self) -> bool {
        self.expects_same_weights
            && !self.faults.iter().any(|fault| matches!(fault.effect, Effect::PoisonSample { .. }))
    }

    /// The calls that the steady state has to count: those of the first trigger that speaks of calls.
    pub fn counted_calls(&self) -> Option<&CallTrigger> {
        self.faults.iter().find_map(|fault| match &fault.when {
            Trigger::Call(call) => Some(call),
            _ => None,
        })
    }

    /// Calls of the GPU's driver that the steady state has to count.
    pub fn gpu_count_requests(&self) -> Vec<GpuCountRequest> {
        self.faults.iter().flat_map(gpu_injections::count_requests).collect()
    }

    /// Which crash states of which run have to be found, and at most how many; the turn of their phase, 1-based.
    pub fn crash_states(&self) -> Option<(&CrashStates, u32, u64)> {
        self.faults.iter().find_map(|fault| match &fault.effect {
            Effect::CrashStates(wanted) => Some((wanted, fault.max_trials, self.phase_occurrence)),
            _ => None,
        })
    }

    /// All trials, in order.
    pub fn expand(&self, counts: &BaselineCounts) -> ExpandedPlan {
        let turn = self.phase_occurrence.clamp(1, (counts.calls.len() as u64).max(1));
        let mut ways: Vec<Vec<PlannedFault>> = vec![Vec::new()];
        let mut left_out = counts.crash_states_left_out;
        let mut gpu_calls = counts.gpu_calls.as_slice();
        for fault in &self.faults {
            let own = gpu_injections::count_requests(fault).len().min(gpu_calls.len());
            let (counted, others) = gpu_calls.split_at(own);
            gpu_calls = others;
            let strikes = gpu_injections::planned_gpu_faults(fault, counted, self.seed);
            left_out += strikes.as_ref().map_or(0, |(_, left_out)| *left_out);
            let all = planned_variants(fault, turn, counts, strikes.map(|(strikes, _)| strikes));
            let (kept, missing) = sample_evenly(all, fault.max_trials, self.seed);
            left_out += missing;
            ways = ways
                .iter()
                .flat_map(|way| kept.iter().map(|one| [way.as_slice(), std::slice::from_ref(one)].concat()))
                .collect();
        }
        let named = |(at, faults): (usize, Vec<PlannedFault>)| Trial {
            number: u32::try_from(at + 1).unwrap_or(u32::MAX),
            description: faults.iter().map(PlannedFault::describe).collect::<Vec<_>>().join("; then "),
            faults,
        };
        ExpandedPlan { trials: ways.into_iter().enumerate().map(named).collect(), left_out }
    }
}

fn planned_variants(
    fault: &Fault,
    turn: u64,
    counts: &BaselineCounts,
    gpu: Option<Vec<PlannedGpuFault>>,
) -> Vec<PlannedFault> {
    let moments = match &fault.when {
        _ if matches!(fault.effect, Effect::CrashStates(_)) => {
            counts.crash_states.iter().map(|one| InjectionPoint::CrashState(one.clone())).collect()
        }
        Trigger::Call(trigger) => call_injection_points(fault, trigger, turn, counts),
        _ => vec![InjectionPoint::Trigger],
    };
    let leaves: Vec<Option<u64>> = match &fault.effect {
        Effect::FillDisk { leave: None, .. } => {
            (0..counts.save_bytes.div_ceil(PAGE_BYTES)).map(|page| Some(page * PAGE_BYTES)).collect()
        }
        Effect::FillDisk { leave: Some(leave), .. } => vec![Some(leave.0)],
        _ => vec![None],
    };
    let strikes: Vec<Option<PlannedGpuFault>> =
        gpu.map_or_else(|| vec![None], |strikes| strikes.into_iter().map(Some).collect());
    let planned = |moment: &InjectionPoint, leave_bytes: Option<u64>, gpu: &Option<PlannedGpuFault>| {
        PlannedFault { fault: fault.clone(), injection_point: moment.clone(), leave_bytes, gpu: gpu.clone() }
    };
    let mut all = Vec::new();
    for moment in &moments {
        for leave in &leaves {
            all.extend(strikes.iter().map(|strike| planned(moment, *leave, strike)));
        }
    }
    all
}

fn call_injection_points(
    fault: &Fault,
    trigger: &CallTrigger,
    turn: u64,
    counts: &BaselineCounts,
) -> Vec<InjectionPoint> {
    let turn = trigger.phase.as_ref().map(|_| turn);
    let calls = counts.calls.get(turn.unwrap_or(1) as usize - 1).map_or(&[][..], Vec::as_slice);
    let (aimed, every) = match trigger.occurrence {
        Occurrence::Every => (1..=calls.len() as u64, true),
        Occurrence::Nth(nth) => (u64::from(nth)..=u64::from(nth), false),
    };
    aimed
        .flat_map(|nth| {
            let (call, last) = (calls.get(nth as usize - 1), nth == calls.len() as u64);
            let way = move |way| InjectionPoint::Call {
                occurrence: turn,
                nth,
                call: call.cloned(),
                injection: way,
            };
            call_injections(fault, call, every, last).into_iter().map(way)
        })
        .collect()
}

/// What may happen to one call.
fn call_injections(fault: &Fault, call: Option<&CountedCall>, every: bool, last: bool) -> Vec<CallInjection> {
    let writes = call.filter(|call| call.operation == FileCallKind::Write && call.bytes > 1);
    let inside = writes.map(|call| CallInjection::KillInside { bytes: call.bytes / 2 });
    let fail = |errno: &Errno, performed, from_then_on| CallInjection::Fail {
        errno: *errno,
        performed,
        persistent: from_then_on,
    };
    match &fault.effect {
        Effect::Crash { point: None } if every => {
            let after = last.then_some(CallInjection::KillAfter);
            [Some(CallInjection::KillBefore), inside, after].into_iter().flatten().collect()
        }
        Effect::Crash { point: None | Some(KillPoint::Before) } => vec![CallInjection::KillBefore],
        Effect::Crash { point: Some(KillPoint::Inside) } => inside.into_iter().collect(),
        Effect::Crash { point: Some(KillPoint::After) } => vec![CallInjection::KillAfter],
        Effect::FailCall { errnos, performed } => {
            let from_then_on = fault.persistence == Persistence::Persistent;
            errnos.iter().map(|errno| fail(errno, *performed, from_then_on)).collect()
        }
        Effect::SweepErrno => call
            .map(|call| call.operation.plausible_errnos())
            .unwrap_or_default()
            .iter()
            .flat_map(|errno| [fail(errno, false, false), fail(errno, false, true)])
            .collect(),
        Effect::ShortCall { bytes } => vec![CallInjection::Short { bytes: *bytes }],
        Effect::DelayCall { delay: time } => vec![CallInjection::Delay { duration: *time }],
        Effect::SwapFile { replacement: by } => vec![CallInjection::Swap { by: *by }],
        _ => vec![CallInjection::HoldUntilInjected],
    }
}

impl std::fmt::Display for CountedCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        write!(f, "{}({name})", self.operation.name())
    }
}

impl CallInjection {
    pub fn describe(&self) -> String {
        match self {
            CallInjection::KillBefore => "killed before".into(),
            CallInjection::KillInside { bytes } => format!("killed after {bytes} bytes of"),
            CallInjection::KillAfter => "killed after".into(),
            CallInjection::Fail { errno, performed, persistent: from_then_on } => {
                let performed = if *performed { " although it was done" } else { "" };
                let again = if *from_then_on { ", as does each later one" } else { "" };
                format!("fails with {errno}{performed}{again}")
            }
            CallInjection::Short { bytes } => format!("moves only {bytes} bytes"),
            CallInjection::Delay { duration: time } => format!("takes {time:?}"),
            CallInjection::Swap { by: Replacement::Nothing } => "the file was removed".into(),
            CallInjection::Swap { by: Replacement::EmptyFile } => {
                "the file was replaced by an empty one".into()
            }
            CallInjection::Swap { by: Replacement::DanglingLink } => {
                "the file was replaced by a dangling link".into()
            }
            CallInjection::HoldUntilInjected => "strikes".into(),
        }
    }
}

/// At most `max`, evenly spread, the first and the last always among them; the seed shifts those between.
fn sample_evenly<T>(all: Vec<T>, max: u32, seed: u64) -> (Vec<T>, u64) {
    let (count, max) = (all.len() as u64, u64::from(max.max(1)));
    if count <= max {
        return (all, 0);
    }
    let shift = seed % (count / max).max(1);
    let wanted = |nth: u64| match nth {
        0 => 0,
        nth if nth == max - 1 => count - 1,
        nth => (nth * (count - 1) / (max - 1).max(1) + shift).min(count - 2),
    };
    let chosen: std::collections::BTreeSet<u64> = (0..max).map(wanted).collect();
    let left_out = count - chosen.len() as u64;
    let kept = all.into_iter().zip(0..).filter(|(_, at)| chosen.contains(at)).map(|(one, _)| one).collect();
    (kept, left_out)
}

impl PlannedFault {
    /// The fault's word in a scenario file.
    pub fn name(&self) -> String {
        let word = match &self.fault.effect {
            Effect::Crash { .. } => "crash",
            Effect::Terminate { .. } => "terminate",
            Effect::FillDisk { .. } => "fill-disk",
            Effect::ExhaustInodes { .. } => "exhaust-inodes",
            Effect::ReadOnly { .. } => "read-only",
            Effect::MemoryLimit { .. } => "memory-limit",
            Effect::Plant { .. } => "plant",
            Effect::Vanish { .. } => "vanish",
            Effect::PoisonSample { .. } => "poison-sample",
            Effect::FailCall { .. } => "fail-call",
            Effect::ShortCall { .. } => "short-call",
            Effect::DelayCall { .. } => "delay-call",
            Effect::SwapFile { .. } => "swap-file",
            Effect::SweepErrno => "sweep-errno",
            Effect::CrashStates(_) => "crash-states",
            Effect::GpuError { .. } => "gpu-error",
            Effect::GpuHang { .. } => "gpu-hang",
            Effect::GpuOverwrite { .. } => "gpu-overwrite",
            Effect::GpuFlipBit { .. } => "gpu-flip-bit",
            Effect::GpuFragment { .. } => "gpu-fragment",
            Effect::GpuState(_) => "gpu-state",
        };
        word.to_owned()
    }

    /// What ends the target in this way, where the fault is one that does; the run itself carries it out.
    pub fn termination_mechanism(&self) -> Option<&'static str> {
        match self.fault.effect {
            Effect::Crash { .. } => Some("SIGKILL to every process in the pid namespace"),
            Effect::Terminate { .. } => Some("SIGTERM to the main process"),
            _ => None,
        }
    }

    /// What is done and when, in a few words.
    fn describe(&self) -> String {
        match &self.injection_point {
            InjectionPoint::CrashState(state) => state.description.clone(),
            InjectionPoint::Call { injection: CallInjection::HoldUntilInjected, .. }
            | InjectionPoint::Trigger => {
                format!("{} {}", self.describe_effect(), self.describe_injection_point())
            }
            InjectionPoint::Call {
                injection:
                    CallInjection::KillBefore | CallInjection::KillInside { .. } | CallInjection::KillAfter,
                ..
            } => self.describe_injection_point(),
            InjectionPoint::Call { injection: way, .. } => {
                format!("{}: {}", self.describe_injection_point().trim_start_matches("at "), way.describe())
            }
        }
    }

    /// The trigger, where it speaks of a call.
    pub fn call_trigger(&self) -> Option<&CallTrigger> {
        match &self.fault.when {
            Trigger::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Whether it goes on at later calls.
    pub fn is_persistent(&self) -> bool {
        match &self.injection_point {
            InjectionPoint::Call {
                injection: CallInjection::Fail { persistent: from_then_on, .. }, ..
            } => *from_then_on,
            _ => self.fault.persistence == Persistence::Persistent,
        }
    }

    fn describe_effect(&self) -> String {
        match &self.fault.effect {
            Effect::Crash { .. } => "SIGKILL of the whole tree".into(),
            Effect::Terminate { grace } => format!("SIGTERM, {grace:?} to end in,"),
            Effect::FillDisk { place, .. } => {
                format!("`{place}` left with {} free bytes", self.leave_bytes.unwrap_or(0))
            }
            Effect::ExhaustInodes { place } => format!("no free inode in `{place}`"),
            Effect::ReadOnly { place } => format!("`{place}` read-only"),
            Effect::MemoryLimit { .. } => "memory limit below what is needed".into(),
            Effect::Plant { place, files } => format!("{} hostile files into `{place}`", files.len()),
            Effect::Vanish { place, files, .. } => {
                format!("{files} files vanish from `{place}` between listing and opening")
            }
            Effect::PoisonSample { sample, weight } => format!("sample {sample} weighs {weight:e}"),
            Effect::FailCall { .. }
            | Effect::ShortCall { .. }
            | Effect::DelayCall { .. }
            | Effect::SwapFile { .. }
            | Effect::SweepErrno => "a call".into(),
            Effect::CrashStates(_) => "files as a crash leaves them".into(),
            Effect::GpuState(state) => gpu_injections::describe_gpu_state(state),
            Effect::GpuError { .. }
            | Effect::GpuHang { .. }
            | Effect::GpuOverwrite { .. }
            | Effect::GpuFlipBit { .. }
            | Effect::GpuFragment { .. } => {
                self.gpu.as_ref().map(|strike| format!("{}, counted", strike.describe())).unwrap_or_default()
            }
        }
    }

    fn describe_injection_point(&self) -> String {
        match (&self.injection_point, &self.fault.when) {
            (
                InjectionPoint::Call { occurrence: turn, nth, call, injection: way },
                Trigger::Call(trigger),
            ) => {
                let name = call.as_ref().map(|call| format!("{call}, ")).unwrap_or_default();
                let at = match way {
                    CallInjection::KillBefore
                    | CallInjection::KillInside { .. }
                    | CallInjection::KillAfter => way.describe(),
                    _ => "at".into(),
                };
                match (turn, &trigger.phase) {
                    (Some(turn), Some(phase)) => format!("{at} {name}call {nth} of {phase} {turn}"),
                    _ => format!("{at} {name}call {nth}"),
                }
            }
            (_, Trigger::Start) => "from the start".into(),
            (_, Trigger::Step(step)) => format!("from step {step} on"),
            (_, Trigger::Output(pattern)) => format!("once it says `{pattern}`"),
            (_, Trigger::After(time)) => format!("after {time:?}"),
            (_, Trigger::Call(_)) => "at a call".into(),
        }
    }
}
