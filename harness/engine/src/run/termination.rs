//! A fault that ends the target: a kill of every process, or a signal that asks the target to exit. Knows no
//! other fault and does not decide when it is due.

use std::time::Instant;

use scenarios::{FaultId, Persistence, Trigger};

use crate::faults::{EndingFault, FaultContext, arm_ending};
use crate::plan::{InjectionPoint, PlannedFault};
use crate::run::error::RunError;
use crate::run::fault_phase::FaultPhase;
use crate::sandbox::ProcessExit;

/// How often a persistent fault ends the target. A supervisor in the field gives up as well, and the trial has
/// to come to an end.
const MAX_INJECTIONS: u32 = 10;

/// A fault that ends the target, with its phase. It is effective when the target has ended.
pub(super) struct Termination {
    id: FaultId,
    planned: PlannedFault,
    ending: Box<dyn EndingFault>,
    phase: FaultPhase,
    /// How often it has been injected.
    injections: u32,
    /// It has killed the target, and the target has not been started again. What the target printed before may
    /// still arrive.
    has_killed: bool,
    /// Whether something has shown its effect, in any attempt.
    was_effective: bool,
    /// Whether the target had exited before everything was done.
    exited_early: bool,
}

/// What a termination has done to an attempt.
#[derive(Debug, Clone)]
pub(super) struct AttemptEnd {
    /// Which fault it was.
    pub(super) fault: FaultId,
    /// What was done.
    pub(super) evidence: String,
}

/// What terminations have done to one attempt of the target.
pub(super) struct AttemptTermination {
    /// Pid of the target's main process within the sandbox. It may have exited.
    main_pid: i32,
    /// What was done, if something was.
    pub(super) end: Option<AttemptEnd>,
    /// Set after a signal that asks the target to exit: the time by which it must have exited.
    pub(super) exit_deadline: Option<Instant>,
    /// When the fault asks a second time, if it does.
    ask_again_at: Option<Instant>,
    /// After the deadline, the fault kills the target.
    then_kill: bool,
}

impl AttemptTermination {
    /// An attempt that no fault has ended.
    pub(super) fn none_yet(main_pid: i32) -> AttemptTermination {
        AttemptTermination { main_pid, end: None, exit_deadline: None, ask_again_at: None, then_kill: false }
    }

    /// The target has not exited in time. Returns whether the fault kills it then.
    pub(super) fn kills_now(&mut self) -> bool {
        let kills = std::mem::take(&mut self.then_kill);
        if kills {
            self.exit_deadline = None;
            self.add_evidence("and SIGKILL to every process, as it had not exited in time");
        }
        kills
    }

    /// The target's main process has exited. If a signal has ended it, a second one could not have had an effect.
    pub(super) fn note_exit(&mut self, exit: ProcessExit) {
        // A shell passes it on as an exit code.
        let by_signal = matches!(exit, ProcessExit::Signalled(_) | ProcessExit::Exited(129..));
        if by_signal && self.ask_again_at.take().is_some() {
            self.add_evidence("which has ended it at once");
        }
    }

    fn add_evidence(&mut self, what: &str) {
        if let Some(end) = &mut self.end {
            end.evidence = format!("{}, {what}", end.evidence);
        }
    }

    /// Whether a fault has ended the target or asked it to exit.
    pub(super) fn has_begun(&self) -> bool {
        self.end.is_some()
    }
}

impl Termination {
    /// Arms the fault. Returns `None` for a fault that leaves the target running.
    pub(super) fn arm(planned: &PlannedFault) -> Option<Termination> {
        let ending = arm_ending(planned)?;
        Some(Termination {
            id: planned.id(),
            planned: planned.clone(),
            ending,
            phase: FaultPhase::Armed,
            injections: 0,
            has_killed: false,
            was_effective: false,
            exited_early: false,
        })
    }

    /// The mechanism that injects it, for the record.
    pub(super) fn mechanism(&self) -> String {
        self.ending.mechanism()
    }

    /// Which fault of the method it is.
    pub(super) fn id(&self) -> &FaultId {
        &self.id
    }

    /// The fault as it was planned.
    pub(super) fn planned(&self) -> &PlannedFault {
        &self.planned
    }

    /// Whether it has been injected.
    pub(super) fn was_injected(&self) -> bool {
        self.injections > 0
    }

