//! A fault that ends the target: a kill of every process, or a signal that asks the target to exit. Knows no
//! other fault and does not decide when it is due.

use std::time::Instant;

use scenarios::{Persistence, Trigger};

use crate::faults::{EndingFault, FaultContext, arm_ending};
use crate::plan::{InjectionPoint, PlannedFault};
use crate::run::error::RunError;
use crate::run::fault_phase::FaultPhase;

/// A fault that ends the target, with its phase. It is effective when the target has ended.
pub(super) struct Termination {
    name: String,
    planned: PlannedFault,
    ending: Box<dyn EndingFault>,
    phase: FaultPhase,
}

/// What terminations have done to one attempt of the target.
pub(super) struct AttemptTermination {
    /// Pid of the target's main process within the sandbox. It may have exited.
    main_pid: i32,
    /// What was done, if something was.
    pub(super) evidence: Option<String>,
    /// Set after a signal that asks the target to exit: the time by which it must have exited.
    pub(super) exit_deadline: Option<Instant>,
}

impl AttemptTermination {
    /// An attempt that no fault has ended.
    pub(super) fn none_yet(main_pid: i32) -> AttemptTermination {
        AttemptTermination { main_pid, evidence: None, exit_deadline: None }
    }

    /// Whether a fault has ended the target or asked it to exit.
    pub(super) fn has_begun(&self) -> bool {
        self.evidence.is_some()
    }
}

impl Termination {
    /// Arms the fault. Returns `None` for a fault that leaves the target running.
    pub(super) fn arm(planned: &PlannedFault) -> Option<Termination> {
        let ending = arm_ending(planned)?;
        Some(Termination { name: planned.name(), planned: planned.clone(), ending, phase: FaultPhase::Armed })
    }

    /// The mechanism that injects it, for the record.
    pub(super) fn mechanism(&self) -> String {
        self.ending.mechanism()
    }

    /// The fault's key in a scenario file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it is in its life.
    pub(super) fn phase(&self) -> FaultPhase {
        self.phase
    }

    /// Its trigger, unless it is injected at a call: then the gate decides when it is due.
    pub(super) fn trigger(&self) -> Option<&Trigger> {
        matches!(self.planned.injection_point, InjectionPoint::Trigger).then_some(&self.planned.fault.when)
    }

    /// Whether it may still be injected: a transient one once, a persistent one again and again.
    pub(super) fn may_be_injected(&self) -> bool {
        self.phase == FaultPhase::Armed || self.phase.is_active() && self.is_persistent()
    }

    fn is_persistent(&self) -> bool {
        self.planned.fault.persistence == Persistence::Persistent
    }

    /// Ends the target or asks it to exit. `when` describes the moment, for the evidence.
    ///
    /// # Errors
    /// If the processes cannot be killed or the sandbox's init has ended.
    pub(super) fn inject(
        &mut self,
        context: &FaultContext<'_>,
        attempt: &mut AttemptTermination,
        when: &str,
    ) -> Result<(), RunError> {
        assert!(self.may_be_injected(), "a termination that is over is not injected again");
        let end = self.ending.end_target(context.sandbox, attempt.main_pid)?;
        self.phase.inject();
        match end {
            Some(end) => {
                if let Some(time) = end.exit_time {
                    attempt.exit_deadline = Some(Instant::now() + time);
                }
                attempt.evidence = Some(format!("{} {when}", end.evidence));
            }
            // No process received it.
            None => self.leave_phase(),
        }
        Ok(())
    }

    /// Records that the gate has killed the target at a call. That happens once, also if the fault is
    /// persistent.
    pub(super) fn on_killed_at_call(&mut self) {
        if !self.phase.is_over() {
            self.phase.inject();
            self.phase.take_effect();
            self.phase.revert();
        }
    }

    /// Handles the end of an attempt: if this fault ended it, it was effective, and nothing of it lasts.
    pub(super) fn on_target_ended(&mut self) {
        if self.phase.is_active() {
            self.phase.take_effect();
            self.leave_phase();
        }
        assert!(!self.phase.is_active(), "a termination does not outlast its attempt");
    }

    /// A persistent fault waits for its trigger again. A transient one is over.
    fn leave_phase(&mut self) {
        if self.is_persistent() { self.phase.arm_again() } else { self.phase.revert() }
    }
}
