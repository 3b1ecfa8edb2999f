//! Derives the facts of a trial, such as its outcome, from its events. Pure: no clock, no files, no
//! processes. Knows no expectation.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::{
    BaselineFacts, Cause, EndResume, Ending, Event, FaultId, NotEffective, Outcome, OutputStream, ProbeKind,
    Probed, RecordEntry, ResourceUse, SaveControl, TargetFile, TrialFacts, last_attempt,
};

use super::end_resume;
use super::followed_run::FollowedRun;
use crate::announcements::error_line;

/// The events of a trial, with what is needed to interpret them.
pub struct TrialEvents<'a> {
    /// The target file, for its patterns and exit codes.
    pub target: &'a TargetFile,
    /// What the trial is compared with.
    pub baseline: &'a BaselineFacts,
    /// Whether the faults leave the workload unchanged, so that the values at the end must equal the
    /// baseline's.
    pub comparable: bool,
    /// Whether the faults leave the workload unchanged, so that the steps must be the baseline's.
    pub same_workload: bool,
    /// Whether a fault gives the target more to do, so that it ends with more values than the baseline.
    pub adds_work: bool,
    /// Whether a fault makes calls of the target fail.
    pub makes_calls_fail: bool,
    /// The record entries of the trial, in order. Only its last attempt counts.
    pub entries: &'a [RecordEntry],
}

/// Facts collected so far.
struct FactCollector<'a> {
    followed: FollowedRun<'a>,
    description: String,
    evidence: Vec<(FaultId, String)>,
    /// The faults without evidence that are not optional, each with what is known of the reason.
    not_effective: BTreeMap<FaultId, NotEffective>,
    optional: BTreeSet<FaultId>,
    effective_at_us: Option<u64>,
    recovery_seconds: Option<f64>,
    endings: Vec<Ending>,
    probes: Vec<Probed>,
    /// Last announced step, and its loss.
    final_step: Option<(u64, Option<f64>)>,
    /// The last step before an exit with 0 that left work, which a signal had asked for.
    stopped_with_zero: Option<u64>,
    /// A fault has been effective since the target was started.
    is_after_effect: bool,
    /// A save was announced in the same start of the target in which a fault had been effective.
    saved_after_effect: bool,
    /// What is wrong with the files that were left at the end.
    end_resume: Option<(Outcome, String)>,
    /// The target was resumed from the files of its end.
    is_end_asked: bool,
    /// Why a resume from such files was not tried, if so.
    not_resumed: Option<String>,
    /// What the target said then.
    said_by_resume: Option<String>,
    gpu_defects: Vec<String>,
}

/// Derives the facts of a trial from its events.
pub fn trial_facts(events: &TrialEvents<'_>) -> TrialFacts {
    let mut collector = FactCollector::new(events);
    let entries = last_attempt(events.entries);
    entries.iter().for_each(|entry| collector.on_event(entry, events));
    collector.followed.values.sort();
    collector.followed.values.dedup();
    let same = same_as_baseline(&collector.followed.values, events);
    let (outcome, because) = collector.outcome(events, same);
    let because = collector.with_cause(outcome, because, events);
    let said = collector.said(outcome, entries);
    let worst = collector.followed.ledger.worst_resume();
    let seconds_between = |first: &RecordEntry, last: &RecordEntry| (last.at_us - first.at_us) as f64 / 1e6;
    TrialFacts {
        outcome,
        because,
        said,
        step_at_fault: worst.map(|resume| resume.step_at_fault),
        acknowledged: worst.and_then(|resume| resume.acknowledged),
        resumed_from: worst.map(|resume| resume.resumed_from),
        lost_steps: Some(worst.map_or(0, |resume| resume.lost_steps())),
        recovery_seconds: collector.recovery_seconds,
        restarts: collector.restarts(),
        same_as_baseline: same,
        peak_memory_bytes: peak_memory_bytes(entries),
        resource_use: resource_use(entries),
        seconds: entries
            .first()
            .zip(entries.last())
            .map_or(0.0, |(first, last)| seconds_between(first, last)),
        what: collector.description,
        evidence: collector.evidence.into_iter().map(|(_, evidence)| evidence).collect(),
        not_effective: collector.not_effective.into_values().collect(),
        same: collector.followed.values,
        probes: collector.probes,
        final_step: collector.final_step.map(|(step, _)| step),
        final_loss: collector.final_step.and_then(|(_, loss)| loss),
        gpu_defects: collector.gpu_defects,
    }
}

