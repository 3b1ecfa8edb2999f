//! Crash states as trials. A baseline run is recorded. Each set of files that a crash of that run may leave
//! is the starting point of one trial. Knows no expectation and gives no verdict.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;
use scenarios::{CrashModel, CrashStates, Ending, Event, MAX_COUNTED_CANDIDATES, OutputStream};

use crate::announcements::{Announced, Announcement, AnnouncementPatterns};
use crate::explore::{
    CrashCandidate, CrashState, ExploreScope, FsModel, GatedRun, MaterializePlace, NodeId, OpEffect,
    PhaseLines, RECORDING_FACTOR, Recording, WatchedRoot, copy_tree, describe_evidence, describe_state,
    enumerate_until, materialize,
};
use crate::file_error::file_error;
use crate::observe::Reporter;
use crate::plan::{BaselineCounts, CrashStateId, CrashStateRequest, PlannedCrashState, PlannedFault};
use crate::run::error::RunError;
use crate::run::trial_env::{TrialConfig, TrialEnv};
use crate::sandbox::{LaunchSpec, ProcessExit, SandboxError, is_interrupted, remove_tree};

/// A recorded run of the target. It starts from a prepared root, or from the files that a first crash left.
pub(super) struct RecordedRun {
    recording: Recording,
    /// The crash states that the plan may use. [`CrashStateId`] is an index.
    states: Vec<CrashState>,
    /// How many more there are, beyond the bound.
    states_left_out: u64,
    /// How many candidates fixed bounds left out.
    not_enumerated: u64,
    announcements: Vec<RecordedAnnouncement>,
    /// The pattern of the target file that no line of it matches, with its key, if the states depend on one.
    unmatched: Option<String>,
    /// What happened before, if this is a recording of a recovery.
    first_crash: Option<EarlierCrash>,
    /// Holds the payload log and the original files. Removed on drop.
    dir: PathBuf,
    /// The data that was submitted before the first start.
    data_dir: PathBuf,
    /// Seconds since the Unix epoch.
    started_unix_s: i64,
}

/// The run that crashed first, and its crash state.
struct EarlierCrash {
    run: Box<RecordedRun>,
    state: CrashState,
}

/// Something that the target announced, with the number of operations recorded up to and including it.
struct RecordedAnnouncement {
    op_count: usize,
    announcement: Announcement,
    event: Event,
}

/// Runs the target without a fault below the empty directory `dir`, records its file operations, and
/// enumerates the requested crash states.
///
/// # Errors
/// If the recording fails or the target does not end well.
pub(super) fn record(
    dir: &Path,
    config: TrialConfig<'_>,
    request: CrashStateRequest<'_>,
) -> Result<RecordedRun, RunError> {
    let selection = request.selection;
    let first = dir.join("first");
    let env = TrialEnv::build(first.clone(), config)?;
    let launch = env.trainer().start();
    let phase = selection.phase.as_ref().and_then(|name| config.target.phases().get(name));
    let lines = phase.map(|phase| PhaseLines { begins: phase.begins().clone(), ends: phase.ends().clone() });
    let mut recorded = record_run(env, config, &launch, &first, lines.clone())?;
    if let Some(begins) =
        lines.map(|lines| lines.begins).filter(|begins| phase_begins(&recorded.recording, begins).is_empty())
    {
        let phase = selection.phase.clone().unwrap_or_default();
        recorded.unmatched = Some(format!("`phases: {phase}: begins`, `{begins}`"));
        return Ok(recorded);
    }
    let crash_points = crash_points(config, &recorded.recording, request);
    if !selection.in_recovery {
        recorded.enumerate_states(scope(config, request, crash_points))?;
        return Ok(recorded);
    }
    let state = recorded.killed_midway(&crash_points);
    let second = dir.join("second");
    let env = recorded.env_after(&state, second.clone(), config)?;
    let resume = env.trainer().resume();
    let mut recovery = record_run(env, config, &resume, &second, None)?;
    recovery.first_crash = Some(EarlierCrash { run: Box::new(recorded), state });
    let crash_points = crash_points_of_recovery(&recovery, selection);
    recovery.enumerate_states(scope(config, request, crash_points))?;
    Ok(recovery)
}

