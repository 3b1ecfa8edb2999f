//! The pipeline: record the baseline run, enumerate its crash states, try each in parallel, group the
//! failures. Knows no details of any of these steps.

use std::collections::BTreeMap;
use std::sync::{OnceLock, mpsc};

use scenarios::{
    Control, CrashCategory, EXPLORATION_FORMAT, Exploration, ExplorationNote, Finding, ForkedRecoveries,
    Outcome, RecoveryCheck,
};

use super::controls::{ControlSpec, Controls, KnownRecoveries};
use super::error::{ExploreBaselineError, ExploreError, FoundFiles};
use super::explore_config::ExploreConfig;
use super::explore_progress::ExploreProgress;
use super::failing_trees::FailingTree;
use super::noted_start::NotedStart;
use super::record::{
    CommandRecording, KeptRecording, RecordProgress, Recording, keep_recording, read_recording, record,
};
use super::replay::{OutputOracle, Replayer, TriedState, WarmStart};
use super::replayed_states::{ReplayedStates, StateReplay};
use super::report::never_synced;
use super::states::{
    CrashState, EnumerateSpec, EnumerationCounts, NamedState, StateName, find_named_state, states_to_try,
};
use super::warm_start::{ForkedStart, WarmStarter};
use crate::file_error::file_error;
use crate::sandbox::{ProcessExit, SandboxError};

/// The option that names a state after a second crash.
pub(super) const SECOND_STATE_OPTION: &str = "--second-state";

/// The result of an exploration.
pub struct ExploreResult {
    /// What decided, besides the exit code, whether a recovery is right.
    pub checks: Vec<RecoveryCheck>,
    /// The recorded operations.
    pub recording: Recording,
    /// Whether the recording was kept. `None`: nobody asked for that.
    pub kept: Option<KeptRecording>,
    /// How many states there are, and how many were left out.
    pub counts: EnumerationCounts,
    /// The recoveries from undamaged files.
    pub controls: Vec<Control>,
    /// How many saves have no control.
    pub controls_left_out: usize,
    /// The states that were tried, in order.
    pub tried: Vec<TriedState>,
    /// How many states were not tried, because the exploration was interrupted or its time was over.
    pub untried: usize,
    /// Whether its time was over.
    pub is_late: bool,
    /// The largest number of states that are tried. `None`: all.
    pub max_states: Option<usize>,
    /// The name of the only state that was tried, if one was asked for.
    pub only_state: Option<String>,
    /// The failing states, grouped by cause.
    pub findings: Vec<Finding>,
    /// Where the files of the states are that the findings show, if they were kept. Else why they could not be kept.
    pub failing_trees: Result<Vec<FailingTree>, ExploreError>,
    /// Whether the recorded run did several jobs.
    pub has_several_jobs: bool,
    /// How recoveries were compared that were forked. `None`: each was a new process.
    pub forked: Option<ForkedRecoveries>,
    /// How further recoveries of the same program are to start.
    pub warm: WarmStart,
    /// How many recoveries ran at the same time.
    pub jobs: usize,
    /// The time for trying all states, without shrinking.
    pub seconds: f64,
    /// The time of the recorded run.
    pub recording_seconds: f64,
}

impl ExploreResult {
    /// The result as it is stored and reported.
    pub fn exploration(&self) -> Exploration {
        let operations = self.recording.count_by_kind().into_iter();
        let outside = self.recording.gaps.outside_paths.iter();
        Exploration {
            version: EXPLORATION_FORMAT,
            checks: self.checks.clone(),
            operations: operations.map(|(kind, count)| (kind.to_owned(), count)).collect(),
            candidates: self.counts.candidates.clone(),
            distinct: self.counts.distinct.clone(),
            left_out: self.counts.left_out.clone(),
            not_enumerated: self.counts.not_enumerated.clone(),
            not_enumerated_by_rule: self.counts.not_enumerated_by_rule.clone(),
            states: self.counts.states,
            states_left_out: self.counts.states_left_out,
            max_states: self.max_states.map(|max| max as u64),
            only_state: self.only_state.clone(),
            outcomes: self.outcomes(),
            controls: self.controls.clone(),
            controls_left_out: self.controls_left_out as u64,
            findings: self.findings.clone(),
            never_synced: never_synced(&self.recording),
            outside: outside.map(|path| path.display().to_string()).collect(),
            sandbox_hints: self.recording.gaps.sandbox_hints.clone(),
            notes: self.notes(),
            forked: self.forked,
            refused_calls: self.recording.gaps.refused_calls.clone(),
            tried: self.tried.len() as u64,
            untried: self.untried as u64,
            max_time_s: None,
            jobs: self.jobs as u64,
            seconds: self.seconds,
            recording_seconds: self.recording_seconds,
            states_per_second: self.states_per_second(),
            after: None,
            untried_recoveries: 0,
            unrecorded_recoveries: 0,
            recovered_kills: 0,
            second: Vec::new(),
        }
    }

