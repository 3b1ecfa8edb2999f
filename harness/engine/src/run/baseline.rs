//! The baseline: a run without faults of the same target, workload and seed. Scenarios of one suite share it
//! through a cache. Knows no fault.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use regex::Regex;
use scenarios::{
    BaselineFacts, BaselineProgress, Ending, Event, FailedRun, OutputLine, RecordEntry, SandboxHint,
    SaveControl, Scenario, TargetFile, UndisturbedCommand,
};

use crate::announcements::AnnouncementPatterns;
use crate::faults::list_files;
use crate::file_error::chain;
use crate::judge::FollowedRun;
use crate::locks::LockExt;
use crate::observe::Reporter;
use crate::plan::{BaselineCounts, CallCountRequest, GpuCountRequest};
use crate::run::call_injector::{InjectorHandle, InjectorTarget};
use crate::run::error::RunError;
use crate::run::fault_schedule::FaultSchedule;
use crate::run::save_control::{ControlCache, EndedBaseline};
use crate::run::save_snapshots::{SaveSnapshot, SaveSnapshots};
use crate::run::target_run::{RunCounts, TargetRun};
use crate::run::trial_env::{TrialConfig, TrialEnv};
use crate::sandbox::{NetworkAccess, fail_if_interrupted};

/// Size of a block in `st_blocks`, in bytes (stat(3type)).
const STAT_BLOCK_BYTES: u64 = 512;

/// Facts and counts of a baseline run.
#[derive(Debug, Clone)]
pub(super) struct MeasuredBaseline {
    pub(super) facts: BaselineFacts,
    pub(super) counts: BaselineCounts,
    /// Record entries of the run, emitted again for each scenario that shares it.
    entries: Vec<RecordEntry>,
    /// Why it cannot be compared with, if it did not end well.
    failed: Option<FailedRun>,
}

/// Which calls a baseline run has to count.
#[derive(Debug, Clone, Copy)]
pub(super) struct CountRequests<'a> {
    pub(super) calls: &'a [CallCountRequest<'a>],
    pub(super) gpu_calls: &'a [GpuCountRequest],
}

/// The result of one baseline run.
enum BaselineResult {
    /// The target was run to its end.
    Measured(Box<MeasuredBaseline>),
    /// A command before the target failed.
    TargetFailed(Box<FailedRun>),
    /// The harness failed, for this reason.
    HarnessFailed(String),
}

/// The result of one baseline run, once it has ended.
type BaselineSlot = Arc<OnceLock<BaselineResult>>;

/// Baselines of one suite, by a hash of everything that they depend on.
#[derive(Default)]
pub struct BaselineCache {
    slots: Mutex<HashMap<blake3::Hash, BaselineSlot>>,
    controls: ControlCache,
}

impl BaselineCache {
    /// Returns the baseline from the cache, or runs it. Emits its events in both cases.
    ///
    /// # Errors
    /// If a command before the target failed, or the harness. Scenarios that share the baseline get an error
    /// too.
    pub(super) fn get(
        &self,
        dir: PathBuf,
        config: TrialConfig<'_>,
        scenario: &Scenario,
        requests: CountRequests<'_>,
        reporter: &Reporter,
    ) -> Result<MeasuredBaseline, RunError> {
        let run = || {
            let controls = Some(&self.controls);
            BaselineRun { dir, config, scenario, requests, controls }.run(&reporter.for_trial(0))
        };
        let baseline = self.measure(&config, requests, run)?;
        if baseline.facts.cached {
            // So that the scenario's part of the record is complete.
            let reporter = reporter.for_trial(0);
            baseline.entries.iter().for_each(|entry| reporter.emit_at(entry.at_us, entry.event.clone()));
        }
        reporter.emit(Event::Baseline(Box::new(baseline.facts.clone())));
        emit_failed(&baseline, UndisturbedCommand::Baseline, reporter);
        Ok(baseline)
    }

    /// Returns the undisturbed run without a guard from the cache, or runs it. `config` has the settings
    /// without the guard. Emits only its result.
    ///
    /// # Errors
    /// As [`BaselineCache::get`].
    pub(super) fn guard_control(
        &self,
        dir: PathBuf,
        config: TrialConfig<'_>,
        scenario: &Scenario,
        reporter: &Reporter,
    ) -> Result<MeasuredBaseline, RunError> {
        let requests = CountRequests { calls: &[], gpu_calls: &[] };
        let run = || {
            let run = BaselineRun { dir, config, scenario, requests, controls: None };
            run.run(&reporter.for_unreported_run())
        };
        let control = self.measure(&config, requests, run)?;
        reporter.emit(Event::GuardControl(Box::new(control.facts.clone())));
        emit_failed(&control, UndisturbedCommand::WithoutGuard, reporter);
        Ok(control)
    }

