//! The complete state of a run between two steps. A run that resumes from it continues bit by bit.

use serde::{Deserialize, Serialize};

/// A tensor with its name in the file formats.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Name as PEFT writes it.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub data: Vec<f32>,
}

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

/// The state of a run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// LoRA matrices under PEFT's names.
    pub adapter: Vec<NamedTensor>,
    /// AdamW's first and second moments.
    pub optimizer: Vec<NamedTensor>,
    /// The position in the run.
    pub cursor: Cursor,
}
