//! The position of a run in its steps and its data. Part of every checkpoint.

use serde::{Deserialize, Serialize};

/// The position of a run: steps, and the place in the data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Updates applied (AdamW's t). Smaller than `step` by the number of skipped steps.
    pub updates: u64,
    /// Complete passes over the data.
    pub epoch: u64,
    /// Samples of this epoch that are consumed.
    pub position: u64,
    /// State of the random number generator, which determines this epoch's order.
    pub random: [u64; 4],
}