fn record_run(
    env: TrialEnv<'_>,
    config: TrialConfig<'_>,
    launch: &LaunchSpec,
    dir: &Path,
    phase: Option<PhaseLines>,
) -> Result<RecordedRun, RunError> {
    let (root, originals) = (env.sandbox.root_on_host().to_path_buf(), dir.join("originals"));
    let data_dir = env.submitted_data().to_path_buf();
    // What the copy lacks, the recorder notes too.
    copy_tree(&root, &originals)?;
    let run = GatedRun {
        command: launch,
        roots: &[WatchedRoot { seen_by_target: env.visible_root().into(), seen_by_harness: root }],
        originals: &[vec![originals]],
        payload_log: &dir.join("payload-log"),
        saved_pattern: config.target.announces().saved().cloned(),
        announced: AnnouncementPatterns::of_target(config.target).all(),
        phase,
        unfollowed: &[],
        // Those of the baseline are noted already.
        notes_connections: false,
        time_limit: Some(config.target.finish() * RECORDING_FACTOR),
        cancelled: is_interrupted,
    };
    let recorded = run.record(&env.sandbox)?;
    env.sandbox.close()?;
    if recorded.ended != Some(ProcessExit::Exited(0)) {
        return Err(RunError::TargetFailed(Box::new(recorded.failed_run())));
    }
    let recording = recorded.recording;
    let announcements = announcements(config, &recording);
    let started_unix_s = jiff::Timestamp::now().as_second();
    Ok(RecordedRun {
        recording,
        states: Vec::new(),
        states_left_out: 0,
        not_enumerated: 0,
        announcements,
        unmatched: None,
        first_crash: None,
        dir: dir.to_path_buf(),
        data_dir,
        started_unix_s,
    })
}

fn scope(
    config: TrialConfig<'_>,
    request: CrashStateRequest<'_>,
    crash_points: BTreeSet<usize>,
) -> ExploreScope {
    let CrashStateRequest { selection, max_states, .. } = request;
    let model = |of: &CrashModel| match of {
        CrashModel::Process => None,
        CrashModel::Ext4 => Some(FsModel::Ext4),
        CrashModel::Xfs => Some(FsModel::Xfs),
        CrashModel::Btrfs => Some(FsModel::Btrfs),
        CrashModel::Posix => Some(FsModel::Posix),
        CrashModel::Lying => Some(FsModel::Lying),
    };
    // The checks of a scenario allow no other fault next to `crash-states`, so the submitted files stay as
    // they are.
    debug_assert!(config.faults.is_empty());
    ExploreScope {
        process_crashes: selection.models.contains(&CrashModel::Process),
        models: selection.models.iter().filter_map(model).collect(),
        max_states: max_states as usize,
        crash_points: Some(crash_points),
    }
}

/// The meaningful lines of the target.
fn announcements(config: TrialConfig<'_>, recording: &Recording) -> Vec<RecordedAnnouncement> {
    let patterns = AnnouncementPatterns::of_target(config.target);
    let mut found = Vec::new();
    for (index, op) in recording.ops.iter().enumerate() {
        let OpEffect::Output { line, on_stdio: true, .. } = &op.effect else { continue };
        for announcement in patterns.parse(line) {
            // Only the line has the value of a job that is done.
            let output = || Event::Output { stream: OutputStream::Stdout, line: line.clone() };
            let event = announcement.event().unwrap_or_else(output);
            found.push(RecordedAnnouncement { op_count: index + 1, announcement, event });
        }
    }
    found
}

/// Those of the announcements before a crash that matter: of the steps and of the saves of one job, the last before
/// each announcement of another kind.
fn without_repetition<'a>(announced: &[&'a RecordedAnnouncement]) -> Vec<&'a Event> {
    let mut kept = Vec::new();
    for (index, recorded) in announced.iter().enumerate() {
        let Announcement { job, what } = &recorded.announcement;
        let is_frequent = |what: &Announced| matches!(what, Announced::Step { .. } | Announced::Saved { .. });
        let later = announced[index + 1..].iter().map(|later| &later.announcement);
        let is_repeated = |later: &Announcement| {
            later.job == *job && std::mem::discriminant(&later.what) == std::mem::discriminant(what)
        };
        let mut until_other = later.take_while(|later| is_frequent(&later.what));
        if !is_frequent(what) || !until_other.any(is_repeated) {
            kept.push(&recorded.event);
        }
    }
    kept
}

/// The crash points in the given occurrence of the phase, up to its next occurrence, that change a selected
/// path. A crash point is a number of operations.
fn crash_points(
    config: TrialConfig<'_>,
    recording: &Recording,
    request: CrashStateRequest<'_>,
) -> BTreeSet<usize> {
    let CrashStateRequest { selection, occurrence, .. } = request;
    let all_points = 0..=recording.ops.len();
    let phase = selection.phase.as_ref().and_then(|name| config.target.phases().get(name));
    let range = phase.map_or(all_points.clone(), |phase| {
        let begins = phase_begins(recording, phase.begins());
        let occurrence = (occurrence as usize).clamp(1, begins.len().max(1)) - 1;
        let from = begins.get(occurrence).copied().unwrap_or(0);
        from..=begins.get(occurrence + 1).copied().unwrap_or(recording.ops.len())
    });
    range.filter(|op_count| changes_selected_path(recording, selection, *op_count)).collect()
}

