//! Launches each kernel with its parameters, grid, block and shared memory (see `kernels/README.md`). Knows
//! no model.
//!
//! This file checks sizes that could make a kernel access memory outside a buffer. Kernels check their sizes
//! against the grid.

use super::cuda_device::CudaDevice;
use super::error::DeviceError;
use super::memory::{BufferView, ElementType};
use super::sys::LaunchConfig;

/// Threads of a block that processes a row.
const ROW_THREADS: u32 = 128;
/// Threads of a block that processes a part of a buffer, or a row of logits.
const WIDE_THREADS: u32 = 256;
/// Maximum number of blocks for a pass over a whole buffer. A norm has this many partial sums.
pub const MAX_BLOCKS: u32 = 256;
/// Elements that make a further thread worth its barriers: 16 bytes of a bf16 row, or a few elements of a
/// buffer.
const ELEMENTS_PER_THREAD: usize = 8;
/// Rows of an attention tile; `TILE` in `kernels/device.h`.
const TILE_ROWS: usize = 64;

/// A row-major matrix in device memory. `ld` is the number of elements from one row to the next.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// From the first element of the matrix on.
    pub view: BufferView<'a>,
    pub rows: usize,
    pub cols: usize,
    /// Elements from one row to the next, at least `cols`.
    pub ld: usize,
}

impl<'a> MatrixView<'a> {
    /// A matrix without gaps between its rows.
    ///
    /// # Panics
    ///
    /// If the view is too short.
    pub fn dense(view: BufferView<'a>, rows: usize, cols: usize) -> MatrixView<'a> {
        MatrixView::with_ld(view, rows, cols, cols)
    }

    /// A matrix with `ld` elements from one row to the next.
    ///
    /// # Panics
    ///
    /// If `ld` is less than `cols`, or if the view is too short.
    pub fn with_ld(view: BufferView<'a>, rows: usize, cols: usize, ld: usize) -> MatrixView<'a> {
        let required_len = if rows * cols == 0 { 0 } else { (rows - 1) * ld + cols };
        assert!(
            cols <= ld && required_len <= view.len,
            "{rows} x {cols} (ld {ld}) does not fit {} elements",
            view.len
        );
        MatrixView { view, rows, cols, ld }
    }

    /// The columns `from` to `from + cols`.
    ///
    /// # Panics
    ///
    /// If the matrix has fewer columns.
    pub fn column_range(self, from: usize, cols: usize) -> MatrixView<'a> {
        assert!(
            from + cols <= self.cols,
            "{cols} columns from column {from} are not within {} columns",
            self.cols
        );
        MatrixView { view: self.view.skip(from.min(self.view.len)), cols, ..self }
    }

    /// The rows `from` to `from + rows`.
    ///
    /// # Panics
    ///
    /// If the matrix has fewer rows.
    pub fn row_range(self, from: usize, rows: usize) -> MatrixView<'a> {
        assert!(from + rows <= self.rows, "{rows} rows from row {from} are not within {} rows", self.rows);
        MatrixView { view: self.view.skip(from * self.ld), rows, ..self }
    }
}

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
    fn null(mut self) -> KernelParams {
        self.0.push(0);
        self
    }

    /// Pushes an `int`. Panics if the value is too large.
    fn int(mut self, value: usize) -> KernelParams {
        self.0.push(u64::from(
            u32::try_from(value)
                .ok()
                .filter(|v| *v <= i32::MAX as u32)
                .unwrap_or_else(|| panic!("{value} is too large for a kernel's int")),
        ));
        self
    }

    /// Pushes a `float`.
    fn float(mut self, value: f32) -> KernelParams {
        self.0.push(u64::from(value.to_bits()));
        self
    }

    /// Pushes a 64-bit integer.
    fn long(mut self, value: u64) -> KernelParams {
        self.0.push(value);
        self
    }

    /// Pushes the address and `ld`.
    fn matrix(self, matrix: MatrixView<'_>) -> KernelParams {
        self.pointer(matrix.view).int(matrix.ld)
    }
}

