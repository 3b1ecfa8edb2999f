//! Turns a checked scenario into the plan that the run obeys.
//!
//! Pure: no clock, no files, no environment. The same scenario and seed give the same plan; where the method strikes
//! at every one of many like moments, the plan says how they are counted, and unfolds once the steady state has counted them.

use std::collections::BTreeMap;

use scenarios::{Aim, Effect, Fault, Mount, Scenario, SubmittedFile, Trigger};

/// Bytes in a page: the smallest amount by which a tmpfs fills.
pub const PAGE: u64 = 4096;

/// What will be done.
#[derive(Debug, Clone)]
pub struct Plan {
    seed: u64,
    workload: Workload,
    faults: Vec<Fault>,
    /// Which save of the steady state is struck, 1-based.
    save: u64,
}

/// What the target is given to do, the same in the steady state and in every trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub seed: u64,
    pub settings: BTreeMap<String, String>,
    pub submit: Vec<SubmittedFile>,
    pub mounts: Vec<Mount>,
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
}

/// When, exactly.
#[derive(Debug, Clone)]
pub enum Moment {
    /// As the fault's trigger says.
    Trigger,
    /// At the `event`-th file event (1-based) of the `save`-th save (1-based) of `phase`.
    FileEvent { phase: String, save: u64, event: u64 },
}

/// Figures of the steady state that a plan unfolds over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// File events of each occurrence of the phase, in order.
    pub file_events: Vec<u64>,
    /// Bytes that one save takes.
    pub save_bytes: u64,
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
        let workload = Workload { seed, settings, submit, mounts };
        // Never the first save: before it nothing has been promised that could be lost.
        let save = 2 + seed % 3;
        Plan { seed, workload, faults: scenario.method().to_vec(), save }
    }

    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Whether the faults leave the workload as it was, so that the end must be the steady state's.
    pub fn comparable(&self) -> bool {
        !self.faults.iter().any(|fault| matches!(fault.effect, Effect::PoisonSample { .. }))
    }

    /// Phase whose file events the steady state has to count.
    pub fn counted_phase(&self) -> Option<&str> {
        self.faults.iter().find_map(|fault| match &fault.when {
            Trigger::FileEvent { during, .. } => Some(during.as_str()),
            _ => None,
        })
    }

    /// All trials, in order.
    pub fn unfold(&self, counts: &Counts) -> Unfolded {
        let save = self.struck_save(counts);
        let mut ways: Vec<Vec<Planned>> = vec![Vec::new()];
        let mut left_out = 0;
        for fault in &self.faults {
            let (kept, missing) = thinned(variants(fault, save, counts), fault.max_trials, self.seed);
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

    fn struck_save(&self, counts: &Counts) -> u64 {
        self.save.clamp(1, (counts.file_events.len() as u64).max(1))
    }
}

fn variants(fault: &Fault, save: u64, counts: &Counts) -> Vec<Planned> {
    let planned = |moment, leave_bytes| Planned { fault: fault.clone(), moment, leave_bytes };
    if let Trigger::FileEvent { during, at } = &fault.when {
        let events = match at {
            Aim::Every => 1..=counts.file_events.get(save as usize - 1).copied().unwrap_or(0),
            Aim::Nth(nth) => u64::from(*nth)..=u64::from(*nth),
        };
        let moment = |event| Moment::FileEvent { phase: during.clone(), save, event };
        return events.map(|event| planned(moment(event), None)).collect();
    }
    match &fault.effect {
        Effect::FillDisk { leave: None, .. } => (0..counts.save_bytes.div_ceil(PAGE))
            .map(|page| planned(Moment::Trigger, Some(page * PAGE)))
            .collect(),
        Effect::FillDisk { leave: Some(leave), .. } => vec![planned(Moment::Trigger, Some(leave.0))],
        _ => vec![planned(Moment::Trigger, None)],
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
            Effect::Crash => "crash",
            Effect::Terminate { .. } => "terminate",
            Effect::FillDisk { .. } => "fill-disk",
            Effect::ExhaustInodes { .. } => "exhaust-inodes",
            Effect::ReadOnly { .. } => "read-only",
            Effect::MemoryLimit { .. } => "memory-limit",
            Effect::Plant { .. } => "plant",
            Effect::Vanish { .. } => "vanish",
            Effect::PoisonSample { .. } => "poison-sample",
        };
        word.to_owned()
    }

    /// What ends the target in this way, where the fault is one that does; the run itself carries it out.
    pub fn ends_target(&self) -> Option<&'static str> {
        match self.fault.effect {
            Effect::Crash => Some("SIGKILL to every process in the pid namespace"),
            Effect::Terminate { .. } => Some("SIGTERM to the main process"),
            _ => None,
        }
    }

    /// What is done and when, in a few words.
    fn words(&self) -> String {
        format!("{} {}", self.effect_words(), self.moment_words())
    }

    fn effect_words(&self) -> String {
        match &self.fault.effect {
            Effect::Crash => "SIGKILL of the whole tree".into(),
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
        }
    }

    fn moment_words(&self) -> String {
        match (&self.moment, &self.fault.when) {
            (Moment::FileEvent { phase, save, event }, _) => {
                format!("at file event {event} of {phase} {save}")
            }
            (_, Trigger::Start) => "from the start".into(),
            (_, Trigger::Step(step)) => format!("from step {step} on"),
            (_, Trigger::Said(pattern)) => format!("once it says `{pattern}`"),
            (_, Trigger::After(time)) => format!("after {time:?}"),
            (_, Trigger::FileEvent { during, .. }) => format!("during {during}"),
        }
    }
}
