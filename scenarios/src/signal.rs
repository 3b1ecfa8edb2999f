//! Signals as scenarios name them, and what the fault `signal` does with them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Default of `for` after a signal that asks the target to exit: the time within which it must exit. This is
/// also the default of Kubernetes (`terminationGracePeriodSeconds`).
const DEFAULT_EXIT_TIME: Duration = Duration::from_secs(30);

/// A signal by its name without `SIG`, as for `kill -TERM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum SignalName {
    Abrt,
    Alrm,
    Bus,
    Fpe,
    Hup,
    Ill,
    Int,
    /// Kills only the receiver. To kill every process at once, use the fault `crash`.
    Kill,
    Pipe,
    Quit,
    Segv,
    /// Stops the receiver. SIGCONT follows after `for`.
    Stop,
    Term,
    Usr1,
    Usr2,
    Xcpu,
}

impl SignalName {
    /// The name without `SIG`, as in a scenario file.
    pub fn name(self) -> &'static str {
        match self {
            SignalName::Abrt => "ABRT",
            SignalName::Alrm => "ALRM",
            SignalName::Bus => "BUS",
            SignalName::Fpe => "FPE",
            SignalName::Hup => "HUP",
            SignalName::Ill => "ILL",
            SignalName::Int => "INT",
            SignalName::Kill => "KILL",
            SignalName::Pipe => "PIPE",
            SignalName::Quit => "QUIT",
            SignalName::Segv => "SEGV",
            SignalName::Stop => "STOP",
            SignalName::Term => "TERM",
            SignalName::Usr1 => "USR1",
            SignalName::Usr2 => "USR2",
            SignalName::Xcpu => "XCPU",
        }
    }

    /// Whether programs treat this signal as a request to exit.
    fn requests_exit(self) -> bool {
        matches!(self, SignalName::Term | SignalName::Int | SignalName::Quit)
    }
}

/// Which processes of the target receive a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SignalRecipient {
    /// The process that the target file's command started.
    #[default]
    Main,
    /// Every process in the sandbox.
    EveryProcess,
}

/// A signal that is sent to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentSignal {
    /// The signal.
    pub signal: SignalName,
    /// Which processes receive it.
    pub to: SignalRecipient,
    /// After SIGSTOP, the time until SIGCONT. After another signal, the time within which the target must
    /// exit; `None` if it may go on.
    pub duration: Option<Duration>,
}

impl SentSignal {
    /// The signal with the scenario's `for`, or the default for this signal.
    pub(crate) fn new(signal: SignalName, to: SignalRecipient, duration: Option<Duration>) -> SentSignal {
        let duration = duration.or(signal.requests_exit().then_some(DEFAULT_EXIT_TIME));
        SentSignal { signal, to, duration }
    }

    /// The time within which the target must exit. `None` if it may go on.
    pub fn exit_time(&self) -> Option<Duration> {
        self.duration.filter(|_| self.signal != SignalName::Stop)
    }

    /// The time until SIGCONT, after SIGSTOP.
    pub fn stop_time(&self) -> Option<Duration> {
        self.duration.filter(|_| self.signal == SignalName::Stop)
    }
}

impl std::fmt::Display for SentSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recipient = match self.to {
            SignalRecipient::Main => "the main process",
            SignalRecipient::EveryProcess => "every process",
        };
        write!(f, "SIG{} to {recipient}", self.signal.name())
    }
}
