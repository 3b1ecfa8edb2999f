//! The steady state: the same target, workload and seed, undisturbed. Kept for the length of a run.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use scenarios::{BaselineFacts, CallTrigger, Ending, Event, RecordEntry, Scenario};

use crate::observe::Reporter;
use crate::plan::{BaselineCounts, GpuCountRequest};
use crate::run::RunError;
use crate::run::active_fault::GpuCallCounters;
use crate::run::call_injector::InjectorHandle;
use crate::run::target_run::TargetRun;
use crate::run::trial_env::{TrialConfig, TrialEnv};

/// Bytes in a block of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

/// What an undisturbed run showed.
#[derive(Debug, Clone)]
pub(super) struct MeasuredBaseline {
    pub(super) facts: BaselineFacts,
    pub(super) counts: BaselineCounts,
    /// Its entries, replayed for each scenario that shares it.
    entries: Vec<RecordEntry>,
}

/// What is counted in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct CountRequests<'a> {
    pub(super) calls: Option<&'a CallTrigger>,
    pub(super) gpu_calls: &'a [GpuCountRequest],
}

type BaselineSlot = Arc<OnceLock<Option<MeasuredBaseline>>>;

/// Steady states of this run, by what they depend on.
#[derive(Default)]
pub struct BaselineCache {
    slots: Mutex<HashMap<blake3::Hash, BaselineSlot>>,
}

impl BaselineCache {
    /// Takes it from the cache or runs it; a run that failed is not kept.
    pub(super) fn get(
        &self,
        dir: PathBuf,
        script: TrialConfig<'_>,
        scenario: &Scenario,
        counted: CountRequests<'_>,
        reporter: &Reporter,
    ) -> Result<MeasuredBaseline, RunError> {
        let slot = self.slot(&script, counted);
        let mut failure = None;
        let mut fresh = false;
        let steady = slot.get_or_init(|| {
            fresh = true;
            run_baseline(dir, script, scenario, counted, &reporter.for_trial(0))
                .map_err(|error| failure = Some(error))
                .ok()
        });
        match (steady, failure) {
            (Some(steady), _) => Ok(emit_baseline(steady, fresh, reporter)),
            (None, Some(error)) => Err(error),
            (None, None) => Err(RunError::Preparation {
                step: "steady state",
                ending: "a failure that another scenario has reported".into(),
                words: String::new(),
            }),
        }
    }

    fn slot(&self, script: &TrialConfig<'_>, counted: CountRequests<'_>) -> BaselineSlot {
        let key = format!("{:?} {:?} {:?} {counted:?}", script.target, script.program, script.workload);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(blake3::hash(key.as_bytes())).or_default())
    }
}

/// A scenario that takes it from the cache tells it again, so that its part of the record is whole.
fn emit_baseline(steady: &MeasuredBaseline, fresh: bool, reporter: &Reporter) -> MeasuredBaseline {
    let mut steady = steady.clone();
    steady.facts.cached = !fresh;
    if !fresh {
        let reporter = reporter.for_trial(0);
        steady.entries.iter().for_each(|entry| reporter.emit_at(entry.at_us, entry.event.clone()));
    }
    reporter.emit(Event::Baseline(steady.facts.clone()));
    steady
}

fn run_baseline(
    dir: PathBuf,
    script: TrialConfig<'_>,
    scenario: &Scenario,
    counted: CountRequests<'_>,
    reporter: &Reporter,
) -> Result<MeasuredBaseline, RunError> {
    let stage = TrialEnv::build(dir, script)?;
    let trainer = stage.trainer();
    let scene = stage.fault_context(&trainer, None);
    let calls = counted.calls;
    let said = calls.and_then(|calls| calls.phase.as_deref());
    let phase = said.or_else(|| script.target.phases().keys().next().map(String::as_str));
    let place = phase
        .and_then(|phase| script.target.phases().get(phase))
        .map(|phase| trainer.place_below_root(phase.place()));
    let folder = place.map(|place| stage.sandbox.host_path_in_root(&place));
    let save_bytes = Arc::new(Mutex::new(0));
    let measured = Arc::clone(&save_bytes);
    let measure: Box<dyn FnMut() + Send> =
        Box::new(move || folder.iter().for_each(|folder| measure_first_save(&measured, folder)));
    let mut live = TargetRun::new(scene, reporter, Some(scenario), &[]);
    live.gpu_counters = GpuCallCounters::new(counted.gpu_calls);
    if script.has_gate {
        // At the very moment: the target waits in the call by which it says that it has saved.
        let (base, striker) = (stage.sandbox.root().into(), stage.sandbox.kill_switch());
        live.injector =
            Some(InjectorHandle::for_counting(script.target, base, striker, calls, phase, measure));
    } else if let Some(phase) = phase {
        live.on_phase_end(phase, measure);
    }
    let ending = live.run()?;
    let calls = live.injector.as_ref().map(InjectorHandle::counted_calls).unwrap_or_default();
    let peak_memory_bytes = live.peak_bytes();
    let gpu_calls = live.gpu_counters.counts();
    drop(live);
    stage.emit_gpu_defects(reporter)?;
    stage.sandbox.close()?;
    let entries = reporter.entries();
    let save_bytes = *save_bytes.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = BaselineCounts { calls, save_bytes, gpu_calls, ..BaselineCounts::default() };
    let facts = baseline_facts(script, &entries, ending, peak_memory_bytes, &counts);
    Ok(MeasuredBaseline { facts, counts, entries })
}

/// What the first save takes on disk.
fn measure_first_save(save_bytes: &Mutex<u64>, folder: &Path) {
    let mut bytes = save_bytes.lock().unwrap_or_else(PoisonError::into_inner);
    if *bytes == 0 {
        *bytes = disk_usage_bytes(folder);
    }
}

fn disk_usage_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => disk_usage_bytes(&entry.path()),
        Ok(facts) => facts.blocks() * STAT_BLOCK_BYTES,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

fn baseline_facts(
    script: TrialConfig<'_>,
    entries: &[RecordEntry],
    ending: Ending,
    peak_memory_bytes: Option<u64>,
    counts: &BaselineCounts,
) -> BaselineFacts {
    let mut same: Vec<String> =
        entries.iter().filter_map(|entry| compared_value(script, &entry.event)).collect();
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
        .filter_map(
            |entry| if let Event::GpuDefect { what } = &entry.event { Some(what.clone()) } else { None },
        )
        .collect();
    let seconds = entries
        .first()
        .zip(entries.last())
        .map_or(0.0, |(first, last)| (last.at_us - first.at_us) as f64 / 1e6);
    BaselineFacts {
        ended_well: ending == Ending::Exited(0) && found.is_empty(),
        steps: steps.max().unwrap_or(0),
        saves: saves.collect(),
        same,
        seconds,
        peak_memory_bytes,
        counted,
        final_loss: last.flatten(),
        gpu_defects: found,
        cached: false,
    }
}

fn compared_value(script: TrialConfig<'_>, event: &Event) -> Option<String> {
    let Event::Output { line, .. } = event else { return None };
    Some(script.target.same()?.captures(line)?.name("value")?.as_str().to_owned())
}
