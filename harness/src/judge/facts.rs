//! A trial's events -> what it came to. Pure.

use scenarios::{Ending, Entry, Event, Outcome, Probed, SteadyFacts, TargetFile, TrialFacts};

/// What is needed to read a trial's events.
pub struct TrialStory<'a> {
    pub target: &'a TargetFile,
    pub steady: &'a SteadyFacts,
    /// Whether the fault left the workload as it was, so that the end must be the steady state's.
    pub comparable: bool,
    pub entries: &'a [Entry],
}

/// What was gathered while reading; the running figures start afresh with each job.
#[derive(Default)]
struct Reading {
    what: String,
    landed: Vec<String>,
    landed_at_us: Option<u64>,
    /// Highest step said since the last job ended or the last resume.
    last_step: Option<u64>,
    promised: Option<u64>,
    /// It has been started again, and has not said where it goes on from.
    unexplained: bool,
    disturbed: Option<Disturbed>,
    recovery_seconds: Option<f64>,
    endings: Vec<Ending>,
    same: Vec<String>,
    probes: Vec<Probed>,
    /// Last announced step, and its loss.
    final_step: Option<(u64, Option<f64>)>,
    found: Vec<String>,
}

/// A resume, and what had been done and promised before it. The worst one of a trial counts.
#[derive(Clone, Copy)]
struct Disturbed {
    step_at_fault: u64,
    promised: Option<u64>,
    resumed_from: Option<u64>,
}

impl Disturbed {
    fn lost(&self) -> Option<u64> {
        self.resumed_from.map(|from| self.step_at_fault.saturating_sub(from))
    }

    fn badness(&self) -> (bool, u64) {
        (self.resumed_from < self.promised, self.lost().unwrap_or(0))
    }
}

/// Reads a trial's events.
pub fn trial_facts(story: &TrialStory<'_>) -> TrialFacts {
    let mut reading = Reading::default();
    story.entries.iter().for_each(|entry| reading.read(entry, story.target));
    reading.same.sort();
    reading.same.dedup();
    let same_as_steady = same_as_steady(&reading.same, story);
    let (outcome, because) = reading.outcome(story, same_as_steady);
    let disturbed = reading.disturbed;
    let span = |first: &Entry, last: &Entry| (last.at_us - first.at_us) as f64 / 1e6;
    TrialFacts {
        outcome,
        because,
        step_at_fault: disturbed.map(|d| d.step_at_fault),
        promised: disturbed.and_then(|d| d.promised),
        resumed_from: disturbed.and_then(|d| d.resumed_from),
        lost_steps: disturbed.map_or(Some(0), |d| d.lost()),
        recovery_seconds: reading.recovery_seconds,
        restarts: reading.restarts(),
        same_as_steady,
        peak_memory_bytes: peak(story.entries),
        seconds: story
            .entries
            .first()
            .zip(story.entries.last())
            .map_or(0.0, |(first, last)| span(first, last)),
        what: reading.what,
        landed: reading.landed,
        same: reading.same,
        probes: reading.probes,
        final_step: reading.final_step.map(|(step, _)| step),
        final_loss: reading.final_step.and_then(|(_, loss)| loss),
        found: reading.found,
    }
}

fn peak(entries: &[Entry]) -> Option<u64> {
    entries
        .iter()
        .filter_map(
            |entry| if let Event::Memory { peak_bytes } = entry.event { Some(peak_bytes) } else { None },
        )
        .max()
}

fn same_as_steady(found: &[String], story: &TrialStory<'_>) -> Option<bool> {
    (story.comparable && !story.steady.same.is_empty()).then(|| found == story.steady.same)
}

impl Reading {
    fn read(&mut self, entry: &Entry, target: &TargetFile) {
        match &entry.event {
            Event::TrialStarted { what, .. } => self.what.clone_from(what),
            Event::FaultLanded { evidence, .. } => {
                self.landed.push(evidence.clone());
                self.landed_at_us.get_or_insert(entry.at_us);
            }
            Event::TargetStarted(started) => self.unexplained = started.attempt > 1,
            Event::Step { step, loss } => {
                self.final_step = Some((*step, *loss));
                self.step(*step, entry.at_us);
            }
            Event::Saved { step } => self.promised = self.promised.max(Some(*step)),
            Event::Resumed { step } => self.resumed(*step),
            Event::Said { line, .. } => self.said(line, target),
            Event::TargetEnded { ending, .. } => self.endings.push(*ending),
            Event::Probed(probed) => self.probes.push(probed.clone()),
            Event::Found { what } => self.found.push(what.clone()),
            _ => {}
        }
    }

