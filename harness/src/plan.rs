//! Turns a checked scenario into the plan that the run obeys.
//!
//! Pure: no clock, no files, no environment. The same scenario and seed give the same plan; where the method strikes
//! at every one of many like moments, the plan says how they are counted, and unfolds once the steady state has counted them.

mod gpu;

use std::collections::BTreeMap;
use std::time::Duration;

use scenarios::{
    Aim, CallTrigger, CrashStates, Effect, Errno, Fact, Fault, Gpu, Mount, Operation, Point, Scenario,
    Strike, SubmittedFile, Swapped, Trigger,
};

use crate::explore::State;

pub use gpu::{GpuCounter, GpuStrike, GpuWay};

/// Bytes in a page: the smallest amount by which a tmpfs fills.
pub const PAGE: u64 = 4096;

/// What will be done.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    workload: Workload,
    faults: Vec<Fault>,
    /// Which turn of a phase is struck, 1-based.
    turn: u64,
    /// The scenario expects the undisturbed run's weights to the last bit.
    same_weights: bool,
}

/// What the target is given to do, the same in the steady state and in every trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub seed: u64,
    pub settings: BTreeMap<String, String>,
    pub submit: Vec<SubmittedFile>,
    pub mounts: Vec<Mount>,
    pub gpu: Option<Gpu>,
}

/// One way of striking.
#[derive(Debug, Clone)]
pub struct Trial {
    /// 1-based.
    pub number: u32,
    pub what: String,
    pub faults: Vec<Planned>,
}

/// A fault with nothing left open.
#[derive(Debug, Clone)]
pub struct Planned {
    pub fault: Fault,
    pub moment: Moment,
    /// For a fault that fills a disk: how many bytes it leaves.
    pub leave_bytes: Option<u64>,
    /// For a fault that is made of a call of the GPU's driver; `moment` is then when it is armed.
    pub gpu: Option<GpuStrike>,
}

/// When, exactly.
#[derive(Debug, Clone)]
pub enum Moment {
    /// As the fault's trigger says.
    Trigger,
    /// At the `nth` call (1-based) that the trigger speaks of, in that turn (1-based) of its phase or in the whole run.
    /// `call`: what it was in the steady state, if it was counted there.
    Call { turn: Option<u64>, nth: u64, call: Option<SeenCall>, way: Way },
    /// Before the target is resumed, on these files.
    State(CrashState),
}

/// Files as a crash leaves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashState {
    pub state: State,
    /// Which crash, in a few words.
    pub words: String,
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Way {
    KillBefore,
    /// So many bytes are written first.
    KillInside {
        bytes: u64,
    },
    KillAfter,
    Fail {
        errno: Errno,
        performed: bool,
        from_then_on: bool,
    },
    Short {
        bytes: u32,
    },
    Delay {
        time: Duration,
    },
    Swap {
        by: Swapped,
    },
    /// The call waits until the fault has struck.
    Strike,
}

/// A call that the steady state counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenCall {
    pub operation: Operation,
    /// Below the root.
    pub path: String,
    pub bytes: u64,
}

/// Figures of the steady state that a plan unfolds over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls that the method's trigger speaks of, in order: of each turn of its phase, or of the whole run.
    pub calls: Vec<Vec<SeenCall>>,
    /// Bytes that one save takes.
    pub save_bytes: u64,
    /// Crash states of a recorded run, and how many like them a bound left out.
    pub states: Vec<CrashState>,
    pub states_left_out: u64,
    /// Calls of the GPU's driver, one figure for each of [`Plan::gpu_counters`].
    pub gpu_calls: Vec<u64>,
}

/// Trials of a plan, and how many like them were left out by `max-trials`.
#[derive(Debug, Clone)]
pub struct Unfolded {
    pub trials: Vec<Trial>,
    pub left_out: u64,
}

