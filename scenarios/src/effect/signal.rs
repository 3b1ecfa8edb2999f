//! The fault `signal`: a signal to the target, which may have to exit then, or is stopped for a time.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::effect::checker::Checker;
use crate::effect::keys::{TriggerDraft, UntilDraft, fault};
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::units::TimeSpan;
use crate::yaml::spanned::Spanned;

/// Default of `for` after a signal that asks the target to exit: the time within which it must exit. This is
/// also the default of Kubernetes (`terminationGracePeriodSeconds`).
const DEFAULT_EXIT_TIME: Duration = Duration::from_secs(30);

fault!(
    /// Sends a signal. One trial for each in the list.
    SignalDraft {
        /// The signals, without `SIG`: `[TERM, INT]`.
        which: Spanned<Vec<SignalName>>,
        /// `main`: the process that the target file's command started. `children`: all of the target's other
        /// processes. `group`: the process group of the main process, as Ctrl-C does. `every-process`: all of
        /// the target's. Default: `main`.
        #[serde(default)]
        to: SignalRecipient,
        /// After STOP: the time until CONT follows; required. After another signal: the time within which the
        /// target must exit, otherwise it is `hung`; it is then resumed. Default: 30 s after TERM, INT and
        /// QUIT, as in Kubernetes. After the other signals the target may go on.
        r#for: Option<Spanned<TimeSpan>>,
        /// The time after which the signal is sent a second time, while the target still runs.
        again_after: Option<Spanned<TimeSpan>>,
        /// Instead of `for`: the time after which every process is killed, as a scheduler does. The target is
        /// then resumed.
        kill_after: Option<Spanned<TimeSpan>>,
    }
);

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
    /// Every process in the sandbox but the main process: the workers, not the daemon.
    Children,
    /// The processes of the main process's group.
    Group,
    /// Every process in the sandbox.
    EveryProcess,
}

/// Sends a signal, one trial for each. Never empty. If it asks the target to exit, resumes the target.
#[derive(Debug, Clone)]
pub struct Signal {
    /// The signals. Only one in a planned trial.
    pub signals: Vec<SentSignal>,
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
    /// The time after which it is sent a second time.
    pub again_after: Option<Duration>,
    /// Whether a target that has not exited within `duration` is killed and resumed. Otherwise it is `hung`.
    pub then_kill: bool,
}

impl SentSignal {
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
            SignalRecipient::Children => "the children of the main process",
            SignalRecipient::Group => "the process group",
            SignalRecipient::EveryProcess => "every process",
        };
        write!(f, "SIG{} to {recipient}", self.signal.name())
    }
}

impl Signal {
    /// The signal of a planned trial.
    pub fn sent(&self) -> Option<&SentSignal> {
        self.signals.first()
    }
}

impl CheckEffect for SignalDraft {
    type Checked = Signal;

    fn check(&self, checker: &mut Checker) -> Signal {
        checker.require_not_empty(&self.which, "`which` is empty");
        let stops = self.which.value.contains(&SignalName::Stop);
        if stops && self.r#for.is_none() {
            let problem = self.which.problem("STOP needs the time until CONT follows");
            checker.problems.push(problem.help("add `for: 2 s`"));
        }
        if stops && !matches!(self.until, None | Some(UntilDraft::Never)) {
            let problem = self.which.problem("a STOP ends with CONT after `for`, so it cannot have `until`");
            checker.problems.push(problem.help("remove `until`"));
        }
        let times =
            [("for", &self.r#for), ("again-after", &self.again_after), ("kill-after", &self.kill_after)];
        for (key, time) in times {
            if let Some(time) = time.as_ref().filter(|time| time.value.0.is_zero()) {
                checker.problems.push(time.problem(format!("`{key}` must be longer than 0")));
            }
        }
        self.check_sequence(checker);
        if matches!(self.when, None | Some(TriggerDraft::Start | TriggerDraft::Restart)) {
            let problem = self.which.problem("before its start the target cannot receive a signal");
            checker.problems.push(problem.help("add `when: {step: 4}`, or another trigger"));
        }
        Signal { signals: self.which.value.iter().map(|signal| self.sent(*signal)).collect() }
    }
}

impl SignalDraft {
    /// One of the signals, with its times or the defaults.
    fn sent(&self, signal: SignalName) -> SentSignal {
        let time = |time: &Option<Spanned<TimeSpan>>| time.as_ref().map(|time| time.value.0);
        let default = signal.requests_exit().then_some(DEFAULT_EXIT_TIME);
        SentSignal {
            signal,
            to: self.to,
            duration: time(&self.kill_after).or(time(&self.r#for)).or(default),
            again_after: time(&self.again_after),
            then_kill: self.kill_after.is_some(),
        }
    }

    /// Checks what follows the first signal.
    fn check_sequence(&self, checker: &mut Checker) {
        if let (Some(_), Some(kill_after)) = (&self.r#for, &self.kill_after) {
            let problem = kill_after.problem("a signal cannot have both `for` and `kill-after`");
            checker
                .problems
                .push(problem.help("`for`: a target that has not exited is hung; remove one of them"));
        }
        let may_go_on = |signal: &&SignalName| self.sent(**signal).exit_time().is_none();
        let Some(signal) = self.which.value.iter().find(may_go_on) else { return };
        if let Some(again_after) = &self.again_after {
            let message =
                format!("`again-after` needs a time to exit, which {} does not have", signal.name());
            checker.problems.push(again_after.problem(message).help("add `for: 10 s`"));
        }
        if let (SignalName::Stop, Some(kill_after)) = (signal, &self.kill_after) {
            let problem =
                kill_after.problem("a stopped target cannot exit, so STOP cannot have `kill-after`");
            checker.problems.push(problem.help("use `for`, or the fault `crash`"));
        }
    }
}

impl EffectSpec for Signal {
    fn ends_target(&self) -> bool {
        self.asks_to_exit()
    }

    fn is_momentary(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let Some(sent) = self.sent() else { return String::new() };
        match (sent.stop_time(), sent.exit_time()) {
            (Some(time), _) => format!("{sent}, SIGCONT after {time:?},"),
            (_, Some(time)) => {
                let again = sent.again_after.map(|again| format!(", again after {again:?}"));
                let then = if sent.then_kill { ", then SIGKILL," } else { "," };
                format!("{sent}{}, {time:?} to exit{then}", again.unwrap_or_default())
            }
            _ => sent.to_string(),
        }
    }

    fn choices(&self, _measured: Measurements<'_>) -> Vec<Signal> {
        self.signals.iter().map(|sent| Signal { signals: vec![*sent] }).collect()
    }

    fn asks_to_exit(&self) -> bool {
        self.signals.iter().any(|sent| sent.exit_time().is_some())
    }

    fn reverts_after(&self) -> Option<Duration> {
        self.sent().and_then(SentSignal::stop_time)
    }
}
