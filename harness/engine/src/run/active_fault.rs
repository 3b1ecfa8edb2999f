//! The life of one fault in a trial: armed, injected, effective, reverted. Also the counters that a baseline
//! run has in place of GPU faults. Knows no mechanism of a fault.

use std::time::Instant;

use scenarios::{Effect, Ending, Event, Persistence, Trigger, Until};

use crate::faults::{FaultContext, GpuCallCounter, InjectableFault, TargetReaction, arm};
use crate::observe::Reporter;
use crate::plan::{GpuCountRequest, PlannedFault};
use crate::run::RunError;
use crate::target::OutputPatterns;

/// A fault of a trial with its current state.
pub(super) struct ActiveFault {
    pub(super) name: String,
    pub(super) planned: PlannedFault,
    injectable: Box<dyn InjectableFault>,
    /// When it was injected first.
    injected_at: Option<Instant>,
    reaction: TargetReaction,
    effective: bool,
    /// It is not injected again, and is reverted at the next tick.
    over: bool,
}

impl ActiveFault {
    /// Arms the fault. Returns `None` for a fault that [`TargetRun`](super::target_run::TargetRun) injects
    /// itself.
    pub(super) fn arm(planned: &PlannedFault) -> Option<ActiveFault> {
        let (injected_at, reaction) = (None, TargetReaction::default());
        let injectable = arm(planned)?;
        let (name, planned) = (planned.name(), planned.clone());
        Some(ActiveFault { name, planned, injectable, injected_at, reaction, effective: false, over: false })
    }

    /// The mechanism that injects it, for the record.
    pub(super) fn mechanism(&self) -> String {
        self.injectable.mechanism()
    }

    /// Injects the fault, unless it is transient and was injected before.
    ///
    /// # Errors
    /// If the mechanism fails.
    pub(super) fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), RunError> {
        let injects_repeatedly = self.planned.fault.persistence == Persistence::Persistent && !self.over;
        if self.injected_at.is_none() || injects_repeatedly {
            self.injectable.inject(context)?;
            self.injected_at.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn is_injected(&self) -> bool {
        self.injected_at.is_some()
    }

    /// Records that the fault is effective. Only the first evidence is emitted.
    pub(super) fn take_effect(&mut self, evidence: String, reporter: &Reporter) {
        self.injected_at.get_or_insert_with(Instant::now);
        if !std::mem::replace(&mut self.effective, true) {
            reporter.emit(Event::FaultEffective { fault: self.name.clone(), evidence });
        }
    }

    /// Follows the target's output: it may show that the fault is effective, or end it.
    pub(super) fn on_line(&mut self, line: &str, patterns: &OutputPatterns<'_>, reporter: &Reporter) {
        if !self.is_injected() {
            return;
        }
        let in_place =
            self.injectable.place().is_some_and(|place| patterns.is_phase_boundary_in(place, line));
        self.reaction.phase_in_place |= in_place;
        let effective_if = &self.planned.fault.effective_if_output;
        if effective_if.as_ref().is_some_and(|pattern| pattern.is_match(line)) {
            self.take_effect(format!("the target printed: {line}"), reporter);
        }
        let until = &self.planned.fault.until;
        self.over |= matches!(until, Until::Output(pattern) if pattern.is_match(line));
    }

    /// Handles the end of an attempt. A persistent call fault lasts until the target fails. Returns whether
    /// that is now.
    pub(super) fn on_target_ended(&mut self, ending: Ending) -> bool {
        if !self.is_injected() {
            return false;
        }
        let failed = !matches!(ending, Ending::Exited(0) | Ending::KilledByFault);
        self.reaction.ended_abnormally |= failed;
        let at_call = matches!(self.planned.fault.effect, Effect::FailCall { .. } | Effect::SweepErrno);
        let is_over = failed && at_call && self.planned.is_persistent() && !self.over;
        self.over |= is_over;
        is_over
    }

    /// Continues the fault, looks for evidence, and reverts the fault once it is over.
    ///
    /// # Errors
    /// If the mechanism fails.
    pub(super) fn tick(&mut self, context: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if !self.is_injected() {
            return Ok(());
        }
        if !self.over {
            self.injectable.tick(context)?;
        }
        let by_output = self.planned.fault.effective_if_output.is_some();
        let evidence = if self.effective || by_output {
            None
        } else {
            self.injectable.effective_evidence(context, self.reaction)
        };
        if let Some(evidence) = evidence {
            self.take_effect(evidence, reporter);
        }
        let elapsed = self.injected_at.map(|injected_at| injected_at.elapsed());
        let until = &self.planned.fault.until;
        self.over |= matches!((until, elapsed), (Until::After(time), Some(elapsed)) if elapsed >= *time);
        if self.over { self.revert(context, reporter) } else { Ok(()) }
    }

    /// Whether the fault has stopped the target.
    pub(super) fn pauses_target(&self) -> bool {
        self.injectable.pauses_target()
    }

    /// Whether the fault is not injected any more.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Looks for evidence a last time and reverts the fault.
    ///
    /// # Errors
    /// If the mechanism fails.
    pub(super) fn finish(&mut self, context: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        self.tick(context, reporter)?;
        self.over = true;
        self.revert(context, reporter)
    }

    fn revert(&mut self, context: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if let Some(how) = self.injectable.revert(context)? {
            reporter.emit(Event::FaultReverted { fault: self.name.clone(), how });
        }
        Ok(())
    }
}

/// Counters of GPU driver calls. Each starts when the fault that it counts for would be injected.
#[derive(Default)]
pub(super) struct GpuCallCounters {
    counters: Vec<(Trigger, GpuCallCounter, bool)>,
}

impl GpuCallCounters {
    /// One counter for each request, not started yet.
    pub(super) fn new(requests: &[GpuCountRequest]) -> GpuCallCounters {
        let counter =
            |request: &GpuCountRequest| (request.when.clone(), GpuCallCounter::new(&request.calls), false);
        GpuCallCounters { counters: requests.iter().map(counter).collect() }
    }

    /// Starts the counters whose trigger is due.
    ///
    /// # Errors
    /// If the target has no GPU or the plan of the shim cannot be written.
    pub(super) fn start_where(
        &mut self,
        is_due: impl Fn(&Trigger) -> bool,
        context: &FaultContext<'_>,
    ) -> Result<(), RunError> {
        for (_, counter, started) in
            self.counters.iter_mut().filter(|(when, _, started)| !started && is_due(when))
        {
            counter.start(context)?;
            *started = true;
        }
        Ok(())
    }

    /// The counts, in the order of the requests.
    pub(super) fn counts(&self) -> Vec<u64> {
        self.counters.iter().map(|(_, counter, _)| counter.count()).collect()
    }
}
