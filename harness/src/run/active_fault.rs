//! A fault in a running trial: armed, struck, landed, over; and what a steady state counts in its place.

use std::time::Instant;

use scenarios::{Effect, Ending, Event, Persistence, Trigger, Until};

use crate::faults::{FaultContext, GpuCallCounter, InjectableFault, TargetReaction, arm};
use crate::observe::Reporter;
use crate::plan::{GpuCountRequest, PlannedFault};
use crate::run::RunError;
use crate::target::OutputPatterns;

/// A fault and where it stands.
pub(super) struct ActiveFault {
    pub(super) name: String,
    pub(super) planned: PlannedFault,
    injectable: Box<dyn InjectableFault>,
    injected_at: Option<Instant>,
    reaction: TargetReaction,
    effective: bool,
    over: bool,
}

impl ActiveFault {
    /// None: the run itself carries it out.
    pub(super) fn arm(planned: &PlannedFault) -> Option<ActiveFault> {
        let (struck_at, since) = (None, TargetReaction::default());
        let armed = arm(planned)?;
        let (name, planned) = (planned.name(), planned.clone());
        Some(ActiveFault {
            name,
            planned,
            injectable: armed,
            injected_at: struck_at,
            reaction: since,
            effective: false,
            over: false,
        })
    }

    pub(super) fn mechanism(&self) -> String {
        self.injectable.mechanism()
    }

    /// Strikes, if it has not, or if it does so each time.
    pub(super) fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), RunError> {
        let again = self.planned.fault.persistence == Persistence::Persistent && !self.over;
        if self.injected_at.is_none() || again {
            self.injectable.inject(scene)?;
            self.injected_at.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn is_injected(&self) -> bool {
        self.injected_at.is_some()
    }

    /// It has taken effect, as `evidence` shows.
    pub(super) fn take_effect(&mut self, evidence: String, reporter: &Reporter) {
        self.injected_at.get_or_insert_with(Instant::now);
        if !std::mem::replace(&mut self.effective, true) {
            reporter.emit(Event::FaultEffective { fault: self.name.clone(), evidence });
        }
    }

    pub(super) fn on_line(&mut self, line: &str, words: &OutputPatterns<'_>, reporter: &Reporter) {
        if !self.is_injected() {
            return;
        }
        let speaks_of_it =
            self.injectable.place().is_some_and(|place| words.is_phase_boundary_in(place, line));
        self.reaction.phase_in_place |= speaks_of_it;
        let landed_by_word = &self.planned.fault.effective_if_output;
        if landed_by_word.as_ref().is_some_and(|pattern| pattern.is_match(line)) {
            self.take_effect(format!("the target said: {line}"), reporter);
        }
        let until = &self.planned.fault.until;
        self.over |= matches!(until, Until::Output(pattern) if pattern.is_match(line));
    }

    /// The target has ended. True: this fault goes on at calls until the target has ended by itself, and now it has.
    pub(super) fn on_target_ended(&mut self, ending: Ending) -> bool {
        if !self.is_injected() {
            return false;
        }
        let by_itself = !matches!(ending, Ending::Exited(0) | Ending::KilledByFault);
        self.reaction.ended_abnormally |= by_itself;
        let at_call = matches!(self.planned.fault.effect, Effect::FailCall { .. } | Effect::SweepErrno);
        let is_over = by_itself && at_call && self.planned.is_persistent() && !self.over;
        self.over |= is_over;
        is_over
    }

    pub(super) fn tick(&mut self, scene: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if !self.is_injected() {
            return Ok(());
        }
        if !self.over {
            self.injectable.tick(scene)?;
        }
        let by_word = self.planned.fault.effective_if_output.is_some();
        let evidence = if self.effective || by_word {
            None
        } else {
            self.injectable.effective_evidence(scene, self.reaction)
        };
        if let Some(evidence) = evidence {
            self.take_effect(evidence, reporter);
        }
        let struck_for = self.injected_at.map(|at| at.elapsed());
        self.over |= matches!((&self.planned.fault.until, struck_for), (Until::After(time), Some(lasted)) if lasted >= *time);
        if self.over { self.revert(scene, reporter) } else { Ok(()) }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn finish(&mut self, scene: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        self.tick(scene, reporter)?;
        self.over = true;
        self.revert(scene, reporter)
    }

    fn revert(&mut self, scene: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if let Some(how) = self.injectable.revert(scene)? {
            reporter.emit(Event::FaultReverted { fault: self.name.clone(), how });
        }
        Ok(())
    }
}

/// Calls of the GPU's driver, each counted from when the fault would be armed that strikes at them.
#[derive(Default)]
pub(super) struct GpuCallCounters {
    counters: Vec<(Trigger, GpuCallCounter, bool)>,
}

impl GpuCallCounters {
    pub(super) fn new(wanted: &[GpuCountRequest]) -> GpuCallCounters {
        let counter = |one: &GpuCountRequest| (one.when.clone(), GpuCallCounter::new(&one.calls), false);
        GpuCallCounters { counters: wanted.iter().map(counter).collect() }
    }

    pub(super) fn arm_where(
        &mut self,
        due: impl Fn(&Trigger) -> bool,
        scene: &FaultContext<'_>,
    ) -> Result<(), RunError> {
        for (_, counter, armed) in self.counters.iter_mut().filter(|(when, _, armed)| !armed && due(when)) {
            counter.start(scene)?;
            *armed = true;
        }
        Ok(())
    }

    /// In the order in which they were wanted.
    pub(super) fn counts(&self) -> Vec<u64> {
        self.counters.iter().map(|(_, counter, _)| counter.count()).collect()
    }
}