    /// Returns a run from the cache, or runs it. The facts tell which.
    fn measure(
        &self,
        config: &TrialConfig<'_>,
        requests: CountRequests<'_>,
        run: impl FnOnce() -> Result<MeasuredBaseline, RunError>,
    ) -> Result<MeasuredBaseline, RunError> {
        let slot = self.slot(config, requests);
        let mut failure = None;
        let mut fresh = false;
        let result = slot.get_or_init(|| {
            fresh = true;
            match run() {
                Ok(baseline) => BaselineResult::Measured(Box::new(baseline)),
                Err(RunError::TargetFailed(failed)) => BaselineResult::TargetFailed(failed),
                Err(error) => {
                    let reason = chain(&error);
                    failure = Some(error);
                    BaselineResult::HarnessFailed(reason)
                }
            }
        });
        match (result, failure) {
            (BaselineResult::Measured(baseline), _) => {
                let mut baseline = (**baseline).clone();
                baseline.facts.cached = !fresh;
                Ok(baseline)
            }
            (BaselineResult::TargetFailed(failed), _) => {
                let failed = FailedRun { shared: !fresh, ..(**failed).clone() };
                Err(RunError::TargetFailed(Box::new(failed)))
            }
            (BaselineResult::HarnessFailed(_), Some(error)) => Err(error),
            (BaselineResult::HarnessFailed(reason), None) => {
                Err(RunError::SharedBaseline { reason: reason.clone() })
            }
        }
    }

    fn slot(&self, config: &TrialConfig<'_>, requests: CountRequests<'_>) -> BaselineSlot {
        let TrialConfig { target, program, workload, host_access, .. } = config;
        let key = format!("{target:?} {program:?} {workload:?} {host_access:?} {requests:?}");
        let mut slots = self.slots.locked();
        Arc::clone(slots.entry(blake3::hash(key.as_bytes())).or_default())
    }
}

/// Emits why the run cannot be compared with, if it did not end well.
fn emit_failed(measured: &MeasuredBaseline, command: UndisturbedCommand, reporter: &Reporter) {
    if let Some(failed) = &measured.failed {
        let failed = FailedRun { command, shared: measured.facts.cached, ..failed.clone() };
        reporter.emit(Event::UndisturbedRunFailed(Box::new(failed)));
    }
}

/// A run of the target without faults.
struct BaselineRun<'a> {
    dir: PathBuf,
    config: TrialConfig<'a>,
    scenario: &'a Scenario,
    requests: CountRequests<'a>,
    /// Where the controls of its target are, if they are wanted.
    controls: Option<&'a ControlCache>,
}

