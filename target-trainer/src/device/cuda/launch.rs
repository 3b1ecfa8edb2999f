//! How a kernel is launched: its parameters as bits, its grid, block and shared memory. Knows no kernel.

use super::matrix_view::MatrixView;
use super::memory::{BufferView, ElementType};
use super::sys::LaunchConfig;

/// Threads of a block that processes a row.
pub(super) const ROW_THREADS: u32 = 128;
/// Threads of a block that processes a part of a buffer, or a row of logits.
pub(super) const WIDE_THREADS: u32 = 256;
/// Maximum number of blocks for a pass over a whole buffer. A norm has this many partial sums.
pub const MAX_BLOCKS: u32 = 256;
/// Elements that make a further thread worth its barriers: 16 bytes of a bf16 row, or a few elements of a
/// buffer.
const ELEMENTS_PER_THREAD: usize = 8;

/// The parameters of a kernel launch, as bits.
pub(super) struct KernelParams(Vec<u64>);

impl KernelParams {
    pub(super) fn new() -> KernelParams {
        KernelParams(Vec::with_capacity(20))
    }

    pub(super) fn values(&self) -> &[u64] {
        &self.0
    }

    /// Pushes the address of a view.
    pub(super) fn pointer(mut self, view: BufferView<'_>) -> KernelParams {
        self.0.push(view.address);
        self
    }

    /// Pushes a null pointer.
    pub(super) fn null(mut self) -> KernelParams {
        self.0.push(0);
        self
    }

    /// Pushes an `int`. Panics if the value is too large.
    pub(super) fn int(mut self, value: usize) -> KernelParams {
        self.0.push(u64::from(
            u32::try_from(value)
                .ok()
                .filter(|v| *v <= i32::MAX as u32)
                .unwrap_or_else(|| panic!("{value} is too large for a kernel's int")),
        ));
        self
    }

    /// Pushes a `float`.
    pub(super) fn float(mut self, value: f32) -> KernelParams {
        self.0.push(u64::from(value.to_bits()));
        self
    }

    /// Pushes a 64-bit integer.
    pub(super) fn long(mut self, value: u64) -> KernelParams {
        self.0.push(value);
        self
    }

    /// Pushes the address and `ld`.
    pub(super) fn matrix(self, matrix: MatrixView<'_>) -> KernelParams {
        self.pointer(matrix.view).int(matrix.ld)
    }
}

fn saturating_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Launch with these numbers of blocks.
pub(super) fn launch_config(grid: [usize; 3], threads: u32, shared_bytes: usize) -> LaunchConfig {
    LaunchConfig {
        grid: grid.map(saturating_u32),
        block_threads: threads,
        shared_bytes: saturating_u32(shared_bytes),
    }
}

/// Launch with one block for each row.
pub(super) fn row_launch(rows: usize, threads: u32, shared_bytes: usize) -> LaunchConfig {
    launch_config([rows, 1, 1], threads, shared_bytes)
}

/// Launch of a kernel that sums over each row. Threads are a power of two, and no more than a row can keep
/// busy. Each has 4 bytes of shared memory.
pub(super) fn row_sum_launch(rows: usize, cols: usize, max_threads: u32) -> LaunchConfig {
    let threads =
        saturating_u32(cols.div_ceil(ELEMENTS_PER_THREAD).next_power_of_two()).clamp(32, max_threads);
    row_launch(rows, threads, threads as usize * 4)
}

/// Launch of a kernel whose blocks loop over `count` elements.
pub(super) fn whole_buffer_launch(count: usize, shared_bytes: usize) -> LaunchConfig {
    launch_config([block_count(count), 1, 1], WIDE_THREADS, shared_bytes)
}

/// The number of blocks that `count` elements can keep busy.
pub(super) fn block_count(count: usize) -> usize {
    count.div_ceil(WIDE_THREADS as usize * ELEMENTS_PER_THREAD).clamp(1, MAX_BLOCKS as usize)
}

/// The kernel's name with the suffix of its element type.
pub(super) fn typed_kernel_name(name: &'static str, element: ElementType) -> String {
    match element {
        ElementType::Bf16 => format!("{name}_bf16"),
        _ => format!("{name}_f32"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "too large for a kernel's int")]
    fn a_size_beyond_an_int_panics() {
        let _ = KernelParams::new().int(1 << 31);
    }
}
