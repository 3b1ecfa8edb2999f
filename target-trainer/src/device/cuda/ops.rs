//! The operations of a device: each launches its kernel with parameters, grid, block and shared memory (see
//! `kernels/README.md`). Knows no model.
//!
//! This file checks sizes that could make a kernel access memory outside a buffer. Kernels check their sizes
//! against the grid.

use super::cuda_device::CudaDevice;
use super::error::DeviceError;
use super::launch::{
    KernelParams, MAX_BLOCKS, ROW_THREADS, WIDE_THREADS, block_count, launch_config, row_launch,
    row_sum_launch, typed_kernel_name, whole_buffer_launch,
};
use super::matmul::{Factor, GemmScales, MatrixProduct};
use super::matrix_view::MatrixView;
use super::memory::{BufferView, ElementType};
use super::packed_sequences::PackedSequences;
use crate::device::rope::Direction;

/// Sizes of a rotary position embedding.
#[derive(Debug, Clone, Copy)]
pub struct RopeShape {
    /// Heads that are rotated.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Positions that the table has.
    pub max_positions: usize,
}

/// Sums that the backward pass of attention needs, `[heads, rows]` each.
#[derive(Debug, Clone, Copy)]
pub struct AttentionSums<'a> {
    /// Log-sum-exp of each row's scores, from [`CudaDevice::attention`].
    pub lse: BufferView<'a>,
    /// From [`CudaDevice::attention_delta`].
    pub delta: BufferView<'a>,
}

/// What a step shows about its gradient and its update.
#[derive(Debug, Clone, Copy)]
pub struct StepChecks<'a> {
    /// The gradient's norm, one f32.
    pub norm: BufferView<'a>,
    /// Bits for values that are not finite, 32 bits.
    pub flags: BufferView<'a>,
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

    /// Rotates the first `heads` heads of each row in place.
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
        shape: RopeShape,
        direction: Direction,
    ) -> LaunchResult {
        let params = KernelParams::new()
            .matrix(x)
            .pointer(table)
            .pointer(positions)
            .int(x.rows)
            .int(shape.heads)
            .int(shape.head_dim);
        let sign = if direction == Direction::Backward { -1.0 } else { 1.0 };
        let params = params.int(shape.max_positions).float(sign);
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

    /// Writes all of `dqkv`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn attention_backward(
        &self,
        dqkv: MatrixView<'_>,
        qkv: MatrixView<'_>,
        dout: MatrixView<'_>,
        sums: AttentionSums<'_>,
        packed: &PackedSequences<'_>,
    ) -> LaunchResult {
        let params = || {
            packed.push_sizes(
                KernelParams::new()
                    .matrix(dqkv)
                    .matrix(qkv)
                    .matrix(dout)
                    .pointer(sums.lse)
                    .pointer(sums.delta),
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

    /// Writes the Euclidean norm of `gradient` to `checks.norm[0]`. Sets bit 0 of `checks.flags[0]` if an
    /// element is not finite.
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
        checks: StepChecks<'_>,
        partial: BufferView<'_>,
        gradient: BufferView<'_>,
    ) -> LaunchResult {
        assert!(
            partial.element == ElementType::Bits64 && partial.len >= MAX_BLOCKS as usize,
            "`partial` has no room for a partial sum of each block"
        );
        let params = KernelParams::new()
            .pointer(partial)
            .pointer(checks.flags)
            .pointer(gradient)
            .long(gradient.len as u64);
        self.launch("square_sum", whole_buffer_launch(gradient.len, WIDE_THREADS as usize * 8), params)?;
        let params = KernelParams::new().pointer(checks.norm).pointer(partial).int(block_count(gradient.len));
        self.launch("finish_norm", launch_config([1, 1, 1], WIDE_THREADS, WIDE_THREADS as usize * 8), params)
    }

    /// Updates parameters, first and second moments `from` into `to`. Sets bit 1 of `checks.flags[0]` if an
    /// updated parameter is not finite.
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
        checks: StepChecks<'_>,
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
            .pointer(checks.flags)
            .pointer(p)
            .pointer(m)
            .pointer(v)
            .pointer(gradient)
            .pointer(checks.norm);
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

    /// `d[m, n] = alpha a[m, k] b[k, n] + beta c[m, n]`. If `c` is `None`, `d` is used in its place.
    ///
    /// # Errors
    ///
    /// Returns the error of cublasLt or of the driver.
    ///
    /// # Panics
    ///
    /// If the sizes do not match.
    pub fn gemm(
        &self,
        d: MatrixView<'_>,
        a: Factor<'_>,
        b: Factor<'_>,
        c: Option<MatrixView<'_>>,
        scales: GemmScales,
    ) -> LaunchResult {
        let product = MatrixProduct { d, a, b, c: c.unwrap_or(d), scales };
        if self.cublaslt().multiply(&self.compute_stream, self.pool(), &product)? {
            self.record_profile("matmul")?;
        }
        Ok(())
    }
}
