//! Derives the facts of a trial, such as its outcome, from its events. Pure: no clock, no files, no
//! processes. Knows no expectation.

use std::collections::BTreeMap;

use scenarios::{
    BaselineFacts, Ending, Event, FaultId, NotEffective, Outcome, ProbeKind, Probed, RecordEntry, TargetFile,
    TrialFacts, last_attempt,
};

/// The events of a trial, with what is needed to interpret them.
pub struct TrialEvents<'a> {
    /// The target file, for its patterns and exit codes.
    pub target: &'a TargetFile,
    /// What the trial is compared with.
    pub baseline: &'a BaselineFacts,
    /// Whether the faults leave the workload unchanged, so that the values at the end must equal the
    /// baseline's.
    pub comparable: bool,
    /// The record entries of the trial, in order. Only its last attempt counts.
    pub entries: &'a [RecordEntry],
}

/// Facts collected so far. `last_step` and `acknowledged` are reset when a job ends.
#[derive(Default)]
struct FactCollector {
    description: String,
    evidence: Vec<String>,
    /// The faults without evidence that are not optional, each with what is known of the reason.
    not_effective: BTreeMap<FaultId, NotEffective>,
    effective_at_us: Option<u64>,
    /// Last step announced since the last job ended or the target was resumed.
    last_step: Option<u64>,
    /// Newest step announced as durable.
    acknowledged: Option<u64>,
    /// The target was started again and has not announced the step from which it resumes.
    resume_unannounced: bool,
    worst_resume: Option<Resumption>,
    recovery_seconds: Option<f64>,
    endings: Vec<Ending>,
    compared_values: Vec<String>,
    probes: Vec<Probed>,
    /// Last announced step, and its loss.
    final_step: Option<(u64, Option<f64>)>,
    gpu_defects: Vec<String>,
}

/// A resume, with the last step and the acknowledged step before it. The worst resume of a trial decides its
/// outcome.
#[derive(Clone, Copy)]
struct Resumption {
    step_at_fault: u64,
    acknowledged: Option<u64>,
    resumed_from: Option<u64>,
}

impl Resumption {
    fn lost_steps(&self) -> Option<u64> {
        self.resumed_from.map(|from| self.step_at_fault.saturating_sub(from))
    }

    /// Orders resumes: first whether acknowledged work was lost, then how many steps.
    fn severity(&self) -> (bool, u64) {
        (self.resumed_from < self.acknowledged, self.lost_steps().unwrap_or(0))
    }
}