impl BaselineRun<'_> {
    fn run(self, reporter: &Reporter) -> Result<MeasuredBaseline, RunError> {
        let config = self.config;
        let env = TrialEnv::build(self.dir.clone(), config)?;
        let trainer = env.trainer();
        let clock = Arc::default();
        let context = env.fault_context(&trainer, None, &clock);
        let calls = self.requests.calls;
        let trigger_phase = calls.iter().find_map(|request| request.trigger.phase.as_deref());
        let phase = trigger_phase.or_else(|| config.target.phases().keys().next().map(String::as_str));
        let place = phase
            .and_then(|phase| config.target.phases().get(phase))
            .map(|phase| trainer.place_below_root(phase.place()));
        let dir = place.map(|place| env.sandbox.host_path_in_root(&place));
        let save_bytes = Arc::new(Mutex::new(0));
        let measured = Arc::clone(&save_bytes);
        let measure: Box<dyn FnMut() + Send> =
            Box::new(move || dir.iter().for_each(|dir| measure_first_save(&measured, dir)));
        let faults = FaultSchedule::of_baseline(self.requests.gpu_calls, reporter);
        let snapshots = self.snapshots(&env).into_shared();
        let mut run = if config.has_gate {
            // The measurement is exact, because the target waits in the write call that announces the save.
            let (root, kill_switch) = (env.visible_root().into(), env.sandbox.kill_switch());
            let target = InjectorTarget { target: config.target, root, kill_switch };
            let injector = InjectorHandle::for_counting(target, calls, phase, measure)
                .with_snapshots(Arc::clone(&snapshots))
                .with_connections(config.host_access.network == NetworkAccess::Private);
            TargetRun::new(context, reporter, self.scenario, faults, Some(injector))
        } else {
            let mut run = TargetRun::new(context, reporter, self.scenario, faults, None);
            if let Some(phase) = phase {
                run.on_phase_end(phase, measure);
            }
            run
        };
        let ending = run.run(0)?;
        let RunCounts { calls, gpu_calls, peak_memory_bytes, connections } = run.into_counts();
        env.emit_gpu_defects(reporter)?;
        let sandbox_hints = connections.named_in(env.sandbox.hints(&[])?);
        let entries = reporter.entries();
        let save_bytes = *save_bytes.locked();
        let files = list_files(&env.sandbox.host_path_in_root(Path::new(""))).unwrap_or_default();
        let counts = BaselineCounts {
            calls,
            steps: announced_steps(&entries),
            save_bytes,
            gpu_calls,
            files,
            ..BaselineCounts::default()
        };
        let facts = baseline_facts(config, &entries, ending, peak_memory_bytes, &counts);
        let facts = BaselineFacts { sandbox_hints, ..facts };
        let snapshots = snapshots.locked().take();
        let facts = self.with_controls(facts, &env, &entries, &snapshots, reporter)?;
        env.sandbox.close()?;
        fail_if_interrupted()?;
        let hints = facts.sandbox_hints.clone();
        let failed =
            (!facts.ended_well).then(|| FailedRun { sandbox_hints: hints, ..failed_run(&entries, ending) });
        Ok(MeasuredBaseline { facts, counts, entries, failed })
    }

    /// Takes copies of the files right after saves, if controls are wanted.
    fn snapshots(&self, env: &TrialEnv<'_>) -> SaveSnapshots {
        let patterns = AnnouncementPatterns::of_target(self.config.target);
        let saved = patterns.saved.clone().filter(|_| self.controls.is_some());
        let root = env.sandbox.host_path_in_root(Path::new(""));
        SaveSnapshots::of_baseline(AnnouncementPatterns { saved, ..patterns }, root, self.dir.join("saves"))
    }

    /// Why copies of the target's root do not show whether it resumes: what it needs may lie elsewhere.
    fn why_copies_show_nothing(&self, facts: &BaselineFacts) -> Option<String> {
        let outside = facts.sandbox_hints.iter().find_map(|hint| match hint {
            SandboxHint::WroteOutside { path, .. } => Some(path.clone()),
            _ => None,
        });
        let writable = self.config.host_access.writable.first().map(|dir| dir.display().to_string());
        let place = outside.or(writable)?;
        Some(format!("what it needs to resume may lie in `{place}`, of which there are no copies"))
    }

    /// Adds what resumes from the files of the baseline do, and which patterns matched nothing.
    fn with_controls(
        &self,
        facts: BaselineFacts,
        env: &TrialEnv<'_>,
        entries: &[RecordEntry],
        snapshots: &[SaveSnapshot],
        reporter: &Reporter,
    ) -> Result<BaselineFacts, RunError> {
        if !facts.ended_well {
            return Ok(facts);
        }
        let mut unmatched = unmatched_patterns(self.config.target, &facts);
        let Some(cache) = self.controls.filter(|_| unmatched.is_empty()) else {
            return Ok(BaselineFacts { unmatched, ..facts });
        };
        let why_no_copies = self.why_copies_show_nothing(&facts);
        let baseline = EndedBaseline {
            env,
            config: self.config,
            scenario: self.scenario,
            facts: &facts,
            entries,
            snapshots: if why_no_copies.is_none() { snapshots } else { &[] },
            dir: &self.dir,
            reporter,
        };
        let controls = cache.get(&baseline)?;
        unmatched.extend(unmatched_resume(self.config.target, &controls.saves));
        let progress = BaselineProgress {
            control: controls.end,
            save_controls: controls.saves,
            no_save_controls: why_no_copies,
            ..facts.progress.clone()
        };
        Ok(BaselineFacts { progress, unmatched, ..facts })
    }
}

