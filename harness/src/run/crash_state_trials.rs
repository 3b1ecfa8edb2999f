//! Crash states as trials: one undisturbed run is recorded, and each set of files that a crash may leave of it is where
//! a trial begins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;
use scenarios::{CrashModel, CrashStates, Ending, Event, OutputStream};

use crate::explore::{
    CrashCandidate, CrashState, ExploreScope, FsModel, NodeId, OpEffect, Recording, RecordingSpec, copy_tree,
    enumerate, materialize,
};
use crate::observe::Reporter;
use crate::plan::{BaselineCounts, PlannedCrashState};
use crate::run::RunError;
use crate::run::trial_env::{TrialConfig, TrialEnv};
use crate::sandbox::{LaunchSpec, ProcessExit};
use crate::target::{OutputPatterns, ParsedLine};

/// A recorded run: from the untouched root, or from files that a first crash left.
pub(super) struct RecordedRun {
    recording: Recording,
    scope: ExploreScope,
    /// What its target had said, as events; the starts that there had been before it.
    announcements: Vec<(usize, Event)>,
    first_crash: Option<(Box<RecordedRun>, CrashState)>,
    /// Holds tape and originals; removed with it.
    dir: PathBuf,
    /// The root as its target saw it: each trial sees its own there.
    visible_root: PathBuf,
    /// Seconds since 1970.
    started_unix_s: i64,
}

/// Runs the target undisturbed, as the script says, in an empty folder.
pub(super) fn record(
    dir: &Path,
    script: TrialConfig<'_>,
    (wanted, most, turn): (&CrashStates, u32, u64),
) -> Result<RecordedRun, RunError> {
    let shown = dir.join("shown");
    std::fs::create_dir_all(&shown).map_err(|error| RunError::File {
        doing: "create",
        path: shown.clone(),
        error,
    })?;
    let first = dir.join("first");
    let stage = TrialEnv::unprepared(first.clone(), script, Some(&shown))?.into_prepared()?;
    let start = stage.trainer().start();
    let phase = wanted.phase.as_ref().and_then(|name| script.target.phases().get(name));
    let inner = phase.map(|phase| phase.begins().clone());
    let mut recorded = record_run(stage, script, &start, &first, inner)?;
    recorded.scope = scope(script, wanted, most);
    recorded.scope.crash_points = Some(crash_points(script, &recorded.recording, wanted, turn));
    if !wanted.in_recovery {
        return Ok(recorded);
    }
    let state = recorded.killed_midway();
    let second = dir.join("second");
    let stage = recorded.trial_env(second.clone(), script, &state)?;
    let resume = stage.trainer().resume();
    let scope = recorded.scope.clone();
    let mut again = record_run(stage, script, &resume, &second, None)?;
    again.first_crash = Some((Box::new(recorded), state));
    again.scope = ExploreScope { crash_points: Some(crash_points_of_recovery(&again, wanted)), ..scope };
    Ok(again)
}

fn record_run(
    stage: TrialEnv<'_>,
    script: TrialConfig<'_>,
    launch: &LaunchSpec,
    dir: &Path,
    inner: Option<Regex>,
) -> Result<RecordedRun, RunError> {
    let (root, originals) = (stage.sandbox.root().to_path_buf(), dir.join("originals"));
    copy_tree(&root, &originals).map_err(|error| RunError::File {
        doing: "copy",
        path: root.clone(),
        error,
    })?;
    let shown = stage.trainer().root.to_path_buf();
    let tape = RecordingSpec {
        command: launch,
        roots: &[(shown.clone(), root)],
        originals: &[originals],
        payload_log: &dir.join("tape"),
        saved_pattern: script.target.announces().saved().cloned(),
        internal_pattern: inner,
        cancelled: || false,
    };
    let (recording, ended, words) = tape.record(&stage.sandbox)?;
    stage.sandbox.close()?;
    if ended != Some(ProcessExit::Exited(0)) {
        let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let (ending, words) = (ProcessExit::describe(ended), last.into());
        return Err(RunError::Preparation { step: "recorded run", ending, words });
    }
    let heard = announcements(script, &recording);
    let began = jiff::Timestamp::now().as_second();
    let (scope, dir) = (ExploreScope::default(), dir.to_path_buf());
    Ok(RecordedRun {
        recording,
        scope,
        announcements: heard,
        first_crash: None,
        dir,
        visible_root: shown,
        started_unix_s: began,
    })
}

