//! What the user is told about the start of recoveries, in words. Decides nothing.

use std::fmt::{Display, Formatter};

use scenarios::time_text;

/// How recoveries start, if there is a choice.
#[derive(Debug, Clone, PartialEq)]
pub enum WarmNews {
    /// They are forked from an interpreter that has imported the libraries.
    Forked {
        /// How many modules the first recovery had imported from the standard library and from packages.
        modules: usize,
    },
    /// Each is a new process.
    NewProcesses {
        /// How long the recorded run took.
        seconds: f64,
        /// Why.
        reason: ColdReason,
        /// How many recoveries were forked before. Their results are discarded.
        discarded: usize,
        /// How many lines about unconfirmed failures were printed meanwhile.
        withdrawn: usize,
    },
}

/// Why recoveries that take long are new processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColdReason {
    /// The command does not start Python directly.
    NotPython,
    /// The first recovery did not end as a Python program does.
    NothingNoted,
    /// The interpreter could not be started or has ended; why.
    ServerFailed(String),
    /// An expectation measures what a fork changes: its text.
    Measured(String),
    /// The trials need mounts or GPUs of their own.
    OwnDevices,
    /// A trial with forked processes did something else than with new ones.
    TrialDiffers {
        /// Its number.
        trial: u32,
        /// What it did with forked processes.
        forked: String,
        /// What it did with new ones.
        new_process: String,
    },
    /// A forked recovery did something else than a new process.
    Differs {
        /// The crash state.
        state: String,
        /// What the forked recovery did.
        forked: String,
        /// What the new process did.
        new_process: String,
    },
}

impl Display for WarmNews {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            WarmNews::Forked { modules } => {
                let modules = if *modules == 1 { "1 module".into() } else { format!("{modules} modules") };
                write!(f, "recoveries are forked from a Python that has imported the libraries ({modules})")
            }
            WarmNews::NewProcesses { seconds, reason, discarded, withdrawn } => {
                let time = time_text(*seconds);
                write!(
                    f,
                    "each recovery is a new process (the recorded run took {time}), because {reason}{}{}",
                    discarded_text(*discarded),
                    withdrawn_text(*withdrawn)
                )
            }
        }
    }
}

fn discarded_text(discarded: usize) -> String {
    match discarded {
        0 => String::new(),
        1 => "; the result of the recovery that was forked is discarded, and its state is tried again".into(),
        count => {
            format!(
                "; the results of {count} recoveries that were forked are discarded, and all states are tried again"
            )
        }
    }
}

fn withdrawn_text(withdrawn: usize) -> String {
    match withdrawn {
        0 => String::new(),
        1 => "; the line `unconfirmed` above is withdrawn".into(),
        count => format!("; the last {count} lines `unconfirmed` above are withdrawn"),
    }
}

impl Display for ColdReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            ColdReason::NotPython => f.write_str(
                "the command does not start `python` itself; if the trainer is a Python program, name `python` and \
                 its script in the command, and recoveries are forked",
            ),
            ColdReason::NothingNoted => {
                f.write_str("the first recovery did not end as a Python program does, so its imports are unknown")
            }
            ColdReason::ServerFailed(detail) => {
                write!(f, "a Python that has imported the libraries could not be used ({detail})")
            }
            ColdReason::Measured(expectation) => {
                write!(f, "the expectation `{expectation}` measures what a fork of a Python process changes")
            }
            ColdReason::OwnDevices => {
                f.write_str("the scenario gives each trial its own mounts or GPUs, which forks would share")
            }
            ColdReason::TrialDiffers { trial, forked, new_process } => write!(
                f,
                "trial {trial} does something else if the target is forked from a Python that has imported the \
                 libraries ({forked}) than with new processes ({new_process})"
            ),
            ColdReason::Differs { state, forked, new_process } => write!(
                f,
                "the recovery from state {state} {forked} if it is forked from a Python that has imported the \
                 libraries; as a new process it {new_process}"
            ),
        }
    }
}
