//! Turns a checked scenario and a seed into a plan: the workload of the target and the trials.
//!
//! Pure: no clock, no files, no environment. The same scenario and seed give the same plan. A fault with `at:
//! every` expands to one trial per matching call, so the plan first states what a baseline run must count,
//! and is expanded with these counts.

mod gpu_injections;

use std::collections::BTreeMap;
use std::time::Duration;

use scenarios::{
    CallTrigger, CrashStates, Effect, Errno, Fact, Fault, FileCallKind, KillPoint, Mount, Occurrence,
    Persistence, Replacement, Scenario, SentSignal, SubmittedFile, TargetGpu, Trigger, Until,
};

use crate::explore::CrashState;

pub use gpu_injections::{GpuCountRequest, GpuInjection, PlannedGpuFault};

/// Size of a memory page on x86-64 and the unit in which a tmpfs is filled, in bytes.
pub const PAGE_BYTES: u64 = 4096;

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
    /// For a fault that fills a disk: how many bytes stay free.
    pub leave_bytes: Option<u64>,
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

/// A crash state that a trial starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedCrashState {
    /// The crash state.
    pub state: CrashState,
    /// Which crash leaves it, one line.
    pub description: String,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum CallInjection {
    /// Every process is killed before the call.
    KillBefore,
    /// Every process is killed after the first `bytes` bytes are written.
    KillInside { bytes: u64 },
    /// Every process is killed after the call.
    KillAfter,
    /// The call returns an error. `performed`: its effect happens all the same. `persistent`: so does every
    /// later call.
    Fail { errno: Errno, performed: bool, persistent: bool },
    /// The read or write moves at most this many bytes.
    Short { bytes: u32 },
    /// The call takes this long.
    Delay { duration: Duration },
    /// The file at the call's path is replaced before the call.
    Swap { by: Replacement },
    /// The call waits until the run has injected the fault.
    HoldUntilInjected,
}

