//! Matrix products, with either factor read across or along.

use super::sys::{Strides, checked_gemm};

/// Whether a product replaces what the destination holds, or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accumulate {
    Replace,
    Add,
}

fn row_major(cols: usize) -> Strides {
    Strides { row: cols, col: 1 }
}

fn column_major(rows: usize) -> Strides {
    Strides { row: 1, col: rows }
}

/// `dst[m, n] (+)= scale * a[m, k] * b[n, k]^T`: a linear layer's forward, with `b` its weight.
pub fn matmul_nt(
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
    (m, n, k): (usize, usize, usize),
    scale: f32,
    how: Accumulate,
) {
    checked_gemm(
        (m, n, k),
        dst,
        row_major(n),
        a,
        row_major(k),
        b,
        column_major(k),
        scale,
        how == Accumulate::Add,
    );
}

/// `dst[m, n] (+)= scale * a[m, k] * b[k, n]`: a linear layer's gradient of its input.
pub fn matmul_nn(
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
    (m, n, k): (usize, usize, usize),
    scale: f32,
    how: Accumulate,
) {
    checked_gemm(
        (m, n, k),
        dst,
        row_major(n),
        a,
        row_major(k),
        b,
        row_major(n),
        scale,
        how == Accumulate::Add,
    );
}

/// `dst[m, n] (+)= scale * a[k, m]^T * b[k, n]`: a linear layer's gradient of its weight.
pub fn matmul_tn(
    dst: &mut [f32],
    a: &[f32],
    b: &[f32],
    (m, n, k): (usize, usize, usize),
    scale: f32,
    how: Accumulate,
) {
    checked_gemm(
        (m, n, k),
        dst,
        row_major(n),
        a,
        column_major(m),
        b,
        row_major(n),
        scale,
        how == Accumulate::Add,
    );
}
