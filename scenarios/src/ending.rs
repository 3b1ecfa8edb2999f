//! How a process ended. Knows nothing of why.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a process ended. Its text completes a sentence: `ended with exit code 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// Exit code.
    Exited(i32),
    /// Number of a signal that the harness did not send.
    Signalled(i32),
    /// The harness killed it, because a fault of the scenario requires it.
    KilledByFault,
    /// The harness killed it because it made no progress within its time limit.
    TimedOut,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Exited(code) => write!(f, "ended with exit code {code}"),
            Ending::Signalled(signal) => write!(f, "was ended by signal {signal}"),
            Ending::KilledByFault => f.write_str("was killed by a fault"),
            Ending::TimedOut => f.write_str("exceeded its time limit"),
        }
    }
}