fn peak_memory_bytes(entries: &[RecordEntry]) -> Option<u64> {
    entries
        .iter()
        .filter_map(
            |entry| if let Event::Memory { peak_bytes } = entry.event { Some(peak_bytes) } else { None },
        )
        .max()
}

fn resource_use(entries: &[RecordEntry]) -> Option<ResourceUse> {
    let seen = entries.iter().filter_map(|entry| match entry.event {
        Event::Resources(seen) => Some(seen),
        _ => None,
    });
    seen.reduce(ResourceUse::max)
}

fn same_as_baseline(values: &[String], events: &TrialEvents<'_>) -> Option<bool> {
    let baseline = &events.baseline.same;
    (events.comparable && !baseline.is_empty()).then(|| match events.adds_work {
        true => baseline.iter().all(|value| values.contains(value)),
        false => values == *baseline,
    })
}

impl<'a> FactCollector<'a> {
    fn new(events: &TrialEvents<'a>) -> FactCollector<'a> {
        FactCollector {
            followed: FollowedRun::new(events.target, &events.baseline.progress)
                .with_more_jobs(events.adds_work),
            description: String::new(),
            evidence: Vec::new(),
            not_effective: BTreeMap::new(),
            optional: BTreeSet::new(),
            effective_at_us: None,
            recovery_seconds: None,
            endings: Vec::new(),
            probes: Vec::new(),
            final_step: None,
            stopped_with_zero: None,
            is_after_effect: false,
            saved_after_effect: false,
            end_resume: None,
            said_by_resume: None,
            is_end_asked: false,
            not_resumed: None,
            gpu_defects: Vec::new(),
        }
    }

    fn on_event(&mut self, entry: &RecordEntry, events: &TrialEvents<'_>) {
        self.followed.on_event(&entry.event);
        match &entry.event {
            Event::TrialStarted { what, .. } => self.description.clone_from(what),
            Event::FaultArmed { fault, optional: false, .. } => {
                // The reason is known at the end of the trial.
                let why = "the trial did not say what came of it".to_owned();
                let armed = NotEffective { fault: fault.clone(), why, not_reached: false };
                self.not_effective.insert(fault.clone(), armed);
            }
            Event::FaultArmed { fault, optional: true, .. } => {
                self.optional.insert(fault.clone());
            }
            // Evidence from before, if there is any, does not count after all.
            Event::FaultNotEffective(not_effective) => {
                let fault = &not_effective.fault;
                self.evidence.retain(|(of, _)| of != fault);
                if !self.optional.contains(fault) {
                    self.not_effective.insert(fault.clone(), not_effective.clone());
                }
            }
            Event::FaultEffective { fault, evidence } => {
                self.not_effective.remove(fault);
                self.evidence.push((fault.clone(), evidence.clone()));
                self.effective_at_us.get_or_insert(entry.at_us);
                self.is_after_effect = true;
            }
            Event::Step { step, loss, .. } => {
                self.final_step = Some((*step, *loss));
                if let Some(effective_at_us) = self.effective_at_us {
                    self.recovery_seconds.get_or_insert((entry.at_us - effective_at_us) as f64 / 1e6);
                }
            }
            Event::Saved { .. } => self.saved_after_effect |= self.is_after_effect,
            Event::TargetEnded { ending, exit_code, .. } => self.on_ended(*ending, *exit_code),
            Event::EndResumed(resume) => self.on_end_resume(resume, events),
            Event::Probed(probed) => self.probes.push(probed.clone()),
            Event::GpuDefect { what } => self.gpu_defects.push(what.clone()),
            _ => {}
        }
    }

    fn on_ended(&mut self, ending: Ending, exit_code: Option<i32>) {
        self.endings.push(ending);
        self.is_after_effect = false;
        if exit_code == Some(0) && self.followed.ledger.has_work_left() {
            self.stopped_with_zero = self.final_step.map(|(step, _)| step);
        }
    }

    fn on_end_resume(&mut self, resume: &EndResume, events: &TrialEvents<'_>) {
        if let Some(why) = &resume.not_tried {
            self.not_resumed.get_or_insert_with(|| format!("its files could not be read: {why}"));
            return;
        }
        self.is_end_asked |= resume.after_save.is_none();
        // A line without a name may be about a job that the fault has added.
        let is_of_unknown_job = resume.after_save.as_ref().is_some_and(|save| save.job.is_none());
        if events.adds_work && is_of_unknown_job {
            return;
        }
        let is_refused = |code: &i32| events.target.refused_exits().contains(code);
        let fault = end_resume::fault(resume, events.baseline, &self.followed.ledger, is_refused);
        let fault = fault.or_else(|| {
            let is_comparable = events.comparable && !events.adds_work && !events.baseline.same.is_empty();
            end_resume::other_values(resume, events.baseline).filter(|_| is_comparable)
        });
        if self.end_resume.is_none() && fault.is_some() {
            (self.end_resume, self.said_by_resume) = (fault, resume.said.clone());
        }
    }

    /// The line that explains best why the target failed, of its last start or of the resume that failed.
    fn said(&self, outcome: Outcome, entries: &[RecordEntry]) -> Option<String> {
        if !matches!(outcome, Outcome::Crashed | Outcome::Hung | Outcome::Refused | Outcome::EndedEarly) {
            return None;
        }
        if self.said_by_resume.is_some() {
            return self.said_by_resume.clone();
        }
        let is_start = |entry: &RecordEntry| matches!(entry.event, Event::TargetStarted(_));
        let last_start = entries.iter().rposition(is_start).unwrap_or(0);
        let lines_of = |of: OutputStream| {
            let lines = entries[last_start..].iter().filter_map(|entry| match &entry.event {
                Event::Output { stream, line } if *stream == of => Some(line.as_str()),
                _ => None,
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        let line = error_line(&lines_of(OutputStream::Stdout), &lines_of(OutputStream::Stderr));
        Some(line).filter(|line| !line.is_empty())
    }

    /// Restarts that the method itself did not cause.
    fn restarts(&self) -> u32 {
        let before_last = self.endings.split_last().map_or(&[][..], |(_, before)| before);
        u32::try_from(before_last.iter().filter(|ending| **ending != Ending::KilledByFault).count())
            .unwrap_or(u32::MAX)
    }

    fn outcome(&self, events: &TrialEvents<'_>, same: Option<bool>) -> (Outcome, String) {
        match self.endings.last() {
            None => (Outcome::Crashed, "the target never ended by itself".into()),
            Some(Ending::TimedOut) => {
                (Outcome::Hung, "no output, or no exit, within the target file's timeouts".into())
            }
            Some(Ending::KilledByFault) => {
                (Outcome::Crashed, "the target did not run again after the fault".into())
            }
            Some(Ending::Signalled(signal)) => (Outcome::Crashed, format!("died by signal {signal}")),
            Some(Ending::Exited(0)) => self.outcome_of_success(events, same),
            Some(Ending::Exited(code)) if events.target.refused_exits().contains(code) => {
                (Outcome::Refused, format!("refused with exit code {code}"))
            }
            Some(Ending::Exited(code)) => {
                (Outcome::Crashed, format!("exit code {code}, which is not documented as a refusal"))
            }
        }
    }

    fn outcome_of_success(&self, events: &TrialEvents<'_>, same: Option<bool>) -> (Outcome, String) {
        let has_failed = |probe: &&Probed| probe.kind == ProbeKind::Verifies && !probe.held;
        if let Some(failed) = self.probes.iter().find(has_failed) {
            return (Outcome::Corrupt, format!("the target's own check failed: {}", failed.found));
        }
        let baseline = &events.baseline.same;
        let is_wrong = self.followed.values.iter().any(|value| !baseline.contains(value));
        if same == Some(false) && is_wrong {
            let (values, baseline) = (self.followed.values.join(", "), baseline.join(", "));
            return (Outcome::Corrupt, format!("ended with [{values}], the baseline run with [{baseline}]"));
        }
        if let Some(broken) = self.broken_promise() {
            return broken;
        }
        if let Some(early) = self.end_too_early(events, same) {
            return (Outcome::EndedEarly, early);
        }
        if let Some(fault) = self.followed.ledger.order_fault().filter(|_| events.same_workload) {
            return (Outcome::Corrupt, fault.to_string());
        }
        if let Some((outcome, because)) = self.end_resume.clone() {
            return (outcome, because);
        }
        if !self.is_judged(events, same) {
            let because = "exit code 0, and nothing tells whether that is right: the target file declares neither \
                           `saved` nor `same`";
            return (Outcome::NotJudged, because.into());
        }
        if self.followed.ledger.has_unclear_resume() {
            let because = "the target began a job again whose line names none: one that had an acknowledged step, or one that \
                           the fault has added";
            return (Outcome::NotJudged, because.into());
        }
        if let Some(unasked) = self.unasked_promises(events) {
            return (Outcome::NotJudged, unasked);
        }
        let recovered = match self.followed.ledger.worst_resume() {
            Some(resume) => {
                format!("resumed from step {} after step {}", resume.resumed_from, resume.step_at_fault)
            }
            None => "continued without a restart".into(),
        };
        (Outcome::Recovered, recovered)
    }

    /// Names the cause of what no kill explains: a call failed, and a save was announced all the same.
    fn with_cause(&self, outcome: Outcome, because: String, events: &TrialEvents<'_>) -> String {
        let is_damage = matches!(
            outcome,
            Outcome::Crashed | Outcome::Refused | Outcome::Corrupt | Outcome::LostWork | Outcome::Restarted
        );
        match is_damage && events.makes_calls_fail && self.saved_after_effect {
            true => {
                format!("{} (saves were announced after a call had failed): {because}", Cause::ErrorSwallowed)
            }
            false => because,
        }
    }

    /// Whether anything but the exit code and the number of steps shows that the target is right.
    fn is_judged(&self, events: &TrialEvents<'_>, same: Option<bool>) -> bool {
        let verifies = |probe: &Probed| probe.kind == ProbeKind::Verifies && probe.held;
        same.is_some() || events.target.announces().saved().is_some() || self.probes.iter().any(verifies)
    }

    /// Why it is not known whether a save that was acknowledged after a fault is there, if so.
    fn unasked_promises(&self, events: &TrialEvents<'_>) -> Option<String> {
        if !self.saved_after_effect || self.followed.ledger.worst_resume().is_some() {
            return None;
        }
        let controls = &events.baseline.progress.save_controls;
        let failing = controls.iter().find(|control| control.outcome != Outcome::Recovered);
        let why = match failing {
            Some(SaveControl { save, outcome: Outcome::NotJudged, because, .. }) => {
                format!("of the save of {save} in the baseline, {because}")
            }
            Some(SaveControl { save, .. }) => {
                format!("the target does not resume from the save of {save} even without a fault")
            }
            None if self.is_end_asked => return None,
            None => {
                let no_controls = events.baseline.progress.no_save_controls.clone();
                self.not_resumed.clone().or(no_controls)?
            }
        };
        Some(format!(
            "saves were acknowledged after the fault, and nothing tells whether they are there: {why}"
        ))
    }

    /// What was promised and is not there any more.
    fn broken_promise(&self) -> Option<(Outcome, String)> {
        if let Some(again) = self.followed.ledger.done_again() {
            return Some((Outcome::Restarted, again.to_string()));
        }
        let resume = self.followed.ledger.worst_resume().filter(|resume| resume.is_broken_promise())?;
        Some(end_resume::lost(resume.resumed_from, resume.acknowledged?))
    }

    /// Why the end came before that of the baseline, if it did.
    fn end_too_early(&self, events: &TrialEvents<'_>, same: Option<bool>) -> Option<String> {
        if !events.same_workload {
            return None;
        }
        if let Some(step) = self.stopped_with_zero.filter(|_| !events.target.stops_with_zero()) {
            return Some(format!(
                "exited with 0 after step {step} when a signal asked it to stop, although work was left"
            ));
        }
        if let Some(early) = self.followed.ledger.early_end() {
            return Some(early.to_string());
        }
        let (values, baseline) = (self.followed.values.join(", "), events.baseline.same.join(", "));
        (same == Some(false)).then(|| format!("ended with [{values}], the baseline run with [{baseline}]"))
    }
}
