//! The factors of a matrix product.

/// The factors of a product and of the matrix that is added to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GemmScales {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the added matrix. With 0 its content does not matter.
    pub beta: f32,
}

impl GemmScales {
    /// The product replaces the content.
    pub const REPLACE: GemmScales = GemmScales { alpha: 1.0, beta: 0.0 };
    /// The product is added to the content.
    pub const ADD: GemmScales = GemmScales { alpha: 1.0, beta: 1.0 };
}