fn scope(script: TrialConfig<'_>, wanted: &CrashStates, most: u32) -> ExploreScope {
    let model = |of: &CrashModel| match of {
        CrashModel::Process => None,
        CrashModel::Ext4 => Some(FsModel::Ext4),
        CrashModel::Xfs => Some(FsModel::Xfs),
        CrashModel::Btrfs => Some(FsModel::Btrfs),
        CrashModel::Posix => Some(FsModel::Posix),
        CrashModel::Lying => Some(FsModel::Lying),
    };
    // A poisoned sample would have to be poisoned here as well: the checks allow no other fault beside this one.
    debug_assert!(script.poisoned_samples.is_empty());
    ExploreScope {
        process_crashes: wanted.models.contains(&CrashModel::Process),
        models: wanted.models.iter().filter_map(model).collect(),
        max_states: most as usize,
        crash_points: None,
    }
}

/// What the target said, where it means something, with the moment after it.
fn announcements(script: TrialConfig<'_>, recording: &Recording) -> Vec<(usize, Event)> {
    let words = OutputPatterns::new(script.target);
    let mut events = Vec::new();
    for (at, op) in recording.ops.iter().enumerate() {
        let OpEffect::Output { line, on_stdio: true, .. } = &op.effect else { continue };
        let event = match words.parse(line) {
            ParsedLine::Step { step, loss } => {
                Event::Step { step, loss: loss.filter(|loss| loss.is_finite()) }
            }
            ParsedLine::Saved { step } => Event::Saved { step },
            ParsedLine::Resumed { step } => Event::Resumed { step },
            ParsedLine::Other if words.has_compared_value(line) => {
                Event::Output { stream: OutputStream::Stdout, line: line.clone() }
            }
            ParsedLine::Other => continue,
        };
        events.push((at + 1, event));
    }
    events
}

/// Those of the phase's turn, up to the next one, and those at changes of the wanted paths.
fn crash_points(
    script: TrialConfig<'_>,
    recording: &Recording,
    wanted: &CrashStates,
    turn: u64,
) -> BTreeSet<usize> {
    let all = 0..=recording.ops.len();
    let phase = wanted.phase.as_ref().and_then(|name| script.target.phases().get(name));
    let stretch = phase.map_or(all.clone(), |phase| {
        let begins = |by_main: bool| -> Vec<usize> {
            let begins = recording.ops.iter().enumerate().filter_map(|(at, op)| match &op.effect {
                OpEffect::Output { line, on_stdio: own, .. }
                    if *own == by_main && phase.begins().is_match(line) =>
                {
                    Some(at + 1)
                }
                _ => None,
            });
            begins.collect()
        };
        // A worker's words are in order with its calls; its supervisor tells of them only later.
        let begins = Some(begins(false)).filter(|found| !found.is_empty()).unwrap_or_else(|| begins(true));
        let turn = (turn as usize).clamp(1, begins.len().max(1)) - 1;
        let from = begins.get(turn).copied().unwrap_or(0);
        from..=begins.get(turn + 1).copied().unwrap_or(recording.ops.len())
    });
    stretch.filter(|k| changes_selected_path(recording, wanted, *k)).collect()
}

fn changes_selected_path(recording: &Recording, wanted: &CrashStates, k: usize) -> bool {
    let Some(on) = &wanted.paths else { return true };
    let Some(at) = k.checked_sub(1) else { return false };
    let root = &recording.roots[0];
    let is_wanted = |path: PathBuf| path.strip_prefix(root).is_ok_and(|below| on.is_match(below));
    let named = |node: NodeId| is_wanted(recording.path_of(node, at));
    match &recording.ops[at].effect {
        OpEffect::NameChanges(changes) => {
            changes.iter().any(|change| is_wanted(recording.path_of(change.dir, at).join(&change.name)))
        }
        OpEffect::Write { node, .. }
        | OpEffect::Resize { node, .. }
        | OpEffect::Zero { node, .. }
        | OpEffect::Sync { node, .. } => named(*node),
        OpEffect::SyncAll => true,
        OpEffect::Output { .. } => false,
    }
}