/// The numbers of operations after which the phase begins. A worker prints in order with its own calls. Its supervisor
/// forwards the line later, so the worker's line is the exact one.
fn phase_begins(recording: &Recording, pattern: &Regex) -> Vec<usize> {
    let begins = |on_stdio: bool| -> Vec<usize> {
        let begins = recording.ops.iter().enumerate().filter_map(|(index, op)| match &op.effect {
            OpEffect::Output { line, on_stdio: line_on_stdio, .. }
                if *line_on_stdio == on_stdio && pattern.is_match(line) =>
            {
                Some(index + 1)
            }
            _ => None,
        });
        begins.collect()
    };
    Some(begins(false)).filter(|found| !found.is_empty()).unwrap_or_else(|| begins(true))
}

fn changes_selected_path(recording: &Recording, selection: &CrashStates, op_count: usize) -> bool {
    let Some(paths) = &selection.paths else { return true };
    let Some(index) = op_count.checked_sub(1) else { return false };
    let root = &recording.roots[0];
    let is_selected = |path: PathBuf| path.strip_prefix(root).is_ok_and(|below| paths.is_match(below));
    let node_is_selected = |node: NodeId| is_selected(recording.path_of(node, index));
    match &recording.ops[index].effect {
        OpEffect::NameChanges(changes) => {
            changes.iter().any(|change| is_selected(recording.path_of(change.dir, index).join(&change.name)))
        }
        OpEffect::Write { node, .. }
        | OpEffect::Resize { node, .. }
        | OpEffect::Zero { node, .. }
        | OpEffect::SetAttributes { node, .. }
        | OpEffect::Sync { node, .. } => node_is_selected(*node),
        OpEffect::SyncAll => true,
        OpEffect::Output { .. } => false,
    }
}

/// The crash points of a recovery: all until its first acknowledged step. What follows is ordinary training.
fn crash_points_of_recovery(recovery: &RecordedRun, selection: &CrashStates) -> BTreeSet<usize> {
    let is_saved = |announced: &&RecordedAnnouncement| matches!(announced.event, Event::Saved { .. });
    let first_saved = recovery.announcements.iter().find(is_saved);
    let to = first_saved.map_or(recovery.recording.ops.len(), |announced| announced.op_count);
    (0..=to).filter(|op_count| changes_selected_path(&recovery.recording, selection, *op_count)).collect()
}

impl RecordedRun {
    fn enumerate_states(&mut self, scope: ExploreScope) -> Result<(), SandboxError> {
        let found = enumerate_until(&self.recording, &scope, is_interrupted);
        let found = found.ok_or(SandboxError::Interrupted)?;
        self.states = found.states;
        self.states_left_out = found.counts.states_left_out;
        let not_enumerated: u64 = found.counts.not_enumerated.values().sum();
        self.not_enumerated = not_enumerated.min(MAX_COUNTED_CANDIDATES);
        Ok(())
    }

    /// What the recordings do not show, so that crash states may be missing or promises be noted too late.
    pub(super) fn weaknesses(&self) -> Vec<String> {
        let gaps = &self.recording.gaps;
        let notes = gaps.notes.iter().filter(|note| note.weakens_result()).map(ToString::to_string);
        let refused = gaps.refused_calls.iter().map(|call| format!("refused to the target: {call}"));
        let earlier = self.first_crash.iter().flat_map(|first| first.run.weaknesses());
        notes.chain(refused).chain(earlier).collect()
    }

    /// The pattern that should tell which states to try and matches nothing, if so.
    pub(super) fn unmatched_pattern(&self) -> Option<&str> {
        self.unmatched.as_deref()
    }

    /// All crash states of this run, for a plan to expand over.
    pub(super) fn counts(&self) -> BaselineCounts {
        let states = self.states.iter().enumerate();
        let planned = |(index, state): (usize, &CrashState)| PlannedCrashState {
            id: CrashStateId(index),
            description: match &self.first_crash {
                Some(first) => {
                    format!("{}; in the recovery {}", first.run.describe(&first.state), self.describe(state))
                }
                None => self.describe(state),
            },
        };
        BaselineCounts {
            crash_states: states.map(planned).collect(),
            crash_states_left_out: self.states_left_out,
            crash_states_not_enumerated: self.not_enumerated,
            ..BaselineCounts::default()
        }
    }

    fn describe(&self, state: &CrashState) -> String {
        describe_state(&self.recording, state)
    }

