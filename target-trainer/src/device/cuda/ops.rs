//! Each kernel with what it takes, as `kernels/README.md` has it: grid, block, shared memory. Knows no model.
//!
//! Sizes are checked here where a wrong one would reach beyond a buffer; kernels check their own against the grid.

use super::cuda_device::CudaDevice;
use super::error::DeviceError;
use super::memory::{BufferView, ElementType};
use super::sys::LaunchConfig;

/// Threads of a block for a row, and for sums over all of a buffer.
const ROW_THREADS: u32 = 128;
const WIDE_THREADS: u32 = 256;
/// Blocks of a pass over all of a buffer, at most; partial sums of a norm are as many.
pub const MAX_BLOCKS: u32 = 256;
/// What a thread is worth its barriers for: 16 bytes of a bf16 row, or a few elements of a whole buffer.
const ELEMENTS_PER_THREAD: usize = 8;
/// Rows of a tile of attention.
const TILE_ROWS: usize = 64;

/// A matrix as it lies: `ld` elements from row to row.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    pub view: BufferView<'a>,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
}

impl<'a> MatrixView<'a> {
    /// Rows side by side.
    pub fn dense(view: BufferView<'a>, rows: usize, cols: usize) -> MatrixView<'a> {
        MatrixView::with_ld(view, rows, cols, cols)
    }

    pub fn with_ld(view: BufferView<'a>, rows: usize, cols: usize, ld: usize) -> MatrixView<'a> {
        let reach = if rows * cols == 0 { 0 } else { (rows - 1) * ld + cols };
        assert!(cols <= ld && reach <= view.len, "{rows} x {cols} (ld {ld}) in {} elements", view.len);
        MatrixView { view, rows, cols, ld }
    }

    /// Some of the columns.
    pub fn column_range(self, from: usize, cols: usize) -> MatrixView<'a> {
        assert!(from + cols <= self.cols, "columns {from}.. of {}, {cols} of them", self.cols);
        MatrixView { view: self.view.skip(from.min(self.view.len)), cols, ..self }
    }

    /// Some of the rows.
    pub fn rows(self, from: usize, rows: usize) -> MatrixView<'a> {
        assert!(from + rows <= self.rows, "rows {from}.. of {}, {rows} of them", self.rows);
        MatrixView { view: self.view.skip(from * self.ld), rows, ..self }
    }
}

/// A parameter of a kernel, as its bits.
pub(super) struct KernelParams(Vec<u64>);

impl KernelParams {
    pub(super) fn new() -> KernelParams {
        KernelParams(Vec::with_capacity(20))
    }

    pub(super) fn values(&self) -> &[u64] {
        &self.0
    }

    pub(super) fn pointer(mut self, view: BufferView<'_>) -> KernelParams {
        self.0.push(view.address);
        self
    }

    fn null(mut self) -> KernelParams {
        self.0.push(0);
        self
    }

    fn int(mut self, value: usize) -> KernelParams {
        self.0.push(u64::from(
            u32::try_from(value)
                .ok()
                .filter(|v| *v <= i32::MAX as u32)
                .unwrap_or_else(|| panic!("{value} is too large for a kernel's int")),
        ));
        self
    }

    fn float(mut self, value: f32) -> KernelParams {
        self.0.push(u64::from(value.to_bits()));
        self
    }

    fn long(mut self, value: u64) -> KernelParams {
        self.0.push(value);
        self
    }

    /// Address and row stride.
    fn matrix(self, rows: MatrixView<'_>) -> KernelParams {
        self.pointer(rows.view).int(rows.ld)
    }
}

fn saturating_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn launch_config(grid: [usize; 3], block: u32, shared_bytes: usize) -> LaunchConfig {
    LaunchConfig {
        grid: grid.map(saturating_u32),
        block_threads: block,
        shared_bytes: saturating_u32(shared_bytes),
    }
}

fn row_launch(rows: usize, block: u32, shared_bytes: usize) -> LaunchConfig {
    launch_config([rows, 1, 1], block, shared_bytes)
}

/// A sum over each row, 4 bytes of shared memory for each thread: a power of two, and no more than find work in a row.
fn row_sum_launch(rows: usize, cols: usize, most: u32) -> LaunchConfig {
    let threads = saturating_u32(cols.div_ceil(ELEMENTS_PER_THREAD).next_power_of_two()).clamp(32, most);
    row_launch(rows, threads, threads as usize * 4)
}

