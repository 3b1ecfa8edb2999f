//! Controls of a target: before any trial is judged, it is resumed from the files that its baseline left at the end,
//! and from those right after its saves, without any fault. Scenarios with the same target and workload share them.
//! Gives no verdict.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use scenarios::{
    AnnouncedSave, BaselineFacts, EndResume, Ending, Event, Outcome, RecordEntry, SaveControl, Scenario,
    TrialFacts,
};

use crate::file_error::chain;
use crate::judge::{TrialEvents, trial_facts};
use crate::locks::LockExt;
use crate::observe::Reporter;
use crate::run::error::RunError;
use crate::run::fault_schedule::FaultSchedule;
use crate::run::resume_check;
use crate::run::save_snapshots::{SaveSnapshot, announced_save};
use crate::run::target_run::TargetRun;
use crate::run::trial_env::{TrialConfig, TrialEnv};

/// The controls of one target and workload.
#[derive(Debug, Clone, Default)]
pub(super) struct TargetControls {
    pub(super) end: Option<EndResume>,
    pub(super) saves: Vec<SaveControl>,
}

/// The controls of one target and workload, once they are known.
type ControlSlot = Arc<Mutex<Option<TargetControls>>>;

/// The controls of a suite, by a hash of everything that they depend on.
#[derive(Default)]
pub(super) struct ControlCache {
    slots: Mutex<HashMap<blake3::Hash, ControlSlot>>,
}

/// A baseline that has ended, and its files.
pub(super) struct EndedBaseline<'a> {
    pub(super) env: &'a TrialEnv<'a>,
    pub(super) config: TrialConfig<'a>,
    pub(super) scenario: &'a Scenario,
    pub(super) facts: &'a BaselineFacts,
    pub(super) entries: &'a [RecordEntry],
    pub(super) snapshots: &'a [SaveSnapshot],
    /// Where sandboxes can be built.
    pub(super) dir: &'a Path,
    pub(super) reporter: &'a Reporter,
}

impl ControlCache {
    /// Returns the controls from the cache, or makes them.
    ///
    /// # Errors
    /// If a sandbox fails, or files cannot be copied.
    pub(super) fn get(&self, baseline: &EndedBaseline<'_>) -> Result<TargetControls, RunError> {
        let TrialConfig { target, program, workload, host_access, .. } = baseline.config;
        let key = format!("{target:?} {program:?} {workload:?} {host_access:?}");
        let slot = Arc::clone(self.slots.locked().entry(blake3::hash(key.as_bytes())).or_default());
        let mut known = slot.locked();
        if let Some(controls) = &*known {
            return Ok(controls.clone());
        }
        let controls = baseline.controls()?;
        *known = Some(controls.clone());
        Ok(controls)
    }
}

impl EndedBaseline<'_> {
    fn controls(&self) -> Result<TargetControls, RunError> {
        let end = resume_check::control(self.env, self.entries)?;
        let numbered = self.snapshots.iter().zip(1..);
        let saves = numbered.filter_map(|(snapshot, number)| self.save_control(snapshot, number).transpose());
        Ok(TargetControls { end, saves: saves.collect::<Result<_, _>>()? })
    }

    /// Resumes from the files right after a save, as after a kill at this moment. `None`: it is not known what the
    /// target had announced then.
    fn save_control(&self, snapshot: &SaveSnapshot, number: u32) -> Result<Option<SaveControl>, RunError> {
        let Some(history) = self.entries_up_to(snapshot) else { return Ok(None) };
        if let Some(why) = &snapshot.failure {
            return Ok(Some(not_copied(snapshot, why)));
        }
        let reporter = self.reporter.for_unreported_run();
        history.iter().for_each(|entry| reporter.emit_at(entry.at_us, entry.event.clone()));
        reporter.emit(Event::TargetEnded { attempt: 1, ending: Ending::KilledByFault, exit_code: None });
        let dir = self.dir.join(format!("control-{number}"));
        let env = match TrialEnv::of_files(dir, self.config, &snapshot.files, self.env) {
            Err(RunError::File(error)) => return Ok(Some(not_copied(snapshot, &chain(&error)))),
            env => env?,
        };
        let trainer = env.trainer();
        let clock = Arc::default();
        let context = env.fault_context(&trainer, None, &clock);
        let faults = FaultSchedule::of_baseline(&[], &reporter);
        let mut run = TargetRun::new(context, &reporter, self.scenario, faults, None);
        run.run(1)?;
        run.emit_last_lines();
        env.sandbox.close()?;
        let entries = reporter.entries();
        Ok(Some(self.judged(&snapshot.save, &entries, history.len())))
    }

    /// `entries`: the history, and what the resume announced.
    fn judged(&self, save: &AnnouncedSave, entries: &[RecordEntry], history_len: usize) -> SaveControl {
        let facts = trial_facts(&TrialEvents {
            target: self.config.target,
            baseline: self.facts,
            comparable: true,
            same_workload: true,
            adds_work: false,
            makes_calls_fail: false,
            entries,
        });
        let resumed = &entries[history_len..];
        let is_reported = resumed.iter().any(|entry| matches!(entry.event, Event::Resumed { .. }));
        let first_step = resumed.iter().find_map(|entry| match entry.event {
            Event::Step { step, .. } => Some(step),
            _ => None,
        });
        let resumes_silently = !is_reported && first_step > self.facts.progress.first_step.or(first_step);
        let TrialFacts { outcome, because, said, .. } = facts;
        let last_line = || {
            resumed.iter().rev().find_map(|entry| match &entry.event {
                Event::Output { line, .. } => Some(line.clone()),
                _ => None,
            })
        };
        let said = if outcome == Outcome::Recovered { said } else { said.or_else(last_line) };
        SaveControl { save: save.clone(), outcome, because, resumes_silently, said }
    }

    /// The entries up to the line of a save. `None`: the line did not arrive.
    fn entries_up_to(&self, snapshot: &SaveSnapshot) -> Option<&[RecordEntry]> {
        let nth = usize::try_from(snapshot.nth).ok()?.checked_sub(1)?;
        let found = |(index, entry): (usize, &RecordEntry)| Some((index, announced_save(&entry.event)?));
        let mut saves = self.entries.iter().enumerate().filter_map(found);
        let (end, _) = saves.nth(nth).filter(|(_, save)| *save == snapshot.save)?;
        Some(&self.entries[..=end])
    }
}

/// The control of files that could not be copied, such as those that only the target may read.
fn not_copied(snapshot: &SaveSnapshot, why: &str) -> SaveControl {
    SaveControl {
        save: snapshot.save.clone(),
        outcome: Outcome::NotJudged,
        because: format!("the files could not be copied: {why}"),
        resumes_silently: false,
        said: None,
    }
}
