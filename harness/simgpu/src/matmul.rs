//! D = alpha * op(A) * op(B) + beta * C, as cublasLt defines it. Unsafe: operands are addresses that the
//! caller has checked. Must not know streams or handles.
//!
//! Each element is summed over k in ascending order, in f32, without fused operations. Its bits do not depend
//! on m, n or the machine.

/// The format of an element in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
    F32,
    Bf16,
}

impl ElementType {
    /// Size of an element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::Bf16 => 2,
        }
    }
}

/// A matrix in memory. Element (row, column) of batch b has the index
/// `row * row_stride + column * column_stride + b * batch_stride`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    pub(crate) address: usize,
    pub(crate) element: ElementType,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
    pub(crate) batch_stride: usize,
}

impl Operand {
    /// Returns the number of bytes from the start of the first to the end of the last element of all batches.
    pub(crate) fn extent_bytes(&self, batch_count: usize) -> usize {
        if self.rows == 0 || self.columns == 0 || batch_count == 0 {
            return 0;
        }
        let last = (self.rows - 1) * self.row_stride
            + (self.columns - 1) * self.column_stride
            + (batch_count - 1) * self.batch_stride;
        (last + 1) * self.element.bytes()
    }

    /// Returns the index of an element.
    fn index(&self, batch: usize, row: usize, column: usize) -> usize {
        batch * self.batch_stride + row * self.row_stride + column * self.column_stride
    }

    /// Reads an element.
    ///
    /// # Safety
    /// The element lies in readable memory.
    unsafe fn get(&self, index: usize) -> f32 {
        // SAFETY: this function requires an index within the matrix, which lies in readable memory. The element
        // need not be aligned.
        unsafe {
            match self.element {
                ElementType::F32 => (self.address as *const f32).add(index).read_unaligned(),
                ElementType::Bf16 => bf16_to_f32((self.address as *const u16).add(index).read_unaligned()),
            }
        }
    }

    /// Writes an element.
    ///
    /// # Safety
    /// The element lies in writable memory.
    unsafe fn set(&self, index: usize, value: f32) {
        // SAFETY: this function requires an index within the matrix, which lies in writable memory. The element
        // need not be aligned.
        unsafe {
            match self.element {
                ElementType::F32 => (self.address as *mut f32).add(index).write_unaligned(value),
                ElementType::Bf16 => {
                    (self.address as *mut u16).add(index).write_unaligned(f32_to_bf16(value))
                }
            }
        }
    }

    /// Copies one matrix to rows of `width` f32 values.
    ///
    /// # Safety
    /// The matrix lies in readable memory.
    unsafe fn pack(&self, batch: usize, width: usize, packed: &mut Vec<f32>) {
        packed.clear();
        packed.resize(self.rows * width, 0.0);
        for row in 0..self.rows {
            for column in 0..self.columns {
                // SAFETY: row and column are within the matrix, which the caller promises to be readable.
                packed[row * width + column] = unsafe { self.get(self.index(batch, row, column)) };
            }
        }
    }
}

/// Converts without rounding.
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest value, ties to even. NaN stays NaN.
pub(crate) fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits.wrapping_add(0x7FFF + (bits >> 16 & 1))) >> 16) as u16
}

/// One matrix product. `a` is m x k and `b` is k x n. Their strides express transposition.
#[derive(Debug, Clone)]
pub(crate) struct MatmulTask {
    pub(crate) a: Operand,
    pub(crate) b: Operand,
    pub(crate) c: Operand,
    pub(crate) d: Operand,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) batch_count: usize,
}

/// Columns and rows of a tile, small enough that its sums stay in registers or in the first-level cache.
const TILE_COLUMNS: usize = 32;
const TILE_ROWS: usize = 4;

impl MatmulTask {
    /// Computes the product.
    ///
    /// # Safety
    /// A, B and D lie in mapped memory. C does too if `beta` is not 0.
    pub(crate) unsafe fn run(&self) {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let width = self.b.columns.next_multiple_of(TILE_COLUMNS);
        for batch in 0..self.batch_count {
            // SAFETY: `run` requires that the operands are mapped, and `batch` counts their batches.
            unsafe {
                self.a.pack(batch, self.a.columns, &mut a);
                self.b.pack(batch, width, &mut b);
                self.multiply_batch(batch, &a, &b, width);
            }
        }
    }

    /// Computes one batch from the packed operands.
    ///
    /// # Safety
    /// As for [`MatmulTask::run`].
    unsafe fn multiply_batch(&self, batch: usize, a: &[f32], b: &[f32], width: usize) {
        let depth = self.a.columns;
        for first_row in (0..self.a.rows).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(self.a.rows - first_row);
            for first in (0..self.b.columns).step_by(TILE_COLUMNS) {
                let sums = Tile { a: &a[first_row * depth..], depth, rows, b: &b[first..], width }.sums();
                let columns = TILE_COLUMNS.min(self.b.columns - first);
                for (row, sums) in sums.iter().enumerate().take(rows) {
                    for (column, sum) in sums.iter().enumerate().take(columns) {
                        // SAFETY: row and column are within D and C, which the caller promises to be mapped.
                        unsafe { self.write_element(batch, first_row + row, first + column, *sum) };
                    }
                }
            }
        }
    }

    /// Writes one element of D.
    ///
    /// # Safety
    /// As for [`MatmulTask::run`]. Row and column are within D.
    unsafe fn write_element(&self, batch: usize, row: usize, column: usize, sum: f32) {
        // SAFETY: C and D have the same shape, so both have this row and this column; `run` requires that they
        // are mapped.
        unsafe {
            // C is not read if beta is 0, because it may contain NaN.
            let old =
                if self.beta == 0.0 { 0.0 } else { self.beta * self.c.get(self.c.index(batch, row, column)) };
            self.d.set(self.d.index(batch, row, column), self.alpha * sum + old);
        }
    }
}

