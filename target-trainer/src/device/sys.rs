//! Bounds-checked wrapper of the unsafe matrix product of the `gemm` crate.

/// Row stride and column stride of a matrix within a slice, in elements.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub(super) row: usize,
    pub(super) col: usize,
}

/// Sizes of a matrix product `[m, k] * [k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatmulSize {
    /// Rows of the product.
    pub m: usize,
    /// Columns of the product.
    pub n: usize,
    /// Elements of each sum.
    pub k: usize,
}

/// `dst[m, n] = scale * lhs[m, k] * rhs[k, n]`. If `add` is true, the product is added to the content of
/// `dst`.
///
/// # Panics
///
/// If a slice is shorter than its sizes and strides require.
#[expect(clippy::too_many_arguments, reason = "a matrix product has three matrices, each with its strides")]
pub(super) fn checked_gemm(
    size: MatmulSize,
    dst: &mut [f32],
    dst_strides: Strides,
    lhs: &[f32],
    lhs_strides: Strides,
    rhs: &[f32],
    rhs_strides: Strides,
    scale: f32,
    add: bool,
) {
    let MatmulSize { m, n, k } = size;
    let required_len = |rows: usize, cols: usize, strides: Strides| {
        if rows * cols == 0 { 0 } else { (rows - 1) * strides.row + (cols - 1) * strides.col + 1 }
    };
    assert!(
        dst.len() >= required_len(m, n, dst_strides)
            && lhs.len() >= required_len(m, k, lhs_strides)
            && rhs.len() >= required_len(k, n, rhs_strides)
    );
    // SAFETY: the assertion above ensures that every element addressed by the strides is within its slice.
    // `dst` is borrowed mutably, so it does not overlap `lhs` or `rhs`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            dst_strides.col as isize,
            dst_strides.row as isize,
            add,
            lhs.as_ptr(),
            lhs_strides.col as isize,
            lhs_strides.row as isize,
            rhs.as_ptr(),
            rhs_strides.col as isize,
            rhs_strides.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