/// Up to the first thing that the recovery promises: what comes then is training as usual.
fn crash_points_of_recovery(again: &RecordedRun, wanted: &CrashStates) -> BTreeSet<usize> {
    let promise = again.announcements.iter().find(|(_, event)| matches!(event, Event::Saved { .. }));
    let to = promise.map_or(again.recording.ops.len(), |(k, _)| *k);
    (0..=to).filter(|k| changes_selected_path(&again.recording, wanted, *k)).collect()
}

impl RecordedRun {
    /// All its crash states, for a plan to unfold over.
    pub(super) fn counts(&self) -> BaselineCounts {
        let found = enumerate(&self.recording, &self.scope);
        let states = found.states.into_iter().map(|state| {
            let words = match &self.first_crash {
                Some((first, before)) => {
                    format!("{}; in the recovery {}", first.describe(before), self.describe(&state))
                }
                None => self.describe(&state),
            };
            PlannedCrashState { state, description: words }
        });
        BaselineCounts {
            crash_states: states.collect(),
            crash_states_left_out: found.counts.left_out.values().sum(),
            ..BaselineCounts::default()
        }
    }

    fn describe(&self, state: &CrashState) -> String {
        state.describe(&self.recording)
    }

    /// Killed when half of the moments were over.
    fn killed_midway(&self) -> CrashState {
        let moments = self.scope.crash_points.iter().flatten();
        let count = moments.clone().count();
        let k = moments.copied().nth(count / 2).unwrap_or(0);
        CrashState::after_process_crash(&self.recording, CrashCandidate::whole(k))
    }

    /// A stage with these files.
    pub(super) fn trial_env<'a>(
        &self,
        dir: PathBuf,
        script: TrialConfig<'a>,
        state: &CrashState,
    ) -> Result<TrialEnv<'a>, RunError> {
        let stage = TrialEnv::unprepared(dir.clone(), script, Some(&self.visible_root))?;
        let base = dir.join("room");
        materialize(&self.recording, state.candidate(), (&base, vec!["root".into()]), self.started_unix_s)
            .map_err(|error| RunError::File { doing: "lay out a crash state in", path: base, error })?;
        Ok(stage)
    }

    /// Tells what had happened before the crash, and the crash; how many starts that were.
    pub(super) fn emit_history(&self, state: &CrashState, reporter: &Reporter) -> u32 {
        let starts =
            self.first_crash.as_ref().map_or(0, |(first, before)| first.emit_history(before, reporter));
        let Some((_, way)) = state.strictest_witness() else { return starts };
        let k = way.candidate.op_count as usize;
        let said: Vec<&Event> =
            self.announcements.iter().take_while(|(at, _)| *at <= k).map(|(_, event)| event).collect();
        // Of many steps and saves only the last say anything, but each value counts.
        let last = |is: fn(&Event) -> bool| said.iter().rposition(|event| is(event));
        let kept = [
            last(|event| matches!(event, Event::Step { .. })),
            last(|event| matches!(event, Event::Saved { .. })),
        ];
        for (at, event) in said.iter().enumerate() {
            let dull = matches!(event, Event::Step { .. } | Event::Saved { .. });
            if !dull || kept.contains(&Some(at)) {
                reporter.emit((*event).clone());
            }
        }
        let fault = "crash-states".to_owned();
        let mechanism = "a recorded run's files, laid out as the crash leaves them".to_owned();
        reporter.emit(Event::FaultArmed { fault: fault.clone(), mechanism });
        reporter.emit(Event::FaultEffective { fault, evidence: state.evidence(&self.recording) });
        reporter.emit(Event::TargetEnded { attempt: starts + 1, ending: Ending::KilledByFault });
        starts + 1
    }
}

impl Drop for RecordedRun {
    fn drop(&mut self) {
        // What can't be removed here goes with the run's folder.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