/// A baseline run that did not end well, with the last lines of its last attempt.
fn failed_run(entries: &[RecordEntry], ending: Ending) -> FailedRun {
    let is_start = |entry: &RecordEntry| matches!(entry.event, Event::TargetStarted(_));
    let last_start = entries.iter().rposition(is_start).unwrap_or(0);
    let line = |entry: &RecordEntry| match &entry.event {
        Event::Output { stream, line } => Some(OutputLine { stream: *stream, line: line.clone() }),
        _ => None,
    };
    let lines = entries[last_start..].iter().filter_map(line).collect();
    FailedRun::new(UndisturbedCommand::Baseline, ending, lines)
}

/// Stores the disk usage of the first save.
fn measure_first_save(save_bytes: &Mutex<u64>, dir: &Path) {
    let mut bytes = save_bytes.locked();
    if *bytes == 0 {
        *bytes = disk_usage_bytes(dir);
    }
}

fn disk_usage_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_usage_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * STAT_BLOCK_BYTES,
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

fn baseline_facts(
    config: TrialConfig<'_>,
    entries: &[RecordEntry],
    ending: Ending,
    peak_memory_bytes: Option<u64>,
    counts: &BaselineCounts,
) -> BaselineFacts {
    let nothing_known = BaselineProgress::default();
    let FollowedRun { ledger, values: mut same, .. } =
        FollowedRun::of(config.target, &nothing_known, entries);
    let progress = ledger.into_progress();
    same.sort();
    same.dedup();
    let saves = entries
        .iter()
        .filter_map(|entry| if let Event::Saved { step, .. } = entry.event { Some(step) } else { None });
    let mut counted = BTreeMap::new();
    for (fault, occurrences) in &counts.calls {
        counted.extend(occurrences.iter().zip(1..).map(|(calls, occurrence)| {
            (format!("calls for fault {fault} in occurrence {occurrence}"), calls.len() as u64)
        }));
    }
    counted.insert("bytes of one save".into(), counts.save_bytes);
    let kinds = counts.gpu_calls.iter().zip(1..);
    counted.extend(kinds.map(|(calls, number)| (format!("GPU calls, {number}"), *calls)));
    let last_loss = entries.iter().rev().find_map(|entry| match entry.event {
        Event::Step { loss, .. } => Some(loss),
        _ => None,
    });
    let gpu_defects: Vec<String> = entries
        .iter()
        .filter_map(
            |entry| if let Event::GpuDefect { what } = &entry.event { Some(what.clone()) } else { None },
        )
        .collect();
    let seconds = entries
        .first()
        .zip(entries.last())
        .map_or(0.0, |(first, last_loss)| (last_loss.at_us - first.at_us) as f64 / 1e6);
    BaselineFacts {
        ended_well: ending == Ending::Exited(0) && gpu_defects.is_empty(),
        ending: Some(ending),
        steps: counts.steps.last().copied().unwrap_or(0),
        saves: saves.collect(),
        same,
        seconds,
        peak_memory_bytes,
        counted,
        final_loss: last_loss.flatten(),
        gpu_defects,
        sandbox_hints: Vec::new(),
        progress,
        unmatched: Vec::new(),
        cached: false,
    }
}

/// The pattern for resumes, if no resume from the files of a save printed a line that matches, although the target
/// went on from there.
fn unmatched_resume(target: &TargetFile, controls: &[SaveControl]) -> Option<String> {
    let pattern = target.announces().resumed()?;
    let is_unmatched = controls.iter().any(|control| control.resumes_silently);
    is_unmatched.then(|| format!("`announces: resumed`, `{pattern}`"))
}

/// The keys of the target file with a pattern that no line of the baseline matches, each with its pattern. A resume
/// and a rollback need not come in an undisturbed run.
fn unmatched_patterns(target: &TargetFile, facts: &BaselineFacts) -> Vec<String> {
    let announces = target.announces();
    let keys = [
        ("announces: step", Some(announces.step()), facts.progress.first_step.is_some()),
        ("announces: saved", announces.saved(), !facts.saves.is_empty()),
        ("same", target.same(), !facts.same.is_empty()),
    ];
    let unmatched = |(key, pattern, is_matched): (&str, Option<&Regex>, bool)| {
        pattern.filter(|_| !is_matched).map(|pattern| format!("`{key}`, `{pattern}`"))
    };
    keys.into_iter().filter_map(unmatched).collect()
}

/// The steps that were announced, each once, in order.
fn announced_steps(entries: &[RecordEntry]) -> Vec<u64> {
    let steps = entries.iter().filter_map(|entry| match entry.event {
        Event::Step { step, .. } => Some(step),
        _ => None,
    });
    steps.collect::<BTreeSet<u64>>().into_iter().collect()
}