fn saturating_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn launch_config(grid: [usize; 3], threads: u32, shared_bytes: usize) -> LaunchConfig {
    LaunchConfig {
        grid: grid.map(saturating_u32),
        block_threads: threads,
        shared_bytes: saturating_u32(shared_bytes),
    }
}

/// Launch with one block for each row.
fn row_launch(rows: usize, threads: u32, shared_bytes: usize) -> LaunchConfig {
    launch_config([rows, 1, 1], threads, shared_bytes)
}

/// Launch of a kernel that sums over each row. Threads are a power of two, and no more than a row can keep
/// busy. Each has 4 bytes of shared memory.
fn row_sum_launch(rows: usize, cols: usize, max_threads: u32) -> LaunchConfig {
    let threads =
        saturating_u32(cols.div_ceil(ELEMENTS_PER_THREAD).next_power_of_two()).clamp(32, max_threads);
    row_launch(rows, threads, threads as usize * 4)
}

/// Launch of a kernel whose blocks loop over `count` elements.
fn whole_buffer_launch(count: usize, shared_bytes: usize) -> LaunchConfig {
    launch_config([block_count(count), 1, 1], WIDE_THREADS, shared_bytes)
}

/// The number of blocks that `count` elements can keep busy.
fn block_count(count: usize) -> usize {
    count.div_ceil(WIDE_THREADS as usize * ELEMENTS_PER_THREAD).clamp(1, MAX_BLOCKS as usize)
}

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
    fn kernel(&self, name: &str, element: ElementType) -> (String, bool) {
        let uses_tensor_cores =
            self.tensor_cores && element == ElementType::Bf16 && [16, 32, 64, 128].contains(&self.head_dim);
        match (uses_tensor_cores, element) {
            (true, _) => (format!("{name}_bf16_d{}", self.head_dim), true),
            (false, ElementType::Bf16) => (format!("{name}_bf16"), false),
            (false, _) => (format!("{name}_f32"), false),
        }
    }

    /// Grid of a kernel with one block for each tile of rows, head and sequence.
    fn grid(&self, heads: usize) -> [usize; 3] {
        [self.longest.div_ceil(TILE_ROWS), heads, self.sequences]
    }

    /// Pushes the parameters that all attention kernels share.
    fn push_sizes(&self, params: KernelParams) -> KernelParams {
        params
            .pointer(self.starts)
            .int(self.rows)
            .int(self.heads)
            .int(self.kv_heads)
            .int(self.head_dim)
            .float(self.scale())
    }

    /// Bytes of shared memory, by the formulas in `kernels/README.md`.
    fn shared_bytes(&self, uses_tensor_cores: bool, plain_bytes: usize, extra_bytes: usize) -> usize {
        match uses_tensor_cores {
            true => 256 * (self.head_dim + 8) + extra_bytes,
            false => plain_bytes,
        }
    }
}

/// Parameters of one AdamW update.
#[derive(Debug, Clone, Copy)]
pub struct AdamWUpdate {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// The gradient is scaled down to this norm.
    pub clip_norm: f32,
    /// The first moment is divided by this, `1 - beta1^t` for update number `t`.
    pub bias_correction1: f32,
    /// The second moment is divided by this.
    pub bias_correction2: f32,
}

/// The kernel's name with the suffix of its element type.
fn typed_kernel_name(name: &'static str, element: ElementType) -> String {
    match element {
        ElementType::Bf16 => format!("{name}_bf16"),
        _ => format!("{name}_f32"),
    }
}

type LaunchResult = Result<(), DeviceError>;

