//! A tensor between the flat lists of the engine and the file formats.

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