/// Derives the facts of a trial from its events.
pub fn trial_facts(events: &TrialEvents<'_>) -> TrialFacts {
    let mut collector = FactCollector::default();
    let entries = last_attempt(events.entries);
    entries.iter().for_each(|entry| collector.on_event(entry, events.target));
    collector.compared_values.sort();
    collector.compared_values.dedup();
    let same = same_as_baseline(&collector.compared_values, events);
    let (outcome, because) = collector.outcome(events, same);
    let worst = collector.worst_resume;
    let seconds_between = |first: &RecordEntry, last: &RecordEntry| (last.at_us - first.at_us) as f64 / 1e6;
    TrialFacts {
        outcome,
        because,
        step_at_fault: worst.map(|resume| resume.step_at_fault),
        acknowledged: worst.and_then(|resume| resume.acknowledged),
        resumed_from: worst.and_then(|resume| resume.resumed_from),
        lost_steps: worst.map_or(Some(0), |resume| resume.lost_steps()),
        recovery_seconds: collector.recovery_seconds,
        restarts: collector.restarts(),
        same_as_baseline: same,
        peak_memory_bytes: peak_memory_bytes(entries),
        seconds: entries
            .first()
            .zip(entries.last())
            .map_or(0.0, |(first, last)| seconds_between(first, last)),
        what: collector.description,
        evidence: collector.evidence,
        not_effective: collector.not_effective.into_values().collect(),
        same: collector.compared_values,
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

fn same_as_baseline(values: &[String], events: &TrialEvents<'_>) -> Option<bool> {
    (events.comparable && !events.baseline.same.is_empty()).then(|| values == events.baseline.same)
}

impl FactCollector {
    fn on_event(&mut self, entry: &RecordEntry, target: &TargetFile) {
        match &entry.event {
            Event::TrialStarted { what, .. } => self.description.clone_from(what),
            Event::FaultArmed { fault, optional: false, .. } => {
                // The reason is known at the end of the trial.
                let why = "the trial did not say what came of it".to_owned();
                let armed = NotEffective { fault: fault.clone(), why, not_reached: false };
                self.not_effective.insert(fault.clone(), armed);
            }
            Event::FaultNotEffective(not_effective) => {
                if let Some(armed) = self.not_effective.get_mut(&not_effective.fault) {
                    *armed = not_effective.clone();
                }
            }
            Event::FaultEffective { fault, evidence } => {
                self.not_effective.remove(fault);
                self.evidence.push(evidence.clone());
                self.effective_at_us.get_or_insert(entry.at_us);
            }
            Event::TargetStarted(started) => self.resume_unannounced = started.attempt > 1,
            Event::Step { step, loss } => {
                self.final_step = Some((*step, *loss));
                self.on_step(*step, entry.at_us);
            }
            Event::Saved { step } => self.acknowledged = self.acknowledged.max(Some(*step)),
            Event::Resumed { step } => self.on_resumed(*step),
            Event::Output { line, .. } => self.on_output(line, target),
            Event::TargetEnded { ending, .. } => self.endings.push(*ending),
            Event::Probed(probed) => self.probes.push(probed.clone()),
            Event::GpuDefect { what } => self.gpu_defects.push(what.clone()),
            _ => {}
        }
    }

    fn on_step(&mut self, step: u64, at_us: u64) {
        // A step that was acknowledged before is trained again, and the target did not announce a resume: it
        // restarted.
        if std::mem::take(&mut self.resume_unannounced)
            && self.acknowledged.is_some_and(|acknowledged| step <= acknowledged)
        {
            self.on_resumed(step.saturating_sub(1));
        }
        self.last_step = Some(step);
        if let Some(effective_at_us) = self.effective_at_us {
            self.recovery_seconds.get_or_insert((at_us - effective_at_us) as f64 / 1e6);
        }
    }

    fn on_resumed(&mut self, step: u64) {
        self.resume_unannounced = false;
        let Some(step_at_fault) = self.last_step.or(self.acknowledged) else { return };
        let resume = Resumption { step_at_fault, acknowledged: self.acknowledged, resumed_from: Some(step) };
        if self.worst_resume.is_none_or(|worst| resume.severity() >= worst.severity()) {
            self.worst_resume = Some(resume);
        }
        self.last_step = Some(step);
        self.acknowledged = Some(step).filter(|step| *step > 0);
    }

    fn on_output(&mut self, line: &str, target: &TargetFile) {
        let value =
            target.same().and_then(|same| same.captures(line)).and_then(|captures| captures.name("value"));
        if let Some(value) = value {
            self.compared_values.push(value.as_str().to_owned());
            (self.last_step, self.acknowledged) = (None, None);
        }
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
        if same == Some(false) {
            let baseline = events.baseline.same.join(", ");
            return (
                Outcome::Corrupt,
                format!(
                    "ended with [{}], the baseline run with [{baseline}]",
                    self.compared_values.join(", ")
                ),
            );
        }
        match self.worst_resume {
            Some(Resumption { acknowledged: Some(acknowledged), resumed_from: Some(0), .. }) => (
                Outcome::Restarted,
                format!("started from scratch although step {acknowledged} was acknowledged"),
            ),
            Some(Resumption { acknowledged: Some(acknowledged), resumed_from: Some(from), .. })
                if from < acknowledged =>
            {
                (
                    Outcome::LostWork,
                    format!("resumed from step {from} although step {acknowledged} was acknowledged"),
                )
            }
            Some(Resumption { step_at_fault, resumed_from: Some(from), .. }) => {
                (Outcome::Recovered, format!("resumed from step {from} after step {step_at_fault}"))
            }
            _ => (Outcome::Recovered, "continued without a restart".into()),
        }
    }
}
