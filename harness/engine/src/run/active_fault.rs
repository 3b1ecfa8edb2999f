//! A fault that leaves the target running: when it is injected, what shows its effect, when it is reverted.
//! Knows no mechanism of a fault. `FaultPhase` holds which phase may follow which.

use nix::sys::signal::{SIGBUS, SIGXFSZ};
use scenarios::{Ending, Event, FaultId, Persistence, Until};

use crate::faults::{FaultContext, InjectableFault, RefusedCalls, ServerAnswer, TargetReaction, arm};
use crate::observe::Reporter;
use crate::plan::PlannedFault;
use crate::run::error::RunError;
use crate::run::fault_phase::FaultPhase;
use crate::sandbox::ProcessExit;

/// A fault of a trial with its mechanism and its phase.
pub(super) struct ActiveFault {
    id: FaultId,
    planned: PlannedFault,
    injectable: Box<dyn InjectableFault>,
    phase: FaultPhase,
    /// What the target did since the injection.
    reaction: TargetReaction,
}

impl ActiveFault {
    /// Arms the fault. Returns `None` for a fault that ends the target, and for crash states.
    pub(super) fn arm(planned: &PlannedFault) -> Option<ActiveFault> {
        Some(ActiveFault {
            id: planned.id(),
            planned: planned.clone(),
            injectable: arm(planned)?,
            phase: FaultPhase::Armed,
            reaction: TargetReaction::default(),
        })
    }

    /// Which fault of the method it is.
    pub(super) fn id(&self) -> &FaultId {
        &self.id
    }

    /// The fault as it was planned.
    pub(super) fn planned(&self) -> &PlannedFault {
        &self.planned
    }

    /// Where it is in its life.
    pub(super) fn phase(&self) -> FaultPhase {
        self.phase
    }

    /// The mechanism that injects it, for the record.
    pub(super) fn mechanism(&self) -> String {
        self.injectable.mechanism()
    }

