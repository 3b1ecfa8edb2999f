//! The complete state of a run between two steps. A run that resumes from it continues bit by bit.

use super::cursor::Cursor;
use super::named_tensor::NamedTensor;

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