/// The sums of one tile, by row and column.
type TileSums = [[f32; TILE_COLUMNS]; TILE_ROWS];

/// The packed operands of one tile of the result.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// The first of the tile's rows of A, and all after it.
    a: &'a [f32],
    /// Length of a row of A, over which the sums run.
    depth: usize,
    /// Rows of the tile, at most [`TILE_ROWS`].
    rows: usize,
    /// The first of the tile's columns of B, in rows of `width`.
    b: &'a [f32],
    width: usize,
}

impl Tile<'_> {
    fn sums(self) -> TileSums {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the check above shows that the CPU has AVX2.
            return unsafe { avx2_sums(self) };
        }
        portable_sums(self)
    }
}

/// The same operations in wider registers, without fused ones, so that bits do not depend on the machine.
///
/// # Safety
/// The CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2_sums(tile: Tile<'_>) -> TileSums {
    portable_sums(tile)
}

#[inline(always)]
fn portable_sums(Tile { a, depth, rows, b, width }: Tile<'_>) -> TileSums {
    let mut sums = [[0.0_f32; TILE_COLUMNS]; TILE_ROWS];
    // Missing rows repeat the last one, so that the loop below has no branch.
    let starts: [usize; TILE_ROWS] = std::array::from_fn(|row| row.min(rows - 1) * depth);
    for k in 0..depth {
        let values: &[f32; TILE_COLUMNS] = b[k * width..].first_chunk().unwrap_or(&[0.0; TILE_COLUMNS]);
        for (row, sums) in sums.iter_mut().enumerate() {
            let factor = a[starts[row] + k];
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += factor * value;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand(
        values: &[f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Operand {
        let address = values.as_ptr() as usize;
        let element = ElementType::F32;
        Operand { address, element, rows, columns, row_stride, column_stride, batch_stride: 0 }
    }

    #[test]
    fn a_transposed_product_equals_the_plain_sum() {
        let (m, n, k) = (5, 37, 11);
        let a: Vec<f32> = (0..m * k).map(|i| (i % 7) as f32 - 3.0).collect();
        let b: Vec<f32> = (0..n * k).map(|i| (i % 5) as f32 - 2.0).collect();
        let d = vec![1.0_f32; m * n];
        let matmul = MatmulTask {
            a: operand(&a, m, k, k, 1),
            b: operand(&b, k, n, 1, k),
            c: operand(&d, m, n, n, 1),
            d: operand(&d, m, n, n, 1),
            alpha: 2.0,
            beta: 0.5,
            batch_count: 1,
        };
        // SAFETY: all operands are the vectors above, with their own sizes.
        unsafe { matmul.run() };
        for row in 0..m {
            for column in 0..n {
                let sum: f32 = (0..k).map(|i| a[row * k + i] * b[column * k + i]).sum();
                assert_eq!(d[row * n + column], 2.0 * sum + 0.5);
            }
        }
    }

    #[test]
    fn batches_of_bf16_sum_in_f32_and_do_not_read_c_if_beta_is_0() {
        let (m, n, k, batches) = (3, 5, 40, 2);
        let numbers = |count: usize| (0..count).map(|i| (i % 9) as f32 - 4.0).collect::<Vec<_>>();
        let narrow = |values: &[f32]| values.iter().map(|value| f32_to_bf16(*value)).collect::<Vec<_>>();
        let (a, b) = (numbers(batches * m * k), numbers(batches * k * n));
        let (narrow_a, narrow_b) = (narrow(&a), narrow(&b));
        let d = vec![f32::NAN; batches * m * n];
        let bf16 = |values: &[u16], rows, columns| {
            let (address, batch_stride) = (values.as_ptr() as usize, rows * columns);
            Operand {
                address,
                element: ElementType::Bf16,
                rows,
                columns,
                row_stride: columns,
                column_stride: 1,
                batch_stride,
            }
        };
        let out = Operand { batch_stride: m * n, ..operand(&d, m, n, n, 1) };
        let (a_operand, b_operand) = (bf16(&narrow_a, m, k), bf16(&narrow_b, k, n));
        let matmul = MatmulTask {
            a: a_operand,
            b: b_operand,
            c: out,
            d: out,
            alpha: 1.0,
            beta: 0.0,
            batch_count: batches,
        };
        assert_eq!(out.extent_bytes(batches), d.len() * 4);
        // SAFETY: all operands are the vectors above, with their own sizes.
        unsafe { matmul.run() };
        for (index, value) in d.iter().enumerate() {
            let (batch, row, column) = (index / (m * n), index / n % m, index % n);
            let sum: f32 =
                (0..k).map(|i| a[(batch * m + row) * k + i] * b[(batch * k + i) * n + column]).sum();
            assert_eq!(*value, sum);
        }
    }

    #[test]
    fn rounding_to_bf16_resolves_ties_to_even() {
        assert_eq!(f32_to_bf16(f32::from_bits(0x3F80_8000)), 0x3F80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3F81_8000)), 0x3F82);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }
}