    /// Injects the fault. Does nothing if it is over, or if it is transient and was injected before.
    ///
    /// # Errors
    /// If the mechanism fails.
    pub(super) fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), RunError> {
        let is_repeated = self.planned.fault.persistence == Persistence::Persistent;
        if self.phase == FaultPhase::Armed || self.phase.is_active() && is_repeated {
            self.injectable.inject(context)?;
            self.phase.inject();
        }
        Ok(())
    }

    /// Records that the gate has altered a call as planned. If the scenario names a line of output as the
    /// evidence, this is none.
    pub(super) fn on_call_altered(&mut self, evidence: String, reporter: &Reporter) {
        if self.phase == FaultPhase::Armed {
            self.phase.inject();
        }
        if self.planned.fault.effective_if_output.is_none() {
            self.take_effect(evidence, reporter);
        }
    }

    /// Records that the gate saw a call fail as calls do under this fault.
    pub(super) fn on_refused_call(&mut self, evidence: String, reporter: &Reporter) {
        if self.phase.was_injected() && self.planned.fault.effective_if_output.is_none() {
            self.take_effect(evidence, reporter);
        }
    }

    /// The calls whose failure shows the effect of this fault.
    pub(super) fn refused_calls(&self) -> Option<RefusedCalls<'_>> {
        self.injectable.refused_calls()
    }

    /// Why what showed its effect does not count after all.
    pub(super) fn withdrawn_evidence(&self) -> Option<String> {
        self.injectable.withdrawn_evidence().filter(|_| self.phase.was_injected())
    }

    /// What is missing for an effect of a fault that was injected.
    pub(super) fn missing_evidence(&self) -> String {
        self.injectable.missing_evidence()
    }

    /// Follows the target's output: it may show that the fault is effective, or end it.
    pub(super) fn on_line(&mut self, line: &str, reporter: &Reporter) {
        if !self.phase.was_injected() {
            return;
        }
        let effective_if = &self.planned.fault.effective_if_output;
        if effective_if.as_ref().is_some_and(|pattern| pattern.is_match(line)) {
            self.take_effect(format!("the target printed: {line}"), reporter);
        }
        let until = &self.planned.fault.until;
        if self.phase.is_active() && matches!(until, Until::Output(pattern) if pattern.is_match(line)) {
            self.phase.end();
        }
    }

    /// Handles the end of an attempt. A persistent call fault lasts until the target fails, and is then
    /// reverted.
    pub(super) fn on_target_ended(&mut self, ending: Ending, reporter: &Reporter) {
        if !self.phase.was_injected() {
            return;
        }
        let has_failed = !matches!(ending, Ending::Exited(0) | Ending::KilledByFault);
        self.reaction.ended_abnormally |= has_failed;
        // A shell passes it on as an exit code.
        let is_by = |signal: i32| [Ending::Signalled(signal), Ending::Exited(128 + signal)].contains(&ending);
        self.reaction.ended_by_sigbus |= is_by(SIGBUS as i32);
        self.reaction.ended_by_sigxfsz |= is_by(SIGXFSZ as i32);
        if has_failed && self.planned.alters_every_later_call() && self.phase.is_active() {
            self.phase.revert();
            self.emit_reverted("calls are no longer altered".into(), reporter);
        }
    }

    /// Continues the fault, looks for evidence, and reverts the fault once it has reached its end.
    ///
    /// # Errors
    /// If the mechanism fails.
    pub(super) fn tick(&mut self, context: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if !self.phase.was_injected() {
            return Ok(());
        }
        if self.phase.is_active() {
            self.injectable.tick(context)?;
        }
        self.look_for_evidence(context, reporter);
        if matches!(self.planned.fault.until, Until::After(time) if self.phase.has_lasted(time)) {
            self.phase.end();
        }
        match self.phase {
            FaultPhase::Ending { .. } => self.revert(context, reporter),
            _ => Ok(()),
        }
    }

    /// Reverts the fault if it was injected.
    ///
    /// # Errors
    /// If the mechanism fails.
    pub(super) fn end(&mut self, context: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        if self.phase.is_active() {
            self.phase.end();
            self.revert(context, reporter)?;
        }
        assert!(matches!(self.phase, FaultPhase::Armed | FaultPhase::Reverted { .. }));
        Ok(())
    }

    /// What clients of the target have been answered, each once.
    pub(super) fn take_answers(&mut self) -> Vec<ServerAnswer> {
        self.injectable.take_answers()
    }

    /// How commands have ended that the fault runs, each once.
    pub(super) fn take_command_exits(&mut self) -> Vec<ProcessExit> {
        self.injectable.take_command_exits()
    }

    /// Whether a thread of the target waits until it is injected, or done.
    pub(super) fn is_awaited(&self) -> bool {
        self.phase == FaultPhase::Armed || self.phase.is_active() && self.injectable.is_awaited()
    }

    /// A thread of the target has waited for it, and goes on.
    pub(super) fn on_waited_in_vain(&mut self) {
        self.injectable.on_waited_in_vain();
    }

    /// Whether the fault has stopped the target.
    pub(super) fn pauses_target(&self) -> bool {
        self.injectable.pauses_target()
    }

    fn look_for_evidence(&mut self, context: &FaultContext<'_>, reporter: &Reporter) {
        // If the scenario names a line of output as the evidence, nothing else counts.
        let is_shown_by_output = self.planned.fault.effective_if_output.is_some();
        if self.phase.was_effective() || is_shown_by_output {
            return;
        }
        if let Some(evidence) = self.injectable.effective_evidence(context, self.reaction) {
            self.take_effect(evidence, reporter);
        }
    }

    /// Only the first evidence is emitted.
    fn take_effect(&mut self, evidence: String, reporter: &Reporter) {
        if self.phase.take_effect() {
            reporter.emit(Event::FaultEffective { fault: self.id.clone(), evidence });
        }
    }

    fn revert(&mut self, context: &FaultContext<'_>, reporter: &Reporter) -> Result<(), RunError> {
        let how = self.injectable.revert(context)?;
        self.phase.revert();
        if let Some(how) = how {
            self.emit_reverted(how, reporter);
        }
        Ok(())
    }

    fn emit_reverted(&self, how: String, reporter: &Reporter) {
        reporter.emit(Event::FaultReverted { fault: self.id.clone(), how });
    }
}