    /// What limits what the result shows.
    fn notes(&self) -> Vec<ExplorationNote> {
        let count = self.tried.iter().filter(|tried| tried.result.left_processes).count() as u64;
        let recoveries = self.tried.len() as u64;
        let cut_off = (count > 0).then_some(ExplorationNote::RecoveriesCutOff { count, recoveries });
        self.recording.gaps.notes.iter().cloned().chain(cut_off).collect()
    }

    /// How many states had which outcome, by category of crash. A state that several models allow counts
    /// once, with its worst outcome.
    fn outcomes(&self) -> BTreeMap<CrashCategory, BTreeMap<Outcome, u64>> {
        let mut outcomes: BTreeMap<_, BTreeMap<Outcome, u64>> =
            CrashCategory::ALL.into_iter().map(|category| (category, BTreeMap::new())).collect();
        for (category, outcome) in self.tried.iter().flat_map(TriedState::worst_outcomes) {
            *outcomes.entry(category).or_default().entry(outcome).or_insert(0) += 1;
        }
        outcomes
    }

    /// The speed of trying states.
    pub fn states_per_second(&self) -> f64 {
        self.tried.len() as f64 / self.seconds.max(1e-9)
    }
}

/// Explores the crash states of one command. Calls `report` with the progress.
///
/// # Errors
/// `BaselineFailed` and `NothingRecorded`: this command cannot be explored as it is. `NotPython`: it cannot be
/// explored with warm modules. Every other error: the harness failed.
pub fn explore(
    config: &ExploreConfig,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<ExploreResult, ExploreError> {
    let CheckedRecording { recording, kept, oracle, checks, baseline_reports_resume, seconds } =
        record_checked(config, report)?;
    let recording_seconds = seconds;
    let (operations, saves) = (recording.file_operations().count(), recording.save_count());
    let is_kept = config.kept_recording.is_some();
    report(ExploreProgress::Recorded { operations, saves, is_kept });
    let cancelled = config.replay.cancelled;
    let enumerate = with_found_state(config, &recording, report)?;
    let report_spec = match kept {
        Some(KeptRecording::Kept) => config.report.with_kept_recording(),
        _ => config.report.clone(),
    };
    let config = &ExploreConfig { enumerate, report: report_spec, ..config.clone() };
    let enumeration = states_to_try(&config.enumerate, &recording, cancelled);
    let enumeration = enumeration.ok_or(SandboxError::Interrupted)?;
    report(ExploreProgress::Enumerated { states: enumeration.states.len() });
    let tell = |news| report(ExploreProgress::WarmStart(news));
    let warm = WarmStarter { config, recording: &recording, oracle: &oracle, recording_seconds, tell: &tell };
    let recoveries = Recoveries { warm, states: &enumeration.states, baseline_reports_resume, report };
    let Recovered { controls, replayed, noted } = recoveries.run()?;
    let ReplayedStates { tried, findings, failing_trees, seconds, forked } = replayed;
    let (counts, jobs) = (enumeration.counts, config.replay.jobs);
    let untried = enumeration.states.len() - tried.len();
    Ok(ExploreResult {
        checks,
        recording,
        kept,
        counts,
        controls: controls.reported(),
        controls_left_out: controls.left_out,
        tried,
        untried,
        is_late: untried > 0 && config.replay.is_late() && !(config.replay.cancelled)(),
        max_states: Some(config.enumerate.scope.max_states).filter(|max| *max < usize::MAX),
        only_state: config.enumerate.only_state.as_ref().map(StateName::to_string),
        findings,
        failing_trees,
        has_several_jobs: oracle.has_several_jobs(),
        warm: warm_after(&config.replay.warm, noted, forked.is_some()),
        forked,
        jobs,
        seconds,
        recording_seconds,
    })
}

/// What the recoveries of an exploration start from.
#[derive(Clone, Copy)]
struct Recoveries<'a> {
    warm: WarmStarter<'a>,
    states: &'a [CrashState],
    baseline_reports_resume: bool,
    report: &'a (dyn Fn(ExploreProgress) + Sync),
}