/// A call that a baseline run counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedCall {
    /// Kind of call.
    pub operation: FileCallKind,
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
        self.expects_same_weights
            && !self.faults.iter().any(|fault| matches!(fault.effect, Effect::PoisonSample { .. }))
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

    /// The crash states that are tried, the maximum number of them, and the occurrence of their phase,
    /// 1-based.
    pub fn crash_states(&self) -> Option<(&CrashStates, u32, u64)> {
        self.faults.iter().find_map(|fault| match &fault.effect {
            Effect::CrashStates(selection) => Some((selection, fault.max_trials, self.phase_occurrence)),
            _ => None,
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
            left_out += gpu_faults.as_ref().map_or(0, |(_, left_out)| *left_out);
            let variants =
                planned_variants(fault, occurrence, counts, gpu_faults.map(|(gpu_faults, _)| gpu_faults));
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

/// The fault with each of its choices: injection point, signal, free bytes, GPU fault.
fn planned_variants(
    fault: &Fault,
    occurrence: u64,
    counts: &BaselineCounts,
    gpu: Option<Vec<PlannedGpuFault>>,
) -> Vec<PlannedFault> {
    if let Effect::Signal { signals } = &fault.effect
        && signals.len() > 1
    {
        let with_signal =
            |sent: &SentSignal| Fault { effect: Effect::Signal { signals: vec![*sent] }, ..fault.clone() };
        return signals
            .iter()
            .flat_map(|sent| planned_variants(&with_signal(sent), occurrence, counts, None))
            .collect();
    }
    let points = match &fault.when {
        _ if matches!(fault.effect, Effect::CrashStates(_)) => {
            counts.crash_states.iter().map(|state| InjectionPoint::CrashState(state.clone())).collect()
        }
        Trigger::Call(trigger) => call_injection_points(fault, trigger, occurrence, counts),
        _ => vec![InjectionPoint::Trigger],
    };
    let sizes: Vec<Option<u64>> = match &fault.effect {
        Effect::FillDisk { leave: None, .. } => {
            (0..counts.save_bytes.div_ceil(PAGE_BYTES)).map(|page| Some(page * PAGE_BYTES)).collect()
        }
        Effect::FillDisk { leave: Some(leave), .. } => vec![Some(leave.0)],
        _ => vec![None],
    };
    let gpu_faults: Vec<Option<PlannedGpuFault>> =
        gpu.map_or_else(|| vec![None], |gpu_faults| gpu_faults.into_iter().map(Some).collect());
    let planned = |point: &InjectionPoint, leave_bytes: Option<u64>, gpu: &Option<PlannedGpuFault>| {
        PlannedFault { fault: with_end(fault), injection_point: point.clone(), leave_bytes, gpu: gpu.clone() }
    };
    let mut all = Vec::new();
    for point in &points {
        for leave in &sizes {
            all.extend(gpu_faults.iter().map(|gpu_fault| planned(point, *leave, gpu_fault)));
        }
    }
    all
}

/// The fault as it is injected: SIGSTOP is reverted, by SIGCONT, after its time.
fn with_end(fault: &Fault) -> Fault {
    let mut fault = fault.clone();
    if let Effect::Signal { signals } = &fault.effect
        && let Some(time) = signals.first().and_then(SentSignal::stop_time)
    {
        fault.until = Until::After(time);
    }
    fault
}

fn describe_signal(sent: &SentSignal) -> String {
    match (sent.stop_time(), sent.exit_time()) {
        (Some(time), _) => format!("{sent}, SIGCONT after {time:?},"),
        (_, Some(time)) => format!("{sent}, {time:?} to exit,"),
        _ => sent.to_string(),
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
    let (selected, is_every) = match trigger.occurrence {
        Occurrence::Every => (1..=calls.len() as u64, true),
        Occurrence::Nth(nth) => (u64::from(nth)..=u64::from(nth), false),
    };
    selected
        .flat_map(|nth| {
            let (call, is_last) = (calls.get(nth as usize - 1), nth == calls.len() as u64);
            let point =
                move |injection| InjectionPoint::Call { occurrence, nth, call: call.cloned(), injection };
            call_injections(fault, call, is_every, is_last).into_iter().map(point)
        })
        .collect()
}

/// The injections that are tried at one call.
fn call_injections(
    fault: &Fault,
    call: Option<&CountedCall>,
    is_every: bool,
    is_last: bool,
) -> Vec<CallInjection> {
    let write = call.filter(|call| call.operation == FileCallKind::Write && call.bytes > 1);
    let kill_inside = write.map(|call| CallInjection::KillInside { bytes: call.bytes / 2 });
    let fail =
        |errno: &Errno, performed, persistent| CallInjection::Fail { errno: *errno, performed, persistent };
    match &fault.effect {
        Effect::Crash { point: None } if is_every => {
            let kill_after = is_last.then_some(CallInjection::KillAfter);
            [Some(CallInjection::KillBefore), kill_inside, kill_after].into_iter().flatten().collect()
        }
        Effect::Crash { point: None | Some(KillPoint::Before) } => vec![CallInjection::KillBefore],
        Effect::Crash { point: Some(KillPoint::Inside) } => kill_inside.into_iter().collect(),
        Effect::Crash { point: Some(KillPoint::After) } => vec![CallInjection::KillAfter],
        Effect::FailCall { errnos, performed } => {
            let persistent = fault.persistence == Persistence::Persistent;
            errnos.iter().map(|errno| fail(errno, *performed, persistent)).collect()
        }
        Effect::SweepErrno => call
            .map(|call| call.operation.plausible_errnos())
            .unwrap_or_default()
            .iter()
            .flat_map(|errno| [fail(errno, false, false), fail(errno, false, true)])
            .collect(),
        Effect::ShortCall { bytes } => vec![CallInjection::Short { bytes: *bytes }],
        Effect::DelayCall { delay } => vec![CallInjection::Delay { duration: *delay }],
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
    /// What happens, as a part of a sentence about the call.
    pub fn describe(&self) -> String {
        match self {
            CallInjection::KillBefore => "killed before".into(),
            CallInjection::KillInside { bytes } => format!("killed after {bytes} bytes of"),
            CallInjection::KillAfter => "killed after".into(),
            CallInjection::Fail { errno, performed, persistent } => {
                let performed = if *performed { " although it was performed" } else { "" };
                let repeated = if *persistent { ", as does every later call" } else { "" };
                format!("fails with {errno}{performed}{repeated}")
            }
            CallInjection::Short { bytes } => format!("moves only {bytes} bytes"),
            CallInjection::Delay { duration: delay } => format!("takes {delay:?}"),
            CallInjection::Swap { by: Replacement::Nothing } => "the file was removed".into(),
            CallInjection::Swap { by: Replacement::EmptyFile } => {
                "the file was replaced by an empty file".into()
            }
            CallInjection::Swap { by: Replacement::DanglingLink } => {
                "the file was replaced by a dangling link".into()
            }
            CallInjection::HoldUntilInjected => "the fault is injected".into(),
        }
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
        let name = match &self.fault.effect {
            Effect::Crash { .. } => "crash",
            Effect::Signal { .. } => "signal",
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
        name.to_owned()
    }

    /// How the fault ends the target, if it does. The run itself injects such a fault.
    pub fn termination_mechanism(&self) -> Option<String> {
        match &self.fault.effect {
            Effect::Crash { .. } => Some("SIGKILL to every process in the pid namespace".into()),
            Effect::Signal { signals } => {
                signals.first().filter(|sent| sent.exit_time().is_some()).map(SentSignal::to_string)
            }
            _ => None,
        }
    }

    /// What is injected and when, one line.
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
            InjectionPoint::Call { injection, .. } => {
                let point = self.describe_injection_point();
                format!("{}: {}", point.trim_start_matches("at "), injection.describe())
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

    fn describe_effect(&self) -> String {
        match &self.fault.effect {
            Effect::Crash { .. } => "SIGKILL of every process".into(),
            Effect::Signal { signals } => signals.first().map(describe_signal).unwrap_or_default(),
            Effect::FillDisk { place, .. } => {
                format!("`{place}` left with {} free bytes", self.leave_bytes.unwrap_or(0))
            }
            Effect::ExhaustInodes { place } => format!("no free inode in `{place}`"),
            Effect::ReadOnly { place } => format!("`{place}` read-only"),
            Effect::MemoryLimit { .. } => "memory limit below the need".into(),
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
            | Effect::GpuFragment { .. } => self
                .gpu
                .as_ref()
                .map(|gpu_fault| format!("{}, counted", gpu_fault.describe()))
                .unwrap_or_default(),
        }
    }

    fn describe_injection_point(&self) -> String {
        match (&self.injection_point, &self.fault.when) {
            (InjectionPoint::Call { occurrence, nth, call, injection }, Trigger::Call(trigger)) => {
                let name = call.as_ref().map(|call| format!("{call}, ")).unwrap_or_default();
                let preposition = match injection {
                    CallInjection::KillBefore
                    | CallInjection::KillInside { .. }
                    | CallInjection::KillAfter => injection.describe(),
                    _ => "at".into(),
                };
                match (occurrence, &trigger.phase) {
                    (Some(occurrence), Some(phase)) => {
                        format!("{preposition} {name}call {nth} of {phase} {occurrence}")
                    }
                    _ => format!("{preposition} {name}call {nth}"),
                }
            }
            (_, Trigger::Start) => "from the start".into(),
            (_, Trigger::Step(step)) => format!("from step {step} on"),
            (_, Trigger::Output(pattern)) => format!("once it prints `{pattern}`"),
            (_, Trigger::After(time)) => format!("after {time:?}"),
            (_, Trigger::Call(_)) => "at a call".into(),
        }
    }
}
