//! Crash states as trials: one undisturbed run is recorded, and each set of files that a crash may leave of it is where
//! a trial begins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;
use scenarios::{CrashOf, CrashStates, Ending, Event, Stream};

use crate::explore::{
    Candidate, Model, NodeId, Recording, Scope, State, Tape, What, copy_tree, enumerate, lay_out,
};
use crate::observe::Reporter;
use crate::plan::{Counts, CrashState};
use crate::run::RunError;
use crate::run::stage::{Script, Stage};
use crate::sandbox::{Ended, Launch};
use crate::target::{Heard, Words};

/// A recorded run: from the untouched root, or from files that a first crash left.
pub(super) struct Recorded {
    recording: Recording,
    scope: Scope,
    /// What its target had said, as events; the starts that there had been before it.
    heard: Vec<(usize, Event)>,
    before: Option<(Box<Recorded>, State)>,
    /// Holds tape and originals; removed with it.
    dir: PathBuf,
    /// The root as its target saw it: each trial sees its own there.
    shown: PathBuf,
    /// Seconds since 1970.
    began: i64,
}

/// Runs the target undisturbed, as the script says, in an empty folder.
pub(super) fn record(
    dir: &Path,
    script: Script<'_>,
    (wanted, most, turn): (&CrashStates, u32, u64),
) -> Result<Recorded, RunError> {
    let shown = dir.join("shown");
    std::fs::create_dir_all(&shown).map_err(|error| RunError::File {
        doing: "create",
        path: shown.clone(),
        error,
    })?;
    let first = dir.join("first");
    let stage = Stage::empty(first.clone(), script, Some(&shown))?.prepared()?;
    let start = stage.trainer().start();
    let phase = wanted.during.as_ref().and_then(|name| script.target.phases().get(name));
    let inner = phase.map(|phase| phase.begins().clone());
    let mut recorded = taped(stage, script, &start, &first, inner)?;
    recorded.scope = scope(script, wanted, most);
    recorded.scope.moments = Some(moments(script, &recorded.recording, wanted, turn));
    if !wanted.again {
        return Ok(recorded);
    }
    let state = recorded.in_the_middle();
    let second = dir.join("second");
    let stage = recorded.stage(second.clone(), script, &state)?;
    let resume = stage.trainer().resume();
    let scope = recorded.scope.clone();
    let mut again = taped(stage, script, &resume, &second, None)?;
    again.before = Some((Box::new(recorded), state));
    again.scope = Scope { moments: Some(of_recovery(&again, wanted)), ..scope };
    Ok(again)
}

fn taped(
    stage: Stage<'_>,
    script: Script<'_>,
    launch: &Launch,
    dir: &Path,
    inner: Option<Regex>,
) -> Result<Recorded, RunError> {
    let (root, originals) = (stage.room.root().to_path_buf(), dir.join("originals"));
    copy_tree(&root, &originals).map_err(|error| RunError::File {
        doing: "copy",
        path: root.clone(),
        error,
    })?;
    let shown = stage.trainer().root.to_path_buf();
    let tape = Tape {
        command: launch,
        roots: &[(shown.clone(), root)],
        originals: &[originals],
        tape: &dir.join("tape"),
        saved: script.target.announces().saved().cloned(),
        inner,
        cancelled: || false,
    };
    let (recording, ended, words) = tape.record(&stage.room)?;
    stage.room.close()?;
    if ended != Some(Ended::Exited(0)) {
        let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let (ending, words) = (Ended::words(ended), last.into());
        return Err(RunError::Preparation { step: "recorded run", ending, words });
    }
    let heard = heard(script, &recording);
    let began = jiff::Timestamp::now().as_second();
    let (scope, dir) = (Scope::default(), dir.to_path_buf());
    Ok(Recorded { recording, scope, heard, before: None, dir, shown, began })
}

fn scope(script: Script<'_>, wanted: &CrashStates, most: u32) -> Scope {
    let model = |of: &CrashOf| match of {
        CrashOf::Process => None,
        CrashOf::Ext4 => Some(Model::Ext4),
        CrashOf::Xfs => Some(Model::Xfs),
        CrashOf::Btrfs => Some(Model::Btrfs),
        CrashOf::Posix => Some(Model::Posix),
        CrashOf::LyingDisk => Some(Model::Lying),
    };
    // A poisoned sample would have to be poisoned here as well: the checks allow no other fault beside this one.
    debug_assert!(script.poisoned.is_empty());
    Scope {
        process: wanted.of.contains(&CrashOf::Process),
        models: wanted.of.iter().filter_map(model).collect(),
        max_states: most as usize,
        moments: None,
    }
}

