//! A trial's events -> what it came to. Pure.

use scenarios::{BaselineFacts, Ending, Event, Outcome, Probed, RecordEntry, TargetFile, TrialFacts};

/// What is needed to read a trial's events.
pub struct TrialEvents<'a> {
    pub target: &'a TargetFile,
    pub baseline: &'a BaselineFacts,
    /// Whether the fault left the workload as it was, so that the end must be the steady state's.
    pub comparable: bool,
    pub entries: &'a [RecordEntry],
}

/// What was gathered while reading; the running figures start afresh with each job.
#[derive(Default)]
struct FactCollector {
    description: String,
    evidence: Vec<String>,
    effective_at_us: Option<u64>,
    /// Highest step said since the last job ended or the last resume.
    last_step: Option<u64>,
    acknowledged: Option<u64>,
    /// It has been started again, and has not said where it goes on from.
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

/// A resume, and what had been done and promised before it. The worst one of a trial counts.
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

    fn severity(&self) -> (bool, u64) {
        (self.resumed_from < self.acknowledged, self.lost_steps().unwrap_or(0))
    }
}

/// Reads a trial's events.
pub fn trial_facts(story: &TrialEvents<'_>) -> TrialFacts {
    let mut reading = FactCollector::default();
    story.entries.iter().for_each(|entry| reading.on_event(entry, story.target));
    reading.compared_values.sort();
    reading.compared_values.dedup();
    let same_as_steady = same_as_baseline(&reading.compared_values, story);
    let (outcome, because) = reading.outcome(story, same_as_steady);
    let disturbed = reading.worst_resume;
    let span = |first: &RecordEntry, last: &RecordEntry| (last.at_us - first.at_us) as f64 / 1e6;
    TrialFacts {
        outcome,
        because,
        step_at_fault: disturbed.map(|d| d.step_at_fault),
        acknowledged: disturbed.and_then(|d| d.acknowledged),
        resumed_from: disturbed.and_then(|d| d.resumed_from),
        lost_steps: disturbed.map_or(Some(0), |d| d.lost_steps()),
        recovery_seconds: reading.recovery_seconds,
        restarts: reading.restarts(),
        same_as_baseline: same_as_steady,
        peak_memory_bytes: peak_memory_bytes(story.entries),
        seconds: story
            .entries
            .first()
            .zip(story.entries.last())
            .map_or(0.0, |(first, last)| span(first, last)),
        what: reading.description,
        evidence: reading.evidence,
        same: reading.compared_values,
        probes: reading.probes,
        final_step: reading.final_step.map(|(step, _)| step),
        final_loss: reading.final_step.and_then(|(_, loss)| loss),
        gpu_defects: reading.gpu_defects,
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

fn same_as_baseline(found: &[String], story: &TrialEvents<'_>) -> Option<bool> {
    (story.comparable && !story.baseline.same.is_empty()).then(|| found == story.baseline.same)
}

impl FactCollector {
    fn on_event(&mut self, entry: &RecordEntry, target: &TargetFile) {
        match &entry.event {
            Event::TrialStarted { what, .. } => self.description.clone_from(what),
            Event::FaultEffective { evidence, .. } => {
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
        // Without a word it trains again what it had promised.
        if std::mem::take(&mut self.resume_unannounced)
            && self.acknowledged.is_some_and(|promised| step <= promised)
        {
            self.on_resumed(step.saturating_sub(1));
        }
        self.last_step = Some(step);
        if let Some(landed_at_us) = self.effective_at_us {
            self.recovery_seconds.get_or_insert((at_us - landed_at_us) as f64 / 1e6);
        }
    }

    fn on_resumed(&mut self, step: u64) {
        self.resume_unannounced = false;
        let Some(step_at_fault) = self.last_step.or(self.acknowledged) else { return };
        let now = Resumption { step_at_fault, acknowledged: self.acknowledged, resumed_from: Some(step) };
        if self.worst_resume.is_none_or(|worst| now.severity() >= worst.severity()) {
            self.worst_resume = Some(now);
        }
        self.last_step = Some(step);
        self.acknowledged = Some(step).filter(|step| *step > 0);
    }

    fn on_output(&mut self, line: &str, target: &TargetFile) {
        let value = target.same().and_then(|same| same.captures(line)).and_then(|found| found.name("value"));
        if let Some(value) = value {
            self.compared_values.push(value.as_str().to_owned());
            (self.last_step, self.acknowledged) = (None, None);
        }
    }

    /// Starts that the method itself did not cause.
    fn restarts(&self) -> u32 {
        let before_last = self.endings.split_last().map_or(&[][..], |(_, before)| before);
        u32::try_from(before_last.iter().filter(|ending| **ending != Ending::KilledByFault).count())
            .unwrap_or(u32::MAX)
    }

    fn outcome(&self, story: &TrialEvents<'_>, same: Option<bool>) -> (Outcome, String) {
        match self.endings.last() {
            None => (Outcome::Crashed, "it never ended by itself".into()),
            Some(Ending::TimedOut) => (Outcome::Hung, "no step, no word and no end within its time".into()),
            Some(Ending::KilledByFault) => (Outcome::Crashed, "it was not seen again after the fault".into()),
            Some(Ending::Signalled(signal)) => (Outcome::Crashed, format!("died by signal {signal}")),
            Some(Ending::Exited(0)) => self.outcome_of_success(story, same),
            Some(Ending::Exited(code)) if story.target.refused_exits().contains(code) => {
                (Outcome::Refused, format!("refused with exit code {code}"))
            }
            Some(Ending::Exited(code)) => {
                (Outcome::Crashed, format!("exit code {code}, which is not documented as a refusal"))
            }
        }
    }

    fn outcome_of_success(&self, story: &TrialEvents<'_>, same: Option<bool>) -> (Outcome, String) {
        if let Some(failed) =
            self.probes.iter().find(|probe| probe.probe.ends_with("verifies") && !probe.held)
        {
            return (Outcome::Corrupt, format!("its own check failed: {}", failed.found));
        }
        if same == Some(false) {
            let undisturbed = story.baseline.same.join(", ");
            return (
                Outcome::Corrupt,
                format!(
                    "ended with [{}], the undisturbed run with [{undisturbed}]",
                    self.compared_values.join(", ")
                ),
            );
        }
        match self.worst_resume {
            Some(Resumption { acknowledged: Some(promised), resumed_from: Some(0), .. }) => {
                (Outcome::Restarted, format!("began from scratch although step {promised} had been promised"))
            }
            Some(Resumption { acknowledged: Some(promised), resumed_from: Some(from), .. })
                if from < promised =>
            {
                (
                    Outcome::LostWork,
                    format!("resumed from step {from} although step {promised} had been promised"),
                )
            }
            Some(Resumption { step_at_fault, resumed_from: Some(from), .. }) => {
                (Outcome::Recovered, format!("resumed from step {from} after step {step_at_fault}"))
            }
            _ => (Outcome::Recovered, "went on without a restart".into()),
        }
    }
}