fn whole_buffer_launch(count: usize, shared_bytes: usize) -> LaunchConfig {
    launch_config([block_count(count), 1, 1], WIDE_THREADS, shared_bytes)
}

/// No more than find work.
fn block_count(count: usize) -> usize {
    count.div_ceil(WIDE_THREADS as usize * ELEMENTS_PER_THREAD).clamp(1, MAX_BLOCKS as usize)
}

/// Packed sequences and the heads of their attention.
#[derive(Debug, Clone, Copy)]
pub struct PackedSequences<'a> {
    /// Ints: where each sequence begins, and where the last one ends.
    pub starts: BufferView<'a>,
    pub sequences: usize,
    pub rows: usize,
    /// Tokens of the longest one.
    pub longest: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Use tensor cores where there is a kernel for this size of heads.
    pub tensor_cores: bool,
}

impl PackedSequences<'_> {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The kernel's name, and whether it is one for tensor cores.
    fn kernel(&self, name: &str, element: ElementType) -> (String, bool) {
        let fits =
            self.tensor_cores && element == ElementType::Bf16 && [16, 32, 64, 128].contains(&self.head_dim);
        match (fits, element) {
            (true, _) => (format!("{name}_bf16_d{}", self.head_dim), true),
            (false, ElementType::Bf16) => (format!("{name}_bf16"), false),
            (false, _) => (format!("{name}_f32"), false),
        }
    }

    fn grid(&self, heads: usize) -> [usize; 3] {
        [self.longest.div_ceil(TILE_ROWS), heads, self.sequences]
    }

    fn push_sizes(&self, params: KernelParams) -> KernelParams {
        params
            .pointer(self.starts)
            .int(self.rows)
            .int(self.heads)
            .int(self.kv_heads)
            .int(self.head_dim)
            .float(self.scale())
    }

    /// Bytes of shared memory, by `kernels/README.md`.
    fn shared_bytes(&self, tensor: bool, plain: usize, extra: usize) -> usize {
        match tensor {
            true => 256 * (self.head_dim + 8) + extra,
            false => plain,
        }
    }
}

/// AdamW's numbers for one update.
#[derive(Debug, Clone, Copy)]
pub struct AdamWUpdate {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
    pub clip_norm: f32,
    pub bias_correction1: f32,
    pub bias_correction2: f32,
}

fn typed_kernel_name(name: &'static str, element: ElementType) -> String {
    match element {
        ElementType::Bf16 => format!("{name}_bf16"),
        _ => format!("{name}_f32"),
    }
}

type LaunchResult = Result<(), DeviceError>;

impl CudaDevice {
    /// `x[row] = table[tokens[row]]`.
    pub fn embed(&self, x: MatrixView<'_>, table: BufferView<'_>, tokens: BufferView<'_>) -> LaunchResult {
        let params = KernelParams::new().matrix(x).pointer(table).pointer(tokens).int(x.rows).int(x.cols);
        self.launch(&typed_kernel_name("embed", x.view.element), row_launch(x.rows, ROW_THREADS, 0), params)
    }

    /// `y = x * inverse * weight`, and each row's inverse.
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

    /// `dx = residual + ` the gradient through the norm; the residual may be `dx`.
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

    /// In place on the first `heads` heads of each row. `table`: cosines, then sines, `[most, head_dim / 2]` each.
    pub fn rope(
        &self,
        x: MatrixView<'_>,
        table: BufferView<'_>,
        positions: BufferView<'_>,
        (heads, head_dim): (usize, usize),
        most: usize,
        back: bool,
    ) -> LaunchResult {
        let params = KernelParams::new()
            .matrix(x)
            .pointer(table)
            .pointer(positions)
            .int(x.rows)
            .int(heads)
            .int(head_dim);
        let params = params.int(most).float(if back { -1.0 } else { 1.0 });
        self.launch(&typed_kernel_name("rope", x.view.element), row_launch(x.rows, ROW_THREADS, 0), params)
    }

    /// Causal attention; `lse[heads, rows]`.
    pub fn attention(
        &self,
        out: MatrixView<'_>,
        lse: BufferView<'_>,
        qkv: MatrixView<'_>,
        packed: &PackedSequences<'_>,
    ) -> LaunchResult {
        let (name, tensor) = packed.kernel("attention", out.view.element);
        let shared = packed.shared_bytes(tensor, 16 * (packed.head_dim + 32), 0);
        let params = packed.push_sizes(KernelParams::new().matrix(out).pointer(lse).matrix(qkv));
        self.launch(&name, launch_config(packed.grid(packed.heads), ROW_THREADS, shared), params)
    }