    /// The files after a SIGKILL at the middle one of the crash points.
    fn killed_midway(&self, crash_points: &BTreeSet<usize>) -> CrashState {
        let op_count = crash_points.iter().copied().nth(crash_points.len() / 2).unwrap_or(0);
        CrashState::after_process_crash(&self.recording, CrashCandidate::whole(op_count))
    }

    /// An environment whose root holds the files of a crash state.
    ///
    /// # Errors
    /// If the sandbox cannot be built or the files cannot be written.
    pub(super) fn trial_env<'a>(
        &self,
        id: CrashStateId,
        dir: PathBuf,
        config: TrialConfig<'a>,
    ) -> Result<TrialEnv<'a>, RunError> {
        self.env_after(&self.states[id.0], dir, config)
    }

    /// An environment whose root holds the files right after the first save, or those at the end if there is no save.
    ///
    /// # Errors
    /// Those of [`trial_env`](RecordedRun::trial_env).
    pub(super) fn env_after_first_save<'a>(
        &self,
        dir: PathBuf,
        config: TrialConfig<'a>,
    ) -> Result<TrialEnv<'a>, RunError> {
        let is_save = |announced: &&RecordedAnnouncement| matches!(announced.event, Event::Saved { .. });
        let first = self.announcements.iter().find(is_save).map(|announced| announced.op_count);
        let candidate = CrashCandidate::whole(first.unwrap_or(self.recording.ops.len()));
        self.env_with(&candidate, dir, config)
    }

    /// Replaces the files of an environment by those of a crash state.
    ///
    /// # Errors
    /// If files cannot be removed or written.
    pub(super) fn refill(&self, id: CrashStateId, env: &TrialEnv<'_>) -> Result<(), RunError> {
        env.remove_files()?;
        self.fill(self.states[id.0].candidate(), env)
    }

    fn env_after<'a>(
        &self,
        state: &CrashState,
        dir: PathBuf,
        config: TrialConfig<'a>,
    ) -> Result<TrialEnv<'a>, RunError> {
        self.env_with(state.candidate(), dir, config)
    }

    fn env_with<'a>(
        &self,
        candidate: &CrashCandidate,
        dir: PathBuf,
        config: TrialConfig<'a>,
    ) -> Result<TrialEnv<'a>, RunError> {
        let env = TrialEnv::for_crash_state(dir, config)?;
        self.fill(candidate, &env)?;
        Ok(env)
    }

    /// Writes files into an environment that has none.
    fn fill(&self, candidate: &CrashCandidate, env: &TrialEnv<'_>) -> Result<(), RunError> {
        env.copy_submitted_data(&self.data_dir)?;
        let root = env.sandbox.root_on_host();
        let base = root.parent().unwrap_or(root).to_path_buf();
        let place = MaterializePlace {
            base: base.clone(),
            dir_names: vec!["root".into()],
            began_unix_s: self.started_unix_s,
        };
        materialize(&self.recording, candidate, place)
            .map_err(file_error::<RunError>("materialise a crash state in", &base))
    }

    /// Emits what happened before the crash and the crash itself. Returns the number of starts that this
    /// covers.
    pub(super) fn emit_history(&self, id: CrashStateId, planned: &PlannedFault, reporter: &Reporter) -> u32 {
        self.emit_history_until(&self.states[id.0], planned, reporter)
    }

    fn emit_history_until(&self, state: &CrashState, planned: &PlannedFault, reporter: &Reporter) -> u32 {
        let first_crash = self.first_crash.as_ref();
        let history = |first: &EarlierCrash| first.run.emit_history_until(&first.state, planned, reporter);
        let starts = first_crash.map_or(0, history);
        let Some((_, witness)) = state.strictest_witness() else { return starts };
        let op_count = witness.candidate.op_count as usize;
        let until_crash = self.announcements.iter().take_while(|announced| announced.op_count <= op_count);
        let announced: Vec<&RecordedAnnouncement> = until_crash.collect();
        without_repetition(&announced).into_iter().for_each(|event| reporter.emit(event.clone()));
        let (fault, optional) = (planned.id(), planned.fault.is_optional);
        let mechanism = "the files of a recorded run, as a crash would leave them".to_owned();
        reporter.emit(Event::FaultArmed { fault: fault.clone(), mechanism, optional });
        reporter.emit(Event::FaultEffective { fault, evidence: describe_evidence(&self.recording, state) });
        let (attempt, ending) = (starts + 1, Ending::KilledByFault);
        reporter.emit(Event::TargetEnded { attempt, ending, exit_code: None });
        starts + 1
    }
}

impl Drop for RecordedRun {
    fn drop(&mut self) {
        // The owner of the run's directory removes what could not be removed here.
        let _ = remove_tree(&self.dir);
    }
}
