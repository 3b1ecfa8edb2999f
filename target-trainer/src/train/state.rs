//! All that a resumed run needs to go on bit for bit.

use serde::{Deserialize, Serialize};

/// A tensor by its name in the file formats, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

/// Where a run stands, beside its tensors. Floats are stored by their bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Updates applied (AdamW's t); smaller than `step` by the skipped ones.
    pub updates: u64,
    pub epoch: u64,
    /// Samples of this epoch already consumed.
    pub position: u64,
    /// State of the random generator.
    pub random: [u64; 4],
}

/// A run between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// LoRA matrices under PEFT's names.
    pub adapter: Vec<NamedTensor>,
    /// First and second moments.
    pub optimizer: Vec<NamedTensor>,
    pub cursor: Cursor,
}