    /// `delta[heads, rows]`: what the softmax's backward pass takes off.
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

    /// All of `dqkv`.
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
        let (name, tensor) = packed.kernel("attention_backward_q", qkv.view.element);
        let shared = packed.shared_bytes(tensor, 16 * (2 * d + 32), 0);
        self.launch(&name, launch_config(packed.grid(packed.heads), ROW_THREADS, shared), params())?;
        let (name, tensor) = packed.kernel("attention_backward_kv", qkv.view.element);
        let shared = packed.shared_bytes(tensor, 16 * (2 * d + 64), 512);
        self.launch(&name, launch_config(packed.grid(packed.kv_heads), ROW_THREADS, shared), params())
    }

    /// `gate_up[rows, 2 * width]`, gate first.
    pub fn swiglu(&self, out: MatrixView<'_>, gate_up: MatrixView<'_>) -> LaunchResult {
        let params = KernelParams::new().matrix(out).matrix(gate_up).int(out.rows).int(out.cols);
        self.launch(
            &typed_kernel_name("swiglu", out.view.element),
            row_launch(out.rows, ROW_THREADS, 0),
            params,
        )
    }

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

    /// `out[i] = x[which[i]]`.
    pub fn gather_rows(&self, out: MatrixView<'_>, x: MatrixView<'_>, which: BufferView<'_>) -> LaunchResult {
        let params = KernelParams::new().matrix(out).matrix(x).pointer(which).int(out.rows).int(out.cols);
        self.launch(
            &typed_kernel_name("gather_rows", out.view.element),
            row_launch(out.rows, ROW_THREADS, 0),
            params,
        )
    }

    /// `x[which[i]] = from[i]`; no row twice.
    pub fn scatter_rows(
        &self,
        x: MatrixView<'_>,
        from: MatrixView<'_>,
        which: BufferView<'_>,
    ) -> LaunchResult {
        let params = KernelParams::new().matrix(x).matrix(from).pointer(which).int(from.rows).int(from.cols);
        self.launch(
            &typed_kernel_name("scatter_rows", x.view.element),
            row_launch(from.rows, ROW_THREADS, 0),
            params,
        )
    }

    /// Logits become their gradient, `(softmax - onehot) * scales[row]`; each row's loss.
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

    /// `norm[0]`, and `flags[0] |= 1` where an element is not finite. `partial`: a double for each of [`BLOCKS`].
    pub fn gradient_norm(
        &self,
        norm: BufferView<'_>,
        flags: BufferView<'_>,
        partial: BufferView<'_>,
        gradient: BufferView<'_>,
    ) -> LaunchResult {
        assert!(
            partial.element == ElementType::Bits64 && partial.len >= MAX_BLOCKS as usize,
            "a partial sum for each block"
        );
        let params =
            KernelParams::new().pointer(partial).pointer(flags).pointer(gradient).long(gradient.len as u64);
        self.launch("square_sum", whole_buffer_launch(gradient.len, WIDE_THREADS as usize * 8), params)?;
        let params = KernelParams::new().pointer(norm).pointer(partial).int(block_count(gradient.len));
        self.launch("finish_norm", launch_config([1, 1, 1], WIDE_THREADS, WIDE_THREADS as usize * 8), params)
    }

    /// Parameters, first and second moments `from` into `to`; `flags[0] |= 2` where an updated parameter is not finite.
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
            "a list is too short"
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

    /// Copies matrices out of `params` as a table of `count` of them says; `element` is theirs.
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

    /// `sum[0] += ` the checksum of so many words; `salt` is how many words came before.
    pub fn checksum(
        &self,
        sum: BufferView<'_>,
        words: BufferView<'_>,
        count: u64,
        salt: u64,
    ) -> LaunchResult {
        assert!(count * 4 <= (words.len * words.element.size_bytes()) as u64, "more words than there are");
        let params = KernelParams::new().pointer(sum).pointer(words).long(count).long(salt);
        self.launch("checksum", whole_buffer_launch(count as usize, WIDE_THREADS as usize * 8), params)
    }

    /// Rounds to nearest even.
    pub fn cast_bf16(&self, out: BufferView<'_>, from: BufferView<'_>) -> LaunchResult {
        assert!(out.len >= from.len, "the output is too short");
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