impl CudaDevice {
    /// `x[row] = table[tokens[row]]`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn embed(&self, x: MatrixView<'_>, table: BufferView<'_>, tokens: BufferView<'_>) -> LaunchResult {
        let params = KernelParams::new().matrix(x).pointer(table).pointer(tokens).int(x.rows).int(x.cols);
        self.launch(&typed_kernel_name("embed", x.view.element), row_launch(x.rows, ROW_THREADS, 0), params)
    }

    /// `y = x * inverse * weight`. Also writes each row's `inverse = 1 / rms`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn rms_norm(
        &self,
        y: MatrixView<'_>,
        inverse: BufferView<'_>,
        x: BufferView<'_>,
        weight: BufferView<'_>,
        eps: f32,
    ) -> LaunchResult {
        let params = KernelParams::new()
            .matrix(y)
            .pointer(inverse)
            .pointer(x)
            .pointer(weight)
            .int(y.rows)
            .int(y.cols)
            .float(eps);
        self.launch(
            &typed_kernel_name("rms_norm", y.view.element),
            row_sum_launch(y.rows, y.cols, ROW_THREADS),
            params,
        )
    }

    /// Writes the gradient through the norm to `dx`, plus `residual` if given. `residual` may be `dx` itself.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn rms_norm_backward(
        &self,
        dx: BufferView<'_>,
        residual: Option<BufferView<'_>>,
        dy: MatrixView<'_>,
        x: BufferView<'_>,
        weight: BufferView<'_>,
        inverse: BufferView<'_>,
    ) -> LaunchResult {
        let params = KernelParams::new().pointer(dx);
        let params = match residual {
            Some(residual) => params.pointer(residual),
            None => params.null(),
        };
        let params = params.matrix(dy).pointer(x).pointer(weight).pointer(inverse).int(dy.rows).int(dy.cols);
        let launch = row_sum_launch(dy.rows, dy.cols, ROW_THREADS);
        self.launch(&typed_kernel_name("rms_norm_backward", dx.element), launch, params)
    }

    /// Rotates the first `heads` heads of each row in place, by the negative angle if `backward`.
    ///
    /// `table` holds cosines, then sines, `[max_positions, head_dim / 2]` each.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn rope(
        &self,
        x: MatrixView<'_>,
        table: BufferView<'_>,
        positions: BufferView<'_>,
        (heads, head_dim): (usize, usize),
        max_positions: usize,
        backward: bool,
    ) -> LaunchResult {
        let params = KernelParams::new()
            .matrix(x)
            .pointer(table)
            .pointer(positions)
            .int(x.rows)
            .int(heads)
            .int(head_dim);
        let params = params.int(max_positions).float(if backward { -1.0 } else { 1.0 });
        self.launch(&typed_kernel_name("rope", x.view.element), row_launch(x.rows, ROW_THREADS, 0), params)
    }

    /// Causal attention. Also writes the log-sum-exp of each row's scores, `lse[heads, rows]`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn attention(
        &self,
        out: MatrixView<'_>,
        lse: BufferView<'_>,
        qkv: MatrixView<'_>,
        packed: &PackedSequences<'_>,
    ) -> LaunchResult {
        let (name, uses_tensor_cores) = packed.kernel("attention", out.view.element);
        let shared = packed.shared_bytes(uses_tensor_cores, 16 * (packed.head_dim + 32), 0);
        let params = packed.push_sizes(KernelParams::new().matrix(out).pointer(lse).matrix(qkv));
        self.launch(&name, launch_config(packed.grid(packed.heads), ROW_THREADS, shared), params)
    }

    /// `delta[heads, rows] = sum(out * dout)`, which the backward pass of softmax subtracts.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn attention_delta(
        &self,
        delta: BufferView<'_>,
        out: MatrixView<'_>,
        dout: MatrixView<'_>,
        packed: &PackedSequences<'_>,
    ) -> LaunchResult {
        let params = KernelParams::new().pointer(delta).matrix(out).matrix(dout);
        let params = params.int(packed.rows).int(packed.heads).int(packed.head_dim);
        let launch = launch_config([packed.rows, packed.heads, 1], 32, 0);
        self.launch(&typed_kernel_name("attention_delta", out.view.element), launch, params)
    }

    /// Writes all of `dqkv`. `lse` and `delta` come from the forward pass and from
    /// [`CudaDevice::attention_delta`].
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn attention_backward(
        &self,
        dqkv: MatrixView<'_>,
        qkv: MatrixView<'_>,
        dout: MatrixView<'_>,
        (lse, delta): (BufferView<'_>, BufferView<'_>),
        packed: &PackedSequences<'_>,
    ) -> LaunchResult {
        let params = || {
            packed.push_sizes(
                KernelParams::new().matrix(dqkv).matrix(qkv).matrix(dout).pointer(lse).pointer(delta),
            )
        };
        let d = packed.head_dim;
        let (name, uses_tensor_cores) = packed.kernel("attention_backward_q", qkv.view.element);
        let shared = packed.shared_bytes(uses_tensor_cores, 16 * (2 * d + 32), 0);
        self.launch(&name, launch_config(packed.grid(packed.heads), ROW_THREADS, shared), params())?;
        let (name, uses_tensor_cores) = packed.kernel("attention_backward_kv", qkv.view.element);
        let shared = packed.shared_bytes(uses_tensor_cores, 16 * (2 * d + 64), 512);
        self.launch(&name, launch_config(packed.grid(packed.kv_heads), ROW_THREADS, shared), params())
    }

    /// `out = silu(gate) * up`. `gate_up[rows, 2 * width]` holds the gate first.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn swiglu(&self, out: MatrixView<'_>, gate_up: MatrixView<'_>) -> LaunchResult {
        let params = KernelParams::new().matrix(out).matrix(gate_up).int(out.rows).int(out.cols);
        self.launch(
            &typed_kernel_name("swiglu", out.view.element),
            row_launch(out.rows, ROW_THREADS, 0),
            params,
        )
    }

    /// Backward pass of [`CudaDevice::swiglu`]: writes `dgate_up` from `dout`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn swiglu_backward(
        &self,
        dgate_up: MatrixView<'_>,
        dout: MatrixView<'_>,
        gate_up: MatrixView<'_>,
    ) -> LaunchResult {
        let params =
            KernelParams::new().matrix(dgate_up).matrix(dout).matrix(gate_up).int(dout.rows).int(dout.cols);
        self.launch(
            &typed_kernel_name("swiglu_backward", dout.view.element),
            row_launch(dout.rows, ROW_THREADS, 0),
            params,
        )
    }

    /// `out[i] = x[indices[i]]`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn gather_rows(
        &self,
        out: MatrixView<'_>,
        x: MatrixView<'_>,
        indices: BufferView<'_>,
    ) -> LaunchResult {
        let params = KernelParams::new().matrix(out).matrix(x).pointer(indices).int(out.rows).int(out.cols);
        self.launch(
            &typed_kernel_name("gather_rows", out.view.element),
            row_launch(out.rows, ROW_THREADS, 0),
            params,
        )
    }

    /// `x[indices[i]] = from[i]`. `indices` must not name a row twice.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn scatter_rows(
        &self,
        x: MatrixView<'_>,
        from: MatrixView<'_>,
        indices: BufferView<'_>,
    ) -> LaunchResult {
        let params =
            KernelParams::new().matrix(x).matrix(from).pointer(indices).int(from.rows).int(from.cols);
        self.launch(
            &typed_kernel_name("scatter_rows", x.view.element),
            row_launch(from.rows, ROW_THREADS, 0),
            params,
        )
    }

    /// Replaces logits by their gradient, `(softmax - onehot) * scales[row]`. Also writes each row's loss.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn cross_entropy(
        &self,
        logits: MatrixView<'_>,
        losses: BufferView<'_>,
        targets: BufferView<'_>,
        scales: BufferView<'_>,
    ) -> LaunchResult {
        let params = KernelParams::new().matrix(logits).pointer(losses).pointer(targets).pointer(scales);
        let params = params.int(logits.rows).int(logits.cols);
        let launch = row_sum_launch(logits.rows, logits.cols, WIDE_THREADS);
        self.launch(&typed_kernel_name("cross_entropy", logits.view.element), launch, params)
    }

    /// `out[0] += sum(values * weights)`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn weighted_sum(
        &self,
        out: BufferView<'_>,
        values: BufferView<'_>,
        weights: BufferView<'_>,
        count: usize,
    ) -> LaunchResult {
        let params = KernelParams::new().pointer(out).pointer(values).pointer(weights).int(count);
        self.launch("weighted_sum", launch_config([1, 1, 1], WIDE_THREADS, WIDE_THREADS as usize * 8), params)
    }

    /// Writes the Euclidean norm of `gradient` to `norm[0]`. Sets bit 0 of `flags[0]` if an element is not
    /// finite.
    ///
    /// `partial` holds [`MAX_BLOCKS`] doubles.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    ///
    /// # Panics
    ///
    /// If `partial` is too short.
    pub fn gradient_norm(
        &self,
        norm: BufferView<'_>,
        flags: BufferView<'_>,
        partial: BufferView<'_>,
        gradient: BufferView<'_>,
    ) -> LaunchResult {
        assert!(
            partial.element == ElementType::Bits64 && partial.len >= MAX_BLOCKS as usize,
            "`partial` has no room for a partial sum of each block"
        );
        let params =
            KernelParams::new().pointer(partial).pointer(flags).pointer(gradient).long(gradient.len as u64);
        self.launch("square_sum", whole_buffer_launch(gradient.len, WIDE_THREADS as usize * 8), params)?;
        let params = KernelParams::new().pointer(norm).pointer(partial).int(block_count(gradient.len));
        self.launch("finish_norm", launch_config([1, 1, 1], WIDE_THREADS, WIDE_THREADS as usize * 8), params)
    }

    /// Updates parameters, first and second moments `from` into `to`. Sets bit 1 of `flags[0]` if an updated
    /// parameter is not finite.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    ///
    /// # Panics
    ///
    /// If a list is shorter than the gradient.
    pub fn adamw(
        &self,
        to: [BufferView<'_>; 3],
        from: [BufferView<'_>; 3],
        gradient: BufferView<'_>,
        (flags, norm): (BufferView<'_>, BufferView<'_>),
        update: &AdamWUpdate,
    ) -> LaunchResult {
        let [p_out, m_out, v_out] = to;
        let [p, m, v] = from;
        assert!(
            [p_out, m_out, v_out, p, m, v].iter().all(|view| view.len >= gradient.len),
            "a list is shorter than the gradient"
        );
        let params = KernelParams::new()
            .pointer(p_out)
            .pointer(m_out)
            .pointer(v_out)
            .pointer(flags)
            .pointer(p)
            .pointer(m)
            .pointer(v)
            .pointer(gradient)
            .pointer(norm);
        let params =
            params.float(update.learning_rate).float(update.beta1).float(update.beta2).float(update.epsilon);
        let params = params.float(update.weight_decay).float(update.clip_norm);
        let params =
            params.float(update.bias_correction1).float(update.bias_correction2).long(gradient.len as u64);
        self.launch("adamw", whole_buffer_launch(gradient.len, 0), params)
    }

    /// Copies the adapter's matrices from the flat list `params` to their places in the frozen weights.
    ///
    /// `table` holds `count` entries of `struct Block` in `kernels/memory.cu`. `element` is the type of the
    /// copies.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn copy_adapter_blocks(
        &self,
        element: ElementType,
        table: BufferView<'_>,
        params: BufferView<'_>,
        count: usize,
    ) -> LaunchResult {
        let launch = launch_config([count, 32, 1], ROW_THREADS, 0);
        self.launch(
            &typed_kernel_name("spread", element),
            launch,
            KernelParams::new().pointer(table).pointer(params),
        )
    }

    /// Adds the checksum of `count` words to `sum[0]`. `salt` is the number of words before them.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    ///
    /// # Panics
    ///
    /// If there are fewer words.
    pub fn checksum(
        &self,
        sum: BufferView<'_>,
        words: BufferView<'_>,
        count: u64,
        salt: u64,
    ) -> LaunchResult {
        assert!(
            count * 4 <= (words.len * words.element.size_bytes()) as u64,
            "the checksum covers more words than the buffer has"
        );
        let params = KernelParams::new().pointer(sum).pointer(words).long(count).long(salt);
        self.launch("checksum", whole_buffer_launch(count as usize, WIDE_THREADS as usize * 8), params)
    }

    /// Converts f32 to bf16, rounding to nearest even.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    ///
    /// # Panics
    ///
    /// If the output is too short.
    pub fn cast_bf16(&self, out: BufferView<'_>, from: BufferView<'_>) -> LaunchResult {
        assert!(out.len >= from.len, "the output is shorter than the input");
        let params = KernelParams::new().pointer(out).pointer(from).long(from.len as u64);
        self.launch("cast_bf16", whole_buffer_launch(from.len, 0), params)
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
