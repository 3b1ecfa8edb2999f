//! Sequences that attention processes together, without padding. Chooses the kernel and its grid.

use super::launch::KernelParams;
use super::memory::{BufferView, ElementType};

/// Rows of an attention tile; `TILE` in `kernels/device.h`.
const TILE_ROWS: usize = 64;

/// Sizes of an attention operation over packed sequences.
#[derive(Debug, Clone, Copy)]
pub struct PackedSequences<'a> {
    /// 32-bit ints: the first row of each sequence, then the end of the last sequence.
    pub starts: BufferView<'a>,
    /// Number of sequences.
    pub sequences: usize,
    /// Tokens of all sequences together.
    pub rows: usize,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Use tensor cores if there is a kernel for this head size.
    pub tensor_cores: bool,
}

impl PackedSequences<'_> {
    /// Factor of the scores, `1 / sqrt(d)`.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The kernel's name, and whether it uses tensor cores.
    pub(super) fn kernel(&self, name: &str, element: ElementType) -> (String, bool) {
        let uses_tensor_cores =
            self.tensor_cores && element == ElementType::Bf16 && [16, 32, 64, 128].contains(&self.head_dim);
        match (uses_tensor_cores, element) {
            (true, _) => (format!("{name}_bf16_d{}", self.head_dim), true),
            (false, ElementType::Bf16) => (format!("{name}_bf16"), false),
            (false, _) => (format!("{name}_f32"), false),
        }
    }

    /// Grid of a kernel with one block for each tile of rows, head and sequence.
    pub(super) fn grid(&self, heads: usize) -> [usize; 3] {
        [self.longest.div_ceil(TILE_ROWS), heads, self.sequences]
    }

    /// Pushes the parameters that all attention kernels share.
    pub(super) fn push_sizes(&self, params: KernelParams) -> KernelParams {
        params
            .pointer(self.starts)
            .int(self.rows)
            .int(self.heads)
            .int(self.kv_heads)
            .int(self.head_dim)
            .float(self.scale())
    }

    /// Bytes of shared memory, by the formulas in `kernels/README.md`.
    pub(super) fn shared_bytes(
        &self,
        uses_tensor_cores: bool,
        plain_bytes: usize,
        extra_bytes: usize,
    ) -> usize {
        if uses_tensor_cores { 256 * (self.head_dim + 8) + extra_bytes } else { plain_bytes }
    }
}
