//! What a worker tells its daemon: one JSON value a line.

use serde::{Deserialize, Serialize};

/// One thing that a worker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerEvent {
    /// A sign of life, a few times a second.
    Heartbeat,
    /// 0: from scratch.
    Resumed {
        step: u64,
    },
    CheckpointSkipped {
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
    SaveDeferred {
        step: u64,
        reason: String,
    },
    /// Begun, and undone.
    SaveFailed {
        step: u64,
        reason: String,
    },
    StepSkipped {
        step: u64,
        reason: String,
    },
    RolledBack {
        to: u64,
        reason: String,
    },
    Finished {
        step: u64,
        adapter: String,
    },
    /// Where it trains, said before anything else.
    Device {
        device: String,
    },
    /// Device memory was short; nothing was applied, and the same batch is done in smaller parts.
    MicroBatchReduced {
        from: usize,
        to: usize,
    },
    /// Frozen weights were no longer what was loaded; they are now, and the run has gone back.
    WeightsReloaded {
        to: u64,
    },
    /// A step computed twice came out differently; nothing was applied, and it is done again.
    ResultsDiffer {
        step: u64,
    },
    /// The GPU has been waited for this long.
    GpuStuck {
        seconds: u64,
    },
    /// The reason for an exit code that is not 0.
    ExitReason {
        reason: String,
    },
}
