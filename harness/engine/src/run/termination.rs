//! A fault that ends the target: a kill of every process, or a signal that asks the target to exit. Knows no
//! other fault and does not decide when it is due.

use std::time::{Duration, Instant};

use scenarios::{Effect, Persistence, SentSignal, Trigger};

use crate::faults::{FaultContext, send_signal};
use crate::plan::{InjectionPoint, PlannedFault};
use crate::run::error::RunError;
use crate::run::fault_phase::FaultPhase;

/// A fault that ends the target, with its phase. It is effective when the target has ended.
pub(super) struct Termination {
    name: String,
    planned: PlannedFault,
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
        planned.termination_mechanism()?;
        Some(Termination { name: planned.name(), planned: planned.clone(), phase: FaultPhase::Armed })
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
        let Some(ExitRequest { sent, time }) = self.exit_request() else {
            context.sandbox.kill_all()?;
            self.phase.inject();
            attempt.evidence = Some(format!("every process was killed {when}"));
            return Ok(());
        };
        let was_received = send_signal(context.sandbox, attempt.main_pid, &sent)?;
        self.phase.inject();
        if was_received {
            attempt.exit_deadline = Some(Instant::now() + time);
            attempt.evidence = Some(format!("sent {sent} {when}"));
        } else {
            self.leave_phase();
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

    /// The signal with which it asks the target to exit, if it does.
    fn exit_request(&self) -> Option<ExitRequest> {
        let Effect::Signal { signals } = &self.planned.fault.effect else { return None };
        let sent = *signals.first()?;
        Some(ExitRequest { sent, time: sent.exit_time()? })
    }
}

/// A signal that asks the target to exit, and the time that it has for that.
struct ExitRequest {
    sent: SentSignal,
    time: Duration,
}