/// What the recoveries did.
struct Recovered {
    controls: Controls,
    replayed: ReplayedStates,
    noted: Option<NotedStart>,
}

impl Recoveries<'_> {
    /// Recovers from undamaged files, then from the crash states.
    fn run(self) -> Result<Recovered, ExploreError> {
        let Recoveries { warm, states, baseline_reports_resume, report } = self;
        let WarmStarter { config, recording, oracle, .. } = warm;
        let is_cancelled = || (config.replay.cancelled)();
        report(ExploreProgress::Controls);
        let spec = ControlSpec { config, recording, oracle, baseline_reports_resume };
        let (jobs, is_noting) = (config.replay.jobs, warm.is_noting(states.len()));
        let replayer = OnceLock::new();
        let (controls, noted, forked) = std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel(1);
            // While the controls run, a first recovery notes its imports, and then the interpreters import them.
            let replayer = &replayer;
            let importing = scope.spawn(move || {
                let noted = if is_noting { warm.note() } else { Ok(None) };
                let start = noted.as_ref().ok().and_then(|noted| warm.forked_start(noted.as_ref()));
                let start = start.filter(|_| !config.replay.is_over());
                let is_awaited = sender.send(noted).is_ok();
                let start = start.filter(|_| is_awaited)?;
                let forked = || Replayer::new(&config.replay, oracle, recording).with_start(start);
                Some(ForkedStart::build(replayer.get_or_init(forked), jobs.min(states.len())))
            });
            let early = match jobs.saturating_sub(usize::from(is_noting)) {
                0 => Ok(KnownRecoveries::new()),
                jobs => spec.run_early(jobs, is_noting),
            };
            let noted = receiver.recv().unwrap_or(Err(ExploreError::WorkerClosed));
            let controls = match (early, &noted) {
                (Ok(known), Ok(noted)) => spec.run(with_noted(known, noted.as_ref(), recording)),
                (Err(error), _) => Err(error),
                // That of the noting recovery is told.
                (Ok(_), Err(_)) => Ok(Controls::default()),
            };
            (controls, noted, importing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let noted = match noted {
            Err(_) if is_cancelled() => None,
            noted => noted?,
        };
        report(ExploreProgress::ControlsEnded);
        let forked = match (&controls, forked) {
            (Err(_), Some(forked)) => {
                forked.close()?;
                None
            }
            (_, forked) => forked,
        };
        if controls.is_err() && is_cancelled() {
            // What is known then is how many states there are.
            let (controls, replayed) = (Controls::default(), ReplayedStates::nothing());
            return Ok(Recovered { controls, replayed, noted });
        }
        let controls = controls?;
        let replay = StateReplay { warm, states, controls: &controls, report };
        let replayed = replay.try_and_group(noted.as_ref(), forked)?;
        Ok(Recovered { controls, replayed, noted })
    }
}

/// The same with the first recovery, if it did what the recorded run did: that is the new process with which it is
/// compared.
fn with_noted(
    mut known: KnownRecoveries,
    noted: Option<&NotedStart>,
    recording: &Recording,
) -> KnownRecoveries {
    if let Some(noted) = noted.filter(|noted| noted.repeats_recording) {
        known.insert(noted.candidate.tree(recording).digest(), noted.result.clone());
    }
    known
}

/// How further recoveries of a program start.
fn warm_after(warm: &WarmStart, noted: Option<NotedStart>, is_forked: bool) -> WarmStart {
    match (warm, noted) {
        (WarmStart::Automatic, Some(noted)) if is_forked => WarmStart::Noted(noted.notes),
        // It was not worth noting.
        (WarmStart::Automatic, None) => WarmStart::Automatic,
        (warm, _) if is_forked => warm.clone(),
        _ => WarmStart::Never,
    }
}

/// A recording that can be explored.
struct CheckedRecording {
    recording: Recording,
    kept: Option<KeptRecording>,
    oracle: OutputOracle,
    checks: Vec<RecoveryCheck>,
    baseline_reports_resume: bool,
    seconds: f64,
}

