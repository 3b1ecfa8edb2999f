//! The one call that the compiler can't check: the matrix product of the `gemm` crate.

/// A matrix as it lies in a slice: row stride and column stride, in elements.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub(super) row: usize,
    pub(super) col: usize,
}

/// `dst[m, n] = scale * lhs[m, k] * rhs[k, n]`, added to what `dst` holds if `add`.
#[expect(clippy::too_many_arguments, reason = "a matrix product has three matrices, each with its strides")]
pub(super) fn checked_gemm(
    (m, n, k): (usize, usize, usize),
    dst: &mut [f32],
    dst_at: Strides,
    lhs: &[f32],
    lhs_at: Strides,
    rhs: &[f32],
    rhs_at: Strides,
    scale: f32,
    add: bool,
) {
    let reach = |rows: usize, cols: usize, at: Strides| {
        if rows * cols == 0 { 0 } else { (rows - 1) * at.row + (cols - 1) * at.col + 1 }
    };
    assert!(
        dst.len() >= reach(m, n, dst_at)
            && lhs.len() >= reach(m, k, lhs_at)
            && rhs.len() >= reach(k, n, rhs_at)
    );
    // SAFETY: the assertion above has shown that every element that these strides lead to lies within its slice, and
    // `dst` is borrowed mutably, so it overlaps with neither of the others.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            dst_at.col as isize,
            dst_at.row as isize,
            add,
            lhs.as_ptr(),
            lhs_at.col as isize,
            lhs_at.row as isize,
            rhs.as_ptr(),
            rhs_at.col as isize,
            rhs_at.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