    fn step(&mut self, step: u64, at_us: u64) {
        // Without a word it trains again what it had promised.
        if std::mem::take(&mut self.unexplained) && self.promised.is_some_and(|promised| step <= promised) {
            self.resumed(step.saturating_sub(1));
        }
        self.last_step = Some(step);
        if let Some(landed_at_us) = self.landed_at_us {
            self.recovery_seconds.get_or_insert((at_us - landed_at_us) as f64 / 1e6);
        }
    }

    fn resumed(&mut self, step: u64) {
        self.unexplained = false;
        let Some(step_at_fault) = self.last_step.or(self.promised) else { return };
        let now = Disturbed { step_at_fault, promised: self.promised, resumed_from: Some(step) };
        if self.disturbed.is_none_or(|worst| now.badness() >= worst.badness()) {
            self.disturbed = Some(now);
        }
        self.last_step = Some(step);
        self.promised = Some(step).filter(|step| *step > 0);
    }

    fn said(&mut self, line: &str, target: &TargetFile) {
        let value = target.same().and_then(|same| same.captures(line)).and_then(|found| found.name("value"));
        if let Some(value) = value {
            self.same.push(value.as_str().to_owned());
            (self.last_step, self.promised) = (None, None);
        }
    }

    /// Starts that the method itself did not cause.
    fn restarts(&self) -> u32 {
        let before_last = self.endings.split_last().map_or(&[][..], |(_, before)| before);
        u32::try_from(before_last.iter().filter(|ending| **ending != Ending::Struck).count())
            .unwrap_or(u32::MAX)
    }

    fn outcome(&self, story: &TrialStory<'_>, same: Option<bool>) -> (Outcome, String) {
        match self.endings.last() {
            None => (Outcome::Crashed, "it never ended by itself".into()),
            Some(Ending::TimedOut) => (Outcome::Hung, "no step, no word and no end within its time".into()),
            Some(Ending::Struck) => (Outcome::Crashed, "it was not seen again after the fault".into()),
            Some(Ending::Signalled(signal)) => (Outcome::Crashed, format!("died by signal {signal}")),
            Some(Ending::Exited(0)) => self.ended_well(story, same),
            Some(Ending::Exited(code)) if story.target.refused_exits().contains(code) => {
                (Outcome::Refused, format!("refused with exit code {code}"))
            }
            Some(Ending::Exited(code)) => {
                (Outcome::Crashed, format!("exit code {code}, which is not documented as a refusal"))
            }
        }
    }

    fn ended_well(&self, story: &TrialStory<'_>, same: Option<bool>) -> (Outcome, String) {
        if let Some(failed) =
            self.probes.iter().find(|probe| probe.probe.ends_with("verifies") && !probe.held)
        {
            return (Outcome::Corrupt, format!("its own check failed: {}", failed.found));
        }
        if same == Some(false) {
            let undisturbed = story.steady.same.join(", ");
            return (
                Outcome::Corrupt,
                format!("ended with [{}], the undisturbed run with [{undisturbed}]", self.same.join(", ")),
            );
        }
        match self.disturbed {
            Some(Disturbed { promised: Some(promised), resumed_from: Some(0), .. }) => {
                (Outcome::Restarted, format!("began from scratch although step {promised} had been promised"))
            }
            Some(Disturbed { promised: Some(promised), resumed_from: Some(from), .. }) if from < promised => {
                (
                    Outcome::LostWork,
                    format!("resumed from step {from} although step {promised} had been promised"),
                )
            }
            Some(Disturbed { step_at_fault, resumed_from: Some(from), .. }) => {
                (Outcome::Recovered, format!("resumed from step {from} after step {step_at_fault}"))
            }
            _ => (Outcome::Recovered, "went on without a restart".into()),
        }
    }
}