    /// Whether something has shown its effect.
    pub(super) fn was_effective(&self) -> bool {
        self.was_effective
    }

    /// Follows the target's output after the injection. Returns whether this line is the first evidence, as the
    /// scenario defines it.
    pub(super) fn on_line(&mut self, line: &str) -> bool {
        let pattern = self.planned.fault.effective_if_output.as_ref();
        let is_first = self.injections > 0
            && !self.has_killed
            && !self.was_effective
            && pattern.is_some_and(|pattern| pattern.is_match(line));
        self.was_effective |= is_first;
        is_first
    }

    /// Whether what was done is the evidence of its effect.
    pub(super) fn is_shown_by_end(&self) -> bool {
        self.planned.fault.effective_if_output.is_none()
    }

    /// Where it is in its life.
    pub(super) fn phase(&self) -> FaultPhase {
        self.phase
    }

    /// Its trigger, unless it is injected at a call: then the gate decides when it is due.
    pub(super) fn trigger(&self) -> Option<&Trigger> {
        matches!(self.planned.injection_point, InjectionPoint::Trigger).then_some(&self.planned.fault.when)
    }

    /// Whether it may still be injected: a transient one once, a persistent one again and again, up to a limit.
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
        self.injections += 1;
        match end {
            Some(end) => {
                self.has_killed = end.exit_time.is_none();
                if let Some(time) = end.exit_time {
                    attempt.exit_deadline = Some(Instant::now() + time);
                }
                attempt.ask_again_at = end.again_after.map(|time| Instant::now() + time);
                attempt.then_kill = end.then_kill;
                let evidence = format!("{} {when}", end.evidence);
                attempt.end = Some(AttemptEnd { fault: self.id.clone(), evidence });
            }
            // No process received it.
            None => self.leave_phase(),
        }
        Ok(())
    }

    /// Asks the target a second time, if that is due.
    ///
    /// # Errors
    /// If the sandbox's init has ended.
    pub(super) fn ask_again(
        &self,
        context: &FaultContext<'_>,
        attempt: &mut AttemptTermination,
    ) -> Result<(), RunError> {
        let is_mine = attempt.end.as_ref().is_some_and(|end| end.fault == self.id);
        if is_mine
            && attempt.ask_again_at.is_some_and(|time| Instant::now() >= time)
            && let Some(again) = self.ending.ask_again(context.sandbox, attempt.main_pid)?
        {
            attempt.ask_again_at = None;
            attempt.add_evidence(&again);
        }
        Ok(())
    }

    /// Records that the gate has killed the target at a call. That happens once, also if the fault is
    /// persistent.
    pub(super) fn on_killed_at_call(&mut self) {
        if !self.phase.is_over() {
            self.phase.inject();
            self.injections += 1;
            self.has_killed = true;
            self.was_effective |= self.is_shown_by_end();
            self.phase.revert();
        }
    }

    /// Handles the end of an attempt: if this fault ended it, it was effective, and nothing of it lasts. Returns
    /// what was done, if that is the evidence.
    pub(super) fn on_target_ended(&mut self, attempt: &AttemptTermination) -> Option<String> {
        self.has_killed = false;
        let end = attempt.end.as_ref().filter(|end| end.fault == self.id);
        // A second signal that was never sent had no effect.
        let is_done = attempt.ask_again_at.is_none();
        let evidence = end.filter(|_| is_done && self.is_shown_by_end()).map(|end| end.evidence.clone());
        if self.phase.is_active() {
            self.was_effective |= evidence.is_some();
            self.exited_early |= !is_done;
            self.leave_phase();
        }
        assert!(!self.phase.is_active(), "a termination does not outlast its attempt");
        evidence
    }

    /// Why the fault was not effective, once it was injected and the run is over.
    pub(super) fn missing_evidence(&self) -> String {
        let why =
            if self.exited_early { "had exited before the second signal" } else { "had ended by itself" };
        format!("the target {why}")
    }

    /// A persistent fault waits for its trigger again, unless it has ended the target as often as it may. A
    /// transient one is over.
    fn leave_phase(&mut self) {
        let is_over = !self.is_persistent() || self.injections >= MAX_INJECTIONS;
        if is_over { self.phase.revert() } else { self.phase.arm_again() }
    }
}