/// What the target said, where it means something, with the moment after it.
fn heard(script: Script<'_>, recording: &Recording) -> Vec<(usize, Event)> {
    let words = Words::new(script.target);
    let mut events = Vec::new();
    for (at, op) in recording.ops.iter().enumerate() {
        let What::Said { line, own: true, .. } = &op.what else { continue };
        let event = match words.hear(line) {
            Heard::Step { step, loss } => Event::Step { step, loss: loss.filter(|loss| loss.is_finite()) },
            Heard::Saved { step } => Event::Saved { step },
            Heard::Resumed { step } => Event::Resumed { step },
            Heard::Other if words.carries_value(line) => {
                Event::Said { stream: Stream::Stdout, line: line.clone() }
            }
            Heard::Other => continue,
        };
        events.push((at + 1, event));
    }
    events
}

/// Those of the phase's turn, up to the next one, and those at changes of the wanted paths.
fn moments(script: Script<'_>, recording: &Recording, wanted: &CrashStates, turn: u64) -> BTreeSet<usize> {
    let all = 0..=recording.ops.len();
    let phase = wanted.during.as_ref().and_then(|name| script.target.phases().get(name));
    let stretch = phase.map_or(all.clone(), |phase| {
        let begins = |by_main: bool| -> Vec<usize> {
            let begins = recording.ops.iter().enumerate().filter_map(|(at, op)| match &op.what {
                What::Said { line, own, .. } if *own == by_main && phase.begins().is_match(line) => {
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
    stretch.filter(|k| at_wanted_path(recording, wanted, *k)).collect()
}

fn at_wanted_path(recording: &Recording, wanted: &CrashStates, k: usize) -> bool {
    let Some(on) = &wanted.on else { return true };
    let Some(at) = k.checked_sub(1) else { return false };
    let root = &recording.roots[0];
    let is_wanted = |path: PathBuf| path.strip_prefix(root).is_ok_and(|below| on.is_match(below));
    let named = |node: NodeId| is_wanted(recording.path_of(node, at));
    match &recording.ops[at].what {
        What::Names(changes) => {
            changes.iter().any(|change| is_wanted(recording.path_of(change.dir, at).join(&change.name)))
        }
        What::Write { node, .. }
        | What::Resize { node, .. }
        | What::Zero { node, .. }
        | What::Sync { node, .. } => named(*node),
        What::SyncAll => true,
        What::Said { .. } => false,
    }
}

/// Up to the first thing that the recovery promises: what comes then is training as usual.
fn of_recovery(again: &Recorded, wanted: &CrashStates) -> BTreeSet<usize> {
    let promise = again.heard.iter().find(|(_, event)| matches!(event, Event::Saved { .. }));
    let to = promise.map_or(again.recording.ops.len(), |(k, _)| *k);
    (0..=to).filter(|k| at_wanted_path(&again.recording, wanted, *k)).collect()
}

impl Recorded {
    /// All its crash states, for a plan to unfold over.
    pub(super) fn counts(&self) -> Counts {
        let found = enumerate(&self.recording, &self.scope);
        let states = found.states.into_iter().map(|state| {
            let words = match &self.before {
                Some((first, before)) => {
                    format!("{}; in the recovery {}", first.words(before), self.words(&state))
                }
                None => self.words(&state),
            };
            CrashState { state, words }
        });
        Counts {
            states: states.collect(),
            states_left_out: found.counted.left_out.values().sum(),
            ..Counts::default()
        }
    }

    fn words(&self, state: &State) -> String {
        state.words(&self.recording)
    }

    /// Killed when half of the moments were over.
    fn in_the_middle(&self) -> State {
        let moments = self.scope.moments.iter().flatten();
        let count = moments.clone().count();
        let k = moments.copied().nth(count / 2).unwrap_or(0);
        State::of_kill(&self.recording, Candidate::whole(k))
    }

    /// A stage with these files.
    pub(super) fn stage<'a>(
        &self,
        dir: PathBuf,
        script: Script<'a>,
        state: &State,
    ) -> Result<Stage<'a>, RunError> {
        let stage = Stage::empty(dir.clone(), script, Some(&self.shown))?;
        let base = dir.join("room");
        lay_out(&self.recording, state.candidate(), (&base, vec!["root".into()]), self.began)
            .map_err(|error| RunError::File { doing: "lay out a crash state in", path: base, error })?;
        Ok(stage)
    }

    /// Tells what had happened before the crash, and the crash; how many starts that were.
    pub(super) fn tell(&self, state: &State, reporter: &Reporter) -> u32 {
        let starts = self.before.as_ref().map_or(0, |(first, before)| first.tell(before, reporter));
        let Some((_, way)) = state.hardest() else { return starts };
        let k = way.candidate.k as usize;
        let said: Vec<&Event> =
            self.heard.iter().take_while(|(at, _)| *at <= k).map(|(_, event)| event).collect();
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
        reporter.emit(Event::FaultLanded { fault, evidence: state.evidence(&self.recording) });
        reporter.emit(Event::TargetEnded { attempt: starts + 1, ending: Ending::Struck });
        starts + 1
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // What can't be removed here goes with the run's folder.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
