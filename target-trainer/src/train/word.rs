//! What a worker tells its daemon: one JSON value a line.

use serde::{Deserialize, Serialize};

/// One thing that a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// A sign of life, a few times a second.
    Alive,
    /// 0: from scratch.
    Resumed {
        step: u64,
    },
    PassedOver {
        name: String,
        reason: String,
    },
    /// The loss as text: JSON has no NaN.
    Step {
        step: u64,
        loss: String,
    },
    Saving {
        step: u64,
    },
    Saved {
        step: u64,
    },
    /// Not begun.
    PutOff {
        step: u64,
        why: String,
    },
    /// Begun, and undone.
    SaveFailed {
        step: u64,
        why: String,
    },
    Skipped {
        step: u64,
        what: String,
    },
    RolledBack {
        to: u64,
        what: String,
    },
    Finished {
        step: u64,
        adapter: String,
    },
    /// The reason for an exit code that is not 0.
    Ending {
        why: String,
    },
}
