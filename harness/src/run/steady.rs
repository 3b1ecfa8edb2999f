//! The steady state: the same target, workload and seed, undisturbed. Kept for the length of a run.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use scenarios::{CallTrigger, Ending, Entry, Event, Scenario, SteadyFacts};

use crate::observe::Reporter;
use crate::plan::{Counts, GpuCounter};
use crate::run::RunError;
use crate::run::live::Live;
use crate::run::sentry::Guardroom;
use crate::run::stage::{Script, Stage};
use crate::run::standing::Counters;

/// Bytes in a block of `st_blocks`.
const BLOCK: u64 = 512;

/// What an undisturbed run showed.
#[derive(Debug, Clone)]
pub(super) struct Steady {
    pub(super) facts: SteadyFacts,
    pub(super) counts: Counts,
    /// Its entries, replayed for each scenario that shares it.
    entries: Vec<Entry>,
}

/// What is counted in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted<'a> {
    pub(super) calls: Option<&'a CallTrigger>,
    pub(super) gpu: &'a [GpuCounter],
}

type Slot = Arc<OnceLock<Option<Steady>>>;

/// Steady states of this run, by what they depend on.
#[derive(Default)]
pub struct SteadyCache {
    slots: Mutex<HashMap<blake3::Hash, Slot>>,
}

impl SteadyCache {
    /// Takes it from the cache or runs it; a run that failed is not kept.
    pub(super) fn get(
        &self,
        dir: PathBuf,
        script: Script<'_>,
        scenario: &Scenario,
        counted: Counted<'_>,
        reporter: &Reporter,
    ) -> Result<Steady, RunError> {
        let slot = self.slot(&script, counted);
        let mut failure = None;
        let mut fresh = false;
        let steady = slot.get_or_init(|| {
            fresh = true;
            undisturbed(dir, script, scenario, counted, &reporter.for_trial(0))
                .map_err(|error| failure = Some(error))
                .ok()
        });
        match (steady, failure) {
            (Some(steady), _) => Ok(told(steady, fresh, reporter)),
            (None, Some(error)) => Err(error),
            (None, None) => Err(RunError::Preparation {
                step: "steady state",
                ending: "a failure that another scenario has reported".into(),
                words: String::new(),
            }),
        }
    }

    fn slot(&self, script: &Script<'_>, counted: Counted<'_>) -> Slot {
        let key = format!("{:?} {:?} {:?} {counted:?}", script.target, script.program, script.workload);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(blake3::hash(key.as_bytes())).or_default())
    }
}

/// A scenario that takes it from the cache tells it again, so that its part of the record is whole.
fn told(steady: &Steady, fresh: bool, reporter: &Reporter) -> Steady {
    let mut steady = steady.clone();
    steady.facts.cached = !fresh;
    if !fresh {
        let reporter = reporter.for_trial(0);
        steady.entries.iter().for_each(|entry| reporter.emit_at(entry.at_us, entry.event.clone()));
    }
    reporter.emit(Event::SteadyState(steady.facts.clone()));
    steady
}

fn undisturbed(
    dir: PathBuf,
    script: Script<'_>,
    scenario: &Scenario,
    counted: Counted<'_>,
    reporter: &Reporter,
) -> Result<Steady, RunError> {
    let stage = Stage::build(dir, script)?;
    let trainer = stage.trainer();
    let scene = stage.scene(&trainer, None);
    let calls = counted.calls;
    let said = calls.and_then(|calls| calls.during.as_deref());
    let phase = said.or_else(|| script.target.phases().keys().next().map(String::as_str));
    let place = phase
        .and_then(|phase| script.target.phases().get(phase))
        .map(|phase| trainer.place_below_root(phase.place()));
    let folder = place.map(|place| stage.room.outside(&place));
    let save_bytes = Arc::new(Mutex::new(0));
    let measured = Arc::clone(&save_bytes);
    let measure: Box<dyn FnMut() + Send> =
        Box::new(move || folder.iter().for_each(|folder| measure_once(&measured, folder)));
    let mut live = Live::new(scene, reporter, Some(scenario), &[]);
    live.counters = Counters::new(counted.gpu);
    if script.gate {
        // At the very moment: the target waits in the call by which it says that it has saved.
        let (base, striker) = (stage.room.root().into(), stage.room.striker());
        live.guardroom = Some(Guardroom::counting(script.target, base, striker, calls, phase, measure));
    } else if let Some(phase) = phase {
        live.at_end_of(phase, measure);
    }
    let ending = live.run()?;
    let calls = live.guardroom.as_ref().map(Guardroom::seen).unwrap_or_default();
    let peak_memory_bytes = live.peak_bytes();
    let gpu_calls = live.counters.counts();
    drop(live);
    stage.tell_findings(reporter)?;
    stage.room.close()?;
    let entries = reporter.kept();
    let save_bytes = *save_bytes.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = Counts { calls, save_bytes, gpu_calls, ..Counts::default() };
    let facts = facts(script, &entries, ending, peak_memory_bytes, &counts);
    Ok(Steady { facts, counts, entries })
}

/// What the first save takes on disk.
fn measure_once(save_bytes: &Mutex<u64>, folder: &Path) {
    let mut bytes = save_bytes.lock().unwrap_or_else(PoisonError::into_inner);
    if *bytes == 0 {
        *bytes = bytes_below(folder);
    }
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => bytes_below(&entry.path()),
        Ok(facts) => facts.blocks() * BLOCK,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

fn facts(
    script: Script<'_>,
    entries: &[Entry],
    ending: Ending,
    peak_memory_bytes: Option<u64>,
    counts: &Counts,
) -> SteadyFacts {
    let mut same: Vec<String> = entries.iter().filter_map(|entry| value_in(script, &entry.event)).collect();
    same.sort();
    same.dedup();
    let steps = entries
        .iter()
        .filter_map(|entry| if let Event::Step { step, .. } = entry.event { Some(step) } else { None });
    let saves = entries
        .iter()
        .filter_map(|entry| if let Event::Saved { step } = entry.event { Some(step) } else { None });
    let mut counted: BTreeMap<String, u64> = counts
        .calls
        .iter()
        .zip(1..)
        .map(|(calls, turn)| (format!("calls of turn {turn}"), calls.len() as u64))
        .collect();
    counted.insert("bytes of one save".into(), counts.save_bytes);
    let kinds = counts.gpu_calls.iter().zip(1..);
    counted.extend(kinds.map(|(calls, number)| (format!("GPU calls, {number}"), *calls)));
    let last = entries.iter().rev().find_map(|entry| match entry.event {
        Event::Step { loss, .. } => Some(loss),
        _ => None,
    });
    let found: Vec<String> = entries
        .iter()
        .filter_map(|entry| if let Event::Found { what } = &entry.event { Some(what.clone()) } else { None })
        .collect();
    let seconds = entries
        .first()
        .zip(entries.last())
        .map_or(0.0, |(first, last)| (last.at_us - first.at_us) as f64 / 1e6);
    SteadyFacts {
        ended_well: ending == Ending::Exited(0) && found.is_empty(),
        steps: steps.max().unwrap_or(0),
        saves: saves.collect(),
        same,
        seconds,
        peak_memory_bytes,
        counted,
        final_loss: last.flatten(),
        found,
        cached: false,
    }
}

fn value_in(script: Script<'_>, event: &Event) -> Option<String> {
    let Event::Said { line, .. } = event else { return None };
    Some(script.target.same()?.captures(line)?.name("value")?.as_str().to_owned())
}
