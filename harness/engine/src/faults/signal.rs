//! Signals to the target: those that ask it to exit, SIGSTOP, which SIGCONT reverts, and those after which it
//! continues. Knows no trigger.

use std::time::{Duration, Instant};

use nix::sys::signal::{SIGCONT, Signal as SystemSignal};
use scenarios::{SentSignal, Signal, SignalRecipient};

use crate::faults::injectable_fault::{
    EndingFault, FaultContext, FaultError, FaultMechanism, InjectableFault, TargetEnd, TargetReaction,
    injects,
};
use crate::sandbox::{ProcessInfo, Sandbox, SandboxError};

/// A signal with a time to exit ends the target; the target continues after any other.
pub(super) fn mechanism(fault: &Signal) -> FaultMechanism {
    let Some(sent) = fault.sent().copied() else { return FaultMechanism::None };
    match sent.exit_time() {
        Some(exit_time) => FaultMechanism::EndsTarget(Box::new(ExitRequest { sent, exit_time })),
        None => injects(SignalFault::new(sent)),
    }
}

/// Sends a signal to its recipients. Returns whether there was one: the target may have ended.
fn send_signal(
    sandbox: &Sandbox,
    main_pid: i32,
    to: SignalRecipient,
    signal: i32,
) -> Result<bool, SandboxError> {
    match to {
        SignalRecipient::Main => sandbox.signal(main_pid, signal),
        SignalRecipient::EveryProcess => sandbox.signal_all(signal),
        SignalRecipient::Children | SignalRecipient::Group => {
            let mut is_received = false;
            for process in recipients(sandbox, main_pid, to) {
                is_received |= sandbox.signal(process.pid_inside, signal)?;
            }
            Ok(is_received)
        }
    }
}

/// The running processes that receive a signal.
fn recipients(sandbox: &Sandbox, main_pid: i32, to: SignalRecipient) -> Vec<ProcessInfo> {
    let mut processes = sandbox.processes();
    processes.retain(|process| match to {
        SignalRecipient::Main => process.pid_inside == main_pid,
        SignalRecipient::Children => process.pid_inside != main_pid,
        // The main process leads a session, and its group has its number.
        SignalRecipient::Group => process.group_inside == main_pid,
        SignalRecipient::EveryProcess => true,
    });
    processes
}

/// The number of the signal on this machine. An unknown name would give 0, which sends nothing, but scenarios
/// accept only known names.
fn number_of(sent: &SentSignal) -> i32 {
    format!("SIG{}", sent.signal.name()).parse::<SystemSignal>().map_or(0, |signal| signal as i32)
}

/// A signal that asks the target to exit within a time.
struct ExitRequest {
    sent: SentSignal,
    exit_time: Duration,
}

impl EndingFault for ExitRequest {
    fn mechanism(&self) -> String {
        self.sent.to_string()
    }

    fn end_target(&self, sandbox: &Sandbox, main_pid: i32) -> Result<Option<TargetEnd>, FaultError> {
        let SentSignal { to, again_after, then_kill, .. } = self.sent;
        let is_sent = send_signal(sandbox, main_pid, to, number_of(&self.sent))?;
        let evidence = format!("sent {}", self.sent);
        let end = TargetEnd { evidence, exit_time: Some(self.exit_time), again_after, then_kill };
        Ok(is_sent.then_some(end))
    }

    fn ask_again(&self, sandbox: &Sandbox, main_pid: i32) -> Result<Option<String>, FaultError> {
        let is_sent = send_signal(sandbox, main_pid, self.sent.to, number_of(&self.sent))?;
        let time = self.sent.again_after.unwrap_or_default();
        Ok(is_sent.then(|| format!("and a second time {time:?} later")))
    }
}

/// A signal after which the target continues.
struct SignalFault {
    sent: SentSignal,
    sent_at: Option<Instant>,
    /// SIGSTOP was sent while this was the main process, and SIGCONT was not.
    stopped: Option<i32>,
}

impl SignalFault {
    fn new(sent: SentSignal) -> SignalFault {
        SignalFault { sent, sent_at: None, stopped: None }
    }

    /// Whether every process that received SIGSTOP is stopped.
    fn is_stopped(&self, context: &FaultContext<'_>) -> bool {
        let Some(main_pid) = self.stopped else { return false };
        let recipients = recipients(context.sandbox, main_pid, self.sent.to);
        !recipients.is_empty() && recipients.iter().all(|process| process.is_stopped)
    }
}

impl InjectableFault for SignalFault {
    fn mechanism(&self) -> String {
        format!("kill(2): {}", self.sent)
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        // Between two starts of the target, no process exists that could receive a signal.
        let Some(main_pid) = context.main_pid else { return Ok(()) };
        if !send_signal(context.sandbox, main_pid, self.sent.to, number_of(&self.sent))? {
            return Ok(());
        }
        self.sent_at = Some(Instant::now());
        self.stopped = self.sent.stop_time().map(|_| main_pid);
        Ok(())
    }

    fn effective_evidence(&mut self, context: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        self.sent_at?;
        match self.sent.stop_time() {
            None => Some(format!("sent {}", self.sent)),
            Some(_) => self
                .is_stopped(context)
                .then(|| format!("{}: /proc shows the state `T (stopped)`", self.sent)),
        }
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let Some(main_pid) = self.stopped.take() else { return Ok(None) };
        // It does not affect a process that is not stopped. If the main process has ended, the others are its
        // children still.
        send_signal(context.sandbox, main_pid, self.sent.to, SIGCONT as i32)?;
        let stopped_for = self.sent_at.map(|sent_at| sent_at.elapsed()).unwrap_or_default();
        Ok(Some(format!("SIGCONT was sent after {:.2} s", stopped_for.as_secs_f64())))
    }

    fn pauses_target(&self) -> bool {
        self.stopped.is_some()
    }
}
