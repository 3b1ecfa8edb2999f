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
    /// Where it trains, said before anything else.
    On {
        device: String,
    },
    /// Device memory was short; nothing was applied, and the same batch is done in smaller parts.
    Shrunk {
        from: usize,
        to: usize,
    },
    /// Frozen weights were no longer what was loaded; they are now, and the run has gone back.
    WeightsMended {
        to: u64,
    },
    /// A step computed twice came out differently; nothing was applied, and it is done again.
    Disagreed {
        step: u64,
    },
    /// The GPU has been waited for this long.
    Stuck {
        seconds: u64,
    },
    /// The reason for an exit code that is not 0.
    Ending {
        why: String,
    },
}
