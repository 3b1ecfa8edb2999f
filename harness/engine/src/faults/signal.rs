//! Signals to the target: those that ask it to exit, SIGSTOP, which SIGCONT reverts, and those after which it
//! continues. Knows no trigger.

use std::time::{Duration, Instant};

use nix::sys::signal::{SIGCONT, Signal as SystemSignal};
use scenarios::{SentSignal, Signal, SignalRecipient};

use crate::faults::injectable_fault::{
    EndingFault, FaultContext, FaultError, FaultMechanism, InjectableFault, TargetEnd, TargetReaction,
    injects,
};
use crate::sandbox::{Sandbox, SandboxError};

/// A signal with a time to exit ends the target; the target continues after any other.
pub(super) fn mechanism(fault: &Signal) -> FaultMechanism {
    let Some(sent) = fault.sent().copied() else { return FaultMechanism::None };
    match sent.exit_time() {
        Some(exit_time) => FaultMechanism::EndsTarget(Box::new(ExitRequest { sent, exit_time })),
        None => injects(SignalFault::new(sent)),
    }
}

/// Sends a signal to its recipient. Returns whether there was one: the target may have ended.
fn send_signal(sandbox: &Sandbox, main_pid: i32, sent: &SentSignal) -> Result<bool, SandboxError> {
    let number = number_of(sent);
    match sent.to {
        SignalRecipient::Main => sandbox.signal(main_pid, number),
        SignalRecipient::EveryProcess => sandbox.signal_all(number),
    }
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
        let is_sent = send_signal(sandbox, main_pid, &self.sent)?;
        let end = || TargetEnd { evidence: format!("sent {}", self.sent), exit_time: Some(self.exit_time) };
        Ok(is_sent.then(end))
    }
}

/// A signal after which the target continues.
struct SignalFault {
    sent: SentSignal,
    sent_at: Option<Instant>,
    /// SIGSTOP was sent, and SIGCONT was not.
    stopped: bool,
}

impl SignalFault {
    fn new(sent: SentSignal) -> SignalFault {
        SignalFault { sent, sent_at: None, stopped: false }
    }

    /// Whether every process that received SIGSTOP is stopped.
    fn is_stopped(&self, context: &FaultContext<'_>) -> bool {
        let processes = context.sandbox.processes();
        let mut recipients = processes
            .iter()
            .filter(|process| match self.sent.to {
                SignalRecipient::Main => Some(process.pid_inside) == context.main_pid,
                SignalRecipient::EveryProcess => true,
            })
            .peekable();
        recipients.peek().is_some() && recipients.all(|process| process.is_stopped)
    }
}

impl InjectableFault for SignalFault {
    fn mechanism(&self) -> String {
        format!("kill(2): {}", self.sent)
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        // Between two starts of the target, no process exists that could receive a signal.
        let Some(main_pid) = context.main_pid else { return Ok(()) };
        if !send_signal(context.sandbox, main_pid, &self.sent)? {
            return Ok(());
        }
        self.sent_at = Some(Instant::now());
        self.stopped = self.sent.stop_time().is_some();
        Ok(())
    }

    fn effective_evidence(&mut self, context: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        self.sent_at?;
        match self.sent.stop_time() {
            None => Some(format!("sent {}", self.sent)),
            Some(_) => (self.stopped && self.is_stopped(context))
                .then(|| format!("{}: /proc shows the state `T (stopped)`", self.sent)),
        }
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        if !std::mem::take(&mut self.stopped) {
            return Ok(None);
        }
        // Sent to every process, because the main process may have ended. It does not affect a
        // process that is not stopped.
        context.sandbox.signal_all(SIGCONT as i32)?;
        let stopped_for = self.sent_at.map(|sent_at| sent_at.elapsed()).unwrap_or_default();
        Ok(Some(format!("SIGCONT was sent after {:.2} s", stopped_for.as_secs_f64())))
    }

    fn pauses_target(&self) -> bool {
        self.stopped
    }
}
