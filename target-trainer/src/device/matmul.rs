//! Matrix products on the CPU, with either factor transposed. Knows no model.

use super::sys::{Strides, checked_gemm};

pub use super::sys::MatmulSize;

/// Whether a product replaces the content of the destination or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    /// The product replaces the content.
    Replace,
    /// The product is added to the content.
    Add,
}

/// Strides of a row-major matrix with `cols` columns.
fn row_major(cols: usize) -> Strides {
    Strides { row: cols, col: 1 }
}

/// Strides of a column-major matrix with `rows` rows.
fn column_major(rows: usize) -> Strides {
    Strides { row: 1, col: rows }
}

/// `dst[m, n] (+)= scale * a[m, k] * b[n, k]^T`: the forward pass of a linear layer with weight `b`.
pub fn matmul_nt(
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
    size: MatmulSize,
    scale: f32,
    accumulate: Accumulate,
) {
    checked_gemm(
        size,
        dst,
        row_major(size.n),
        a,
        row_major(size.k),
        b,
        column_major(size.k),
        scale,
        accumulate == Accumulate::Add,
    );
}

/// `dst[m, n] (+)= scale * a[m, k] * b[k, n]`: the gradient of a linear layer's input.
pub fn matmul_nn(
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
    size: MatmulSize,
    scale: f32,
    accumulate: Accumulate,
) {
    checked_gemm(
        size,
        dst,
        row_major(size.n),
        a,
        row_major(size.k),
        b,
        row_major(size.n),
        scale,
        accumulate == Accumulate::Add,
    );
}

/// `dst[m, n] (+)= scale * a[k, m]^T * b[k, n]`: the gradient of a linear layer's weight.
pub fn matmul_tn(
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
    size: MatmulSize,
    scale: f32,
    accumulate: Accumulate,
) {
    checked_gemm(
        size,
        dst,
        row_major(size.n),
        a,
        column_major(size.m),
        b,
        row_major(size.n),
        scale,
        accumulate == Accumulate::Add,
    );
}