impl Plan {
    /// The plan for one scenario, with the settings of a guard that was taken away.
    pub fn new(scenario: &Scenario, seed: u64, without_guard: &BTreeMap<String, String>) -> Plan {
        let mut settings = scenario.settings().clone();
        settings.extend(without_guard.clone());
        let (submit, mounts) = (scenario.submit().to_vec(), scenario.mounts().to_vec());
        let workload = Workload { seed, settings, submit, mounts, gpu: scenario.gpu().cloned() };
        // Never the first: before a first save nothing has been promised that could be lost.
        let turn = 2 + seed % 3;
        let near = |fact: &Fact| matches!(fact, Fact::FinalLoss { .. });
        let same_weights = !scenario.expect().iter().any(|one| near(&one.fact));
        Plan { seed, workload, faults: scenario.method().to_vec(), turn, same_weights }
    }

    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether the faults leave the workload and the device as they were, so that the end must be the steady state's.
    pub fn comparable(&self) -> bool {
        self.same_weights
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
    pub fn gpu_counters(&self) -> Vec<GpuCounter> {
        self.faults.iter().flat_map(gpu::counters).collect()
    }

    /// Which crash states of which run have to be found, and at most how many; the turn of their phase, 1-based.
    pub fn crash_states(&self) -> Option<(&CrashStates, u32, u64)> {
        self.faults.iter().find_map(|fault| match &fault.effect {
            Effect::CrashStates(wanted) => Some((wanted, fault.max_trials, self.turn)),
            _ => None,
        })
    }

    /// All trials, in order.
    pub fn unfold(&self, counts: &Counts) -> Unfolded {
        let turn = self.turn.clamp(1, (counts.calls.len() as u64).max(1));
        let mut ways: Vec<Vec<Planned>> = vec![Vec::new()];
        let mut left_out = counts.states_left_out;
        let mut gpu_calls = counts.gpu_calls.as_slice();
        for fault in &self.faults {
            let own = gpu::counters(fault).len().min(gpu_calls.len());
            let (counted, others) = gpu_calls.split_at(own);
            gpu_calls = others;
            let strikes = gpu::strikes(fault, counted, self.seed);
            left_out += strikes.as_ref().map_or(0, |(_, left_out)| *left_out);
            let all = variants(fault, turn, counts, strikes.map(|(strikes, _)| strikes));
            let (kept, missing) = thinned(all, fault.max_trials, self.seed);
            left_out += missing;
            ways = ways
                .iter()
                .flat_map(|way| kept.iter().map(|one| [way.as_slice(), std::slice::from_ref(one)].concat()))
                .collect();
        }
        let named = |(at, faults): (usize, Vec<Planned>)| Trial {
            number: u32::try_from(at + 1).unwrap_or(u32::MAX),
            what: faults.iter().map(Planned::words).collect::<Vec<_>>().join("; then "),
            faults,
        };
        Unfolded { trials: ways.into_iter().enumerate().map(named).collect(), left_out }
    }
}

fn variants(fault: &Fault, turn: u64, counts: &Counts, gpu: Option<Vec<GpuStrike>>) -> Vec<Planned> {
    let moments = match &fault.when {
        _ if matches!(fault.effect, Effect::CrashStates(_)) => {
            counts.states.iter().map(|one| Moment::State(one.clone())).collect()
        }
        Trigger::Call(trigger) => at_calls(fault, trigger, turn, counts),
        _ => vec![Moment::Trigger],
    };
    let leaves: Vec<Option<u64>> = match &fault.effect {
        Effect::FillDisk { leave: None, .. } => {
            (0..counts.save_bytes.div_ceil(PAGE)).map(|page| Some(page * PAGE)).collect()
        }
        Effect::FillDisk { leave: Some(leave), .. } => vec![Some(leave.0)],
        _ => vec![None],
    };
    let strikes: Vec<Option<GpuStrike>> =
        gpu.map_or_else(|| vec![None], |strikes| strikes.into_iter().map(Some).collect());
    let planned = |moment: &Moment, leave_bytes: Option<u64>, gpu: &Option<GpuStrike>| Planned {
        fault: fault.clone(),
        moment: moment.clone(),
        leave_bytes,
        gpu: gpu.clone(),
    };
    let mut all = Vec::new();
    for moment in &moments {
        for leave in &leaves {
            all.extend(strikes.iter().map(|strike| planned(moment, *leave, strike)));
        }
    }
    all
}

fn at_calls(fault: &Fault, trigger: &CallTrigger, turn: u64, counts: &Counts) -> Vec<Moment> {
    let turn = trigger.during.as_ref().map(|_| turn);
    let calls = counts.calls.get(turn.unwrap_or(1) as usize - 1).map_or(&[][..], Vec::as_slice);
    let (aimed, every) = match trigger.at {
        Aim::Every => (1..=calls.len() as u64, true),
        Aim::Nth(nth) => (u64::from(nth)..=u64::from(nth), false),
    };
    aimed
        .flat_map(|nth| {
            let (call, last) = (calls.get(nth as usize - 1), nth == calls.len() as u64);
            let way = move |way| Moment::Call { turn, nth, call: call.cloned(), way };
            ways(fault, call, every, last).into_iter().map(way)
        })
        .collect()
}

/// What may happen to one call.
fn ways(fault: &Fault, call: Option<&SeenCall>, every: bool, last: bool) -> Vec<Way> {
    let writes = call.filter(|call| call.operation == Operation::Write && call.bytes > 1);
    let inside = writes.map(|call| Way::KillInside { bytes: call.bytes / 2 });
    let fail = |errno: &Errno, performed, from_then_on| Way::Fail { errno: *errno, performed, from_then_on };
    match &fault.effect {
        Effect::Crash { point: None } if every => {
            let after = last.then_some(Way::KillAfter);
            [Some(Way::KillBefore), inside, after].into_iter().flatten().collect()
        }
        Effect::Crash { point: None | Some(Point::Before) } => vec![Way::KillBefore],
        Effect::Crash { point: Some(Point::Inside) } => inside.into_iter().collect(),
        Effect::Crash { point: Some(Point::After) } => vec![Way::KillAfter],
        Effect::FailCall { errnos, performed } => {
            let from_then_on = fault.strike == Strike::FromThenOn;
            errnos.iter().map(|errno| fail(errno, *performed, from_then_on)).collect()
        }
        Effect::SweepErrno => call
            .map(|call| call.operation.plausible())
            .unwrap_or_default()
            .iter()
            .flat_map(|errno| [fail(errno, false, false), fail(errno, false, true)])
            .collect(),
        Effect::ShortCall { bytes } => vec![Way::Short { bytes: *bytes }],
        Effect::DelayCall { time } => vec![Way::Delay { time: *time }],
        Effect::SwapFile { by } => vec![Way::Swap { by: *by }],
        _ => vec![Way::Strike],
    }
}

impl std::fmt::Display for SeenCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        write!(f, "{}({name})", self.operation.name())
    }
}