/// Records the command once.
fn record_checked(
    config: &ExploreConfig,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<CheckedRecording, ExploreError> {
    let recorded = recorded_run(config, report)?;
    let seconds = recorded.seconds;
    let checks = config.checks();
    let oracle = OutputOracle::new(config.judge.clone(), &checks, &recorded.output);
    check_recording(config, &recorded, &oracle)?;
    let kept = config.keep_recording.as_ref();
    let kept = kept.map(|spec| keep_recording(&recorded, &config.record, spec));
    let resumed = config.judge.resumed.as_ref();
    let baseline_reports_resume =
        resumed.is_some_and(|pattern| recorded.output.lines().any(|line| pattern.is_match(line)));
    let recording = recorded.recording;
    let oracle = oracle.with_jobs_of(&recording);
    Ok(CheckedRecording { recording, kept, oracle, checks, baseline_reports_resume, seconds })
}

/// The run of the command, or the kept recording of one.
fn recorded_run(
    config: &ExploreConfig,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<CommandRecording, ExploreError> {
    if let Some(dir) = &config.kept_recording {
        return Ok(read_recording(dir, &config.record)?);
    }
    report(ExploreProgress::Recording);
    record(&config.record, &|progress| {
        report(match progress {
            RecordProgress::LargeTree(progress) => ExploreProgress::LargeTree(progress),
            RecordProgress::Running(progress) => ExploreProgress::RecordingRuns(progress),
        });
    })
}

/// The same with the place of the state in this recording, if only one is tried.
///
/// # Errors
/// The recording has no such state, or a recorded byte cannot be read.
fn with_found_state(
    config: &ExploreConfig,
    recording: &Recording,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<EnumerateSpec, ExploreError> {
    let spec = &config.enumerate;
    let Some(name) = &spec.only_state else { return Ok(spec.clone()) };
    let option = if config.record.first_crash.is_some() { SECOND_STATE_OPTION } else { "--state" };
    let found =
        find_named_state(name, recording, config.replay.cancelled)
            .map_err(file_error::<ExploreError>("read", &recording.payload_log))?;
    match found {
        NamedState::Found(found) => {
            if found != *name {
                report(ExploreProgress::StateMoved(found.to_string()));
            }
            Ok(EnumerateSpec { only_state: Some(found), ..spec.clone() })
        }
        NamedState::Unknown { nearest } => {
            Err(ExploreError::UnknownState { option, name: name.to_string(), nearest })
        }
        NamedState::OfOtherRecording => {
            Err(ExploreError::RecordingDiffers { option, name: name.to_string() })
        }
        NamedState::Cancelled => Err(SandboxError::Interrupted.into()),
    }
}

/// Checks that the recording can be explored.
fn check_recording(
    config: &ExploreConfig,
    recorded: &CommandRecording,
    oracle: &OutputOracle,
) -> Result<(), ExploreError> {
    match recorded.ended {
        Some(ProcessExit::Exited(0)) => {}
        None if (config.record.cancelled)() => return Err(ExploreBaselineError::Stopped.into()),
        // Without an exit it exceeded its time limit.
        _ => return Err(ExploreBaselineError::CommandFailed(Box::new(recorded.failed_run())).into()),
    }
    if recorded.recording.file_operations().next().is_none() {
        return Err(ExploreError::NothingRecorded {
            hints: recorded.recording.gaps.sandbox_hints.clone(),
            found: found_files(config, recorded),
        });
    }
    // A recovery may have nothing left to save.
    let must_save = config.record.saved_pattern.is_some() && config.record.first_crash.is_none();
    if must_save && recorded.recording.save_count() == 0 {
        return Err(ExploreBaselineError::NothingSaved.into());
    }
    match oracle.option_without_values(config.record.first_crash.is_some()) {
        Some(option) => Err(ExploreBaselineError::NothingToCompare { option }.into()),
        None => Ok(()),
    }
}

/// What the command found in the watched directories, if there was something.
fn found_files(config: &ExploreConfig, recorded: &CommandRecording) -> Option<FoundFiles> {
    let count = recorded.recording.initial_names.values().map(BTreeMap::len).sum::<usize>();
    let resumed = config.judge.resumed.as_ref();
    let line = resumed.and_then(|pattern| recorded.output.lines().find(|line| pattern.is_match(line)));
    (count > 0).then(|| FoundFiles { count, resumed: line.map(str::to_owned) })
}
