//! A fault in a running trial: armed, struck, landed, over; and what a steady state counts in its place.

use std::time::Instant;

use scenarios::{Effect, Ending, Event, Strike, Trigger, Until};

use crate::faults::{Armed, Counting, Scene, Since, arm};
use crate::observe::Reporter;
use crate::plan::{GpuCounter, Planned};
use crate::run::RunError;
use crate::target::Words;

/// A fault and where it stands.
pub(super) struct Standing {
    pub(super) name: String,
    pub(super) planned: Planned,
    armed: Box<dyn Armed>,
    struck_at: Option<Instant>,
    since: Since,
    landed: bool,
    over: bool,
}

impl Standing {
    /// None: the run itself carries it out.
    pub(super) fn arm(planned: &Planned) -> Option<Standing> {
        let (struck_at, since) = (None, Since::default());
        let armed = arm(planned)?;
        let (name, planned) = (planned.name(), planned.clone());
        Some(Standing { name, planned, armed, struck_at, since, landed: false, over: false })
    }

    pub(super) fn mechanism(&self) -> String {
        self.armed.mechanism()
    }

    /// Strikes, if it has not, or if it does so each time.
    pub(super) fn strike(&mut self, scene: &Scene<'_>) -> Result<(), RunError> {
        let again = self.planned.fault.strike == Strike::FromThenOn && !self.over;
        if self.struck_at.is_none() || again {
            self.armed.strike(scene)?;
            self.struck_at.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn has_struck(&self) -> bool {
        self.struck_at.is_some()
    }

    /// It has taken effect, as `evidence` shows.
    pub(super) fn land(&mut self, evidence: String, reporter: &Reporter) {
        self.struck_at.get_or_insert_with(Instant::now);
        if !std::mem::replace(&mut self.landed, true) {
            reporter.emit(Event::FaultLanded { fault: self.name.clone(), evidence });
        }
    }

    pub(super) fn hear(&mut self, line: &str, words: &Words<'_>, reporter: &Reporter) {
        if !self.has_struck() {
            return;
        }
        let speaks_of_it = self.armed.place().is_some_and(|place| words.speaks_of(place, line));
        self.since.met_in_place |= speaks_of_it;
        let landed_by_word = &self.planned.fault.landed_if_said;
        if landed_by_word.as_ref().is_some_and(|pattern| pattern.is_match(line)) {
            self.land(format!("the target said: {line}"), reporter);
        }
        let until = &self.planned.fault.until;
        self.over |= matches!(until, Until::Said(pattern) if pattern.is_match(line));
    }

    /// The target has ended. True: this fault goes on at calls until the target has ended by itself, and now it has.
    pub(super) fn target_ended(&mut self, ending: Ending) -> bool {
        if !self.has_struck() {
            return false;
        }
        let by_itself = !matches!(ending, Ending::Exited(0) | Ending::Struck);
        self.since.ended_badly |= by_itself;
        let at_call = matches!(self.planned.fault.effect, Effect::FailCall { .. } | Effect::SweepErrno);
        let is_over = by_itself && at_call && self.planned.goes_on() && !self.over;
        self.over |= is_over;
        is_over
    }

    pub(super) fn tend(&mut self, scene: &Scene<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if !self.has_struck() {
            return Ok(());
        }
        if !self.over {
            self.armed.press(scene)?;
        }
        let by_word = self.planned.fault.landed_if_said.is_some();
        let evidence = if self.landed || by_word { None } else { self.armed.landed(scene, self.since) };
        if let Some(evidence) = evidence {
            self.land(evidence, reporter);
        }
        let struck_for = self.struck_at.map(|at| at.elapsed());
        self.over |= matches!((&self.planned.fault.until, struck_for), (Until::After(time), Some(lasted)) if lasted >= *time);
        if self.over { self.lift(scene, reporter) } else { Ok(()) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn end(&mut self, scene: &Scene<'_>, reporter: &Reporter) -> Result<(), RunError> {
        self.tend(scene, reporter)?;
        self.over = true;
        self.lift(scene, reporter)
    }

    fn lift(&mut self, scene: &Scene<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if let Some(how) = self.armed.lift(scene)? {
            reporter.emit(Event::FaultLifted { fault: self.name.clone(), how });
        }
        Ok(())
    }
}

/// Calls of the GPU's driver, each counted from when the fault would be armed that strikes at them.
#[derive(Default)]
pub(super) struct Counters {
    counters: Vec<(Trigger, Counting, bool)>,
}

impl Counters {
    pub(super) fn new(wanted: &[GpuCounter]) -> Counters {
        let counter = |one: &GpuCounter| (one.when.clone(), Counting::new(&one.calls), false);
        Counters { counters: wanted.iter().map(counter).collect() }
    }

    pub(super) fn arm_where(
        &mut self,
        due: impl Fn(&Trigger) -> bool,
        scene: &Scene<'_>,
    ) -> Result<(), RunError> {
        for (_, counter, armed) in self.counters.iter_mut().filter(|(when, _, armed)| !armed && due(when)) {
            counter.strike(scene)?;
            *armed = true;
        }
        Ok(())
    }

    /// In the order in which they were wanted.
    pub(super) fn counts(&self) -> Vec<u64> {
        self.counters.iter().map(|(_, counter, _)| counter.count()).collect()
    }
}