impl Way {
    pub fn words(&self) -> String {
        match self {
            Way::KillBefore => "killed before".into(),
            Way::KillInside { bytes } => format!("killed after {bytes} bytes of"),
            Way::KillAfter => "killed after".into(),
            Way::Fail { errno, performed, from_then_on } => {
                let performed = if *performed { " although it was done" } else { "" };
                let again = if *from_then_on { ", as does each later one" } else { "" };
                format!("fails with {errno}{performed}{again}")
            }
            Way::Short { bytes } => format!("moves only {bytes} bytes"),
            Way::Delay { time } => format!("takes {time:?}"),
            Way::Swap { by: Swapped::Nothing } => "the file was removed".into(),
            Way::Swap { by: Swapped::EmptyFile } => "the file was replaced by an empty one".into(),
            Way::Swap { by: Swapped::DanglingLink } => "the file was replaced by a dangling link".into(),
            Way::Strike => "strikes".into(),
        }
    }
}

/// At most `max`, evenly spread, the first and the last always among them; the seed shifts those between.
fn thinned<T>(all: Vec<T>, max: u32, seed: u64) -> (Vec<T>, u64) {
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

impl Planned {
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
    pub fn ends_target(&self) -> Option<&'static str> {
        match self.fault.effect {
            Effect::Crash { .. } => Some("SIGKILL to every process in the pid namespace"),
            Effect::Terminate { .. } => Some("SIGTERM to the main process"),
            _ => None,
        }
    }

    /// What is done and when, in a few words.
    fn words(&self) -> String {
        match &self.moment {
            Moment::State(state) => state.words.clone(),
            Moment::Call { way: Way::Strike, .. } | Moment::Trigger => {
                format!("{} {}", self.effect_words(), self.moment_words())
            }
            Moment::Call { way: Way::KillBefore | Way::KillInside { .. } | Way::KillAfter, .. } => {
                self.moment_words()
            }
            Moment::Call { way, .. } => {
                format!("{}: {}", self.moment_words().trim_start_matches("at "), way.words())
            }
        }
    }

    /// The trigger, where it speaks of a call.
    pub fn call(&self) -> Option<&CallTrigger> {
        match &self.fault.when {
            Trigger::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Whether it goes on at later calls.
    pub fn goes_on(&self) -> bool {
        match &self.moment {
            Moment::Call { way: Way::Fail { from_then_on, .. }, .. } => *from_then_on,
            _ => self.fault.strike == Strike::FromThenOn,
        }
    }

    fn effect_words(&self) -> String {
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
            Effect::GpuState(state) => gpu::state_words(state),
            Effect::GpuError { .. }
            | Effect::GpuHang { .. }
            | Effect::GpuOverwrite { .. }
            | Effect::GpuFlipBit { .. }
            | Effect::GpuFragment { .. } => {
                self.gpu.as_ref().map(|strike| format!("{}, counted", strike.words())).unwrap_or_default()
            }
        }
    }

    fn moment_words(&self) -> String {
        match (&self.moment, &self.fault.when) {
            (Moment::Call { turn, nth, call, way }, Trigger::Call(trigger)) => {
                let name = call.as_ref().map(|call| format!("{call}, ")).unwrap_or_default();
                let at = match way {
                    Way::KillBefore | Way::KillInside { .. } | Way::KillAfter => way.words(),
                    _ => "at".into(),
                };
                match (turn, &trigger.during) {
                    (Some(turn), Some(phase)) => format!("{at} {name}call {nth} of {phase} {turn}"),
                    _ => format!("{at} {name}call {nth}"),
                }
            }
            (_, Trigger::Start) => "from the start".into(),
            (_, Trigger::Step(step)) => format!("from step {step} on"),
            (_, Trigger::Said(pattern)) => format!("once it says `{pattern}`"),
            (_, Trigger::After(time)) => format!("after {time:?}"),
            (_, Trigger::Call(_)) => "at a call".into(),
        }
    }
}
