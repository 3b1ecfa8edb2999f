//! The forward and backward pass of one micro-batch on a CUDA device. Activations have the precision of the
//! weights; sums, the gradient and losses are f32. Frozen weights get no gradient. Owns no weights.

use super::batch::{MicroBatch, MicroBatchInputs};
use super::device_weights::DeviceWeights;
use super::frozen_layout::{LayerLayout, LoraProjection, ProjectionGroup};
use crate::device::cuda::{
    AttentionSums, BufferView, DeviceBuffer, ElementType, GemmScales, MatrixView, PackedSequences, RopeShape,
};
use crate::device::{DeviceError, Direction};
use crate::model::config::ModelConfig;

/// Memory bound for logits: rows are processed in chunks that fit.
const MAX_LOGITS_BYTES: usize = 256 << 20;

/// A group's input with its LoRA columns, `[X | scale X A^T]`, or the gradient of both.
struct ExtendedInput {
    buffer: DeviceBuffer,
    rows: usize,
    inputs: usize,
    lora_columns: usize,
}

impl ExtendedInput {
    /// Both parts.
    fn all(&self) -> MatrixView<'_> {
        MatrixView::dense(self.buffer.view(), self.rows, self.inputs + self.lora_columns)
    }

    /// The part `X`.
    fn input_part(&self) -> MatrixView<'_> {
        self.all().column_range(0, self.inputs)
    }

    /// The LoRA columns.
    fn lora_part(&self) -> MatrixView<'_> {
        self.all().column_range(self.inputs, self.lora_columns)
    }
}

/// Activations that a layer's backward pass needs from its forward pass. `*_inverse` is `1 / rms` of each
/// row.
struct CudaLayerActivations {
    input: DeviceBuffer,
    input_inverse: DeviceBuffer,
    normed: ExtendedInput,
    qkv: DeviceBuffer,
    lse: DeviceBuffer,
    attention_output: ExtendedInput,
    after_attention: DeviceBuffer,
    after_attention_inverse: DeviceBuffer,
    post_normed: ExtendedInput,
    gate_up: DeviceBuffer,
    swiglu_output: ExtendedInput,
}

/// The pass of one micro-batch.
pub(super) struct MicroBatchPass<'a> {
    pub(super) weights: &'a DeviceWeights,
    pub(super) micro_batch: MicroBatch,
    pub(super) inputs: MicroBatchInputs<'a>,
    pub(super) gradient: &'a DeviceBuffer,
}

impl<'a> MicroBatchPass<'a> {
    /// Queues the forward pass, the losses and the backward pass.
    pub(super) fn run(&self, loss: BufferView<'_>) -> Result<(), DeviceError> {
        let (weights, rows, width) = (self.weights, self.micro_batch.rows, self.weights.config.hidden);
        let mut x = self.activation_buffer(width)?;
        let table = weights.weight_view(weights.layout.embedding, weights.config.vocabulary * width);
        weights.device.embed(self.as_matrix(&x, width), table, self.inputs.tokens)?;
        let mut activations = Vec::with_capacity(weights.layout.layers.len());
        for layer_layout in &weights.layout.layers {
            let layer_activations;
            (x, layer_activations) = self.layer(layer_layout, x)?;
            activations.push(layer_activations);
        }
        let dx = weights.device.zeros(weights.element, rows * width)?;
        self.loss(&x, &dx, loss)?;
        drop(x);
        for (number, layer_layout) in weights.layout.layers.iter().enumerate().rev() {
            if let Some(layer_activations) = activations.pop() {
                self.layer_backward(layer_layout, &dx, &layer_activations, number > 0)?;
            }
        }
        Ok(())
    }

    /// A buffer with `width` elements for each row of the micro-batch.
    fn activation_buffer(&self, width: usize) -> Result<DeviceBuffer, DeviceError> {
        self.weights.device.buffer(self.weights.element, self.micro_batch.rows * width)
    }

    /// A buffer of f32 values.
    fn f32_buffer(&self, len: usize) -> Result<DeviceBuffer, DeviceError> {
        self.weights.device.buffer(ElementType::F32, len)
    }

    /// A buffer for a group's extended input.
    fn extended_buffer(&self, group: &ProjectionGroup) -> Result<ExtendedInput, DeviceError> {
        let buffer = self.activation_buffer(group.width())?;
        Ok(ExtendedInput {
            buffer,
            rows: self.micro_batch.rows,
            inputs: group.inputs,
            lora_columns: group.lora_columns,
        })
    }

    /// The buffer as a matrix with one row for each token.
    fn as_matrix<'b>(&self, buffer: &'b DeviceBuffer, width: usize) -> MatrixView<'b> {
        MatrixView::dense(buffer.view(), self.micro_batch.rows, width)
    }

    /// The sizes of the attention operation.
    fn packed_sequences(&self) -> PackedSequences<'_> {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.weights.config;
        let MicroBatch { rows, sequences, longest, .. } = self.micro_batch;
        let starts = self.inputs.starts;
        PackedSequences { starts, sequences, rows, longest, heads, kv_heads, head_dim, tensor_cores: true }
    }

    /// Rotates queries and keys in place.
    fn rope(&self, qkv: MatrixView<'_>, direction: Direction) -> Result<(), DeviceError> {
        let (weights, config) = (self.weights, &self.weights.config);
        let shape = RopeShape {
            heads: config.heads + config.kv_heads,
            head_dim: config.head_dim,
            max_positions: weights.max_positions,
        };
        weights.device.rope(qkv, weights.rope.view(), self.inputs.positions, shape, direction)
    }

    /// `out = [X | U] [W | B]^T`, plus the residual if given. Computes `U = scale X A^T` first.
    fn project(
        &self,
        group: &ProjectionGroup,
        out: MatrixView<'_>,
        input: &ExtendedInput,
        residual: Option<MatrixView<'_>>,
    ) -> Result<(), DeviceError> {
        let (device, frozen) = (&self.weights.device, &self.weights.frozen);
        if group.lora_columns > 0 {
            let scales = GemmScales { alpha: self.weights.adapter.scale, beta: 0.0 };
            device.gemm(
                input.lora_part(),
                input.input_part().as_stored(),
                group.lora_a(frozen).transposed(),
                None,
                scales,
            )?;
        }
        let scales = if residual.is_some() { GemmScales::ADD } else { GemmScales::REPLACE };
        device.gemm(out, input.all().as_stored(), group.weight(frozen).transposed(), residual, scales)
    }

    /// Backward pass of [`MicroBatchPass::project`]. Adds to the adapter's gradient and returns the gradient
    /// of the extended input. The part of `X` is computed only if `needs_input_gradient`.
    fn project_backward(
        &self,
        group: &ProjectionGroup,
        dy: MatrixView<'_>,
        input: &ExtendedInput,
        needs_input_gradient: bool,
    ) -> Result<ExtendedInput, DeviceError> {
        let (device, frozen) = (&self.weights.device, &self.weights.frozen);
        let (rank, scale) = (self.weights.adapter.rank, self.weights.adapter.scale);
        let scaled = GemmScales { alpha: scale, beta: 1.0 };
        let dinput = self.extended_buffer(group)?;
        let weight = group.weight(frozen);
        if needs_input_gradient {
            device.gemm(dinput.all(), dy.as_stored(), weight.as_stored(), None, GemmScales::REPLACE)?;
        } else if group.lora_columns > 0 {
            let b = weight.column_range(group.inputs, group.lora_columns);
            device.gemm(dinput.lora_part(), dy.as_stored(), b.as_stored(), None, GemmScales::REPLACE)?;
        }
        for LoraProjection { slot, first_row, first_column } in &group.lora_projections {
            let (a_len, b_len) = (rank * slot.inputs, slot.outputs * rank);
            let da = MatrixView::dense(self.gradient.view_range(slot.offset, a_len), rank, slot.inputs);
            let db =
                MatrixView::dense(self.gradient.view_range(slot.offset + a_len, b_len), slot.outputs, rank);
            let (du, u) = (
                dinput.lora_part().column_range(*first_column, rank),
                input.lora_part().column_range(*first_column, rank),
            );
            device.gemm(da, du.transposed(), input.input_part().as_stored(), None, scaled)?;
            device.gemm(
                db,
                dy.column_range(*first_row, slot.outputs).transposed(),
                u.as_stored(),
                None,
                GemmScales::ADD,
            )?;
        }
        if needs_input_gradient && group.lora_columns > 0 {
            device.gemm(
                dinput.input_part(),
                dinput.lora_part().as_stored(),
                group.lora_a(frozen).as_stored(),
                None,
                scaled,
            )?;
        }
        Ok(dinput)
    }

    /// RMSNorm of `x`, as the input of a group. Also returns each row's `1 / rms`.
    fn norm(
        &self,
        group: &ProjectionGroup,
        x: &DeviceBuffer,
        weight: usize,
    ) -> Result<(ExtendedInput, DeviceBuffer), DeviceError> {
        let weights = self.weights;
        let (normed, inverse) = (self.extended_buffer(group)?, self.f32_buffer(self.micro_batch.rows)?);
        let weight = weights.weight_view(weight, weights.config.hidden);
        weights.device.rms_norm(
            normed.input_part(),
            inverse.view(),
            x.view(),
            weight,
            weights.config.norm_eps,
        )?;
        Ok((normed, inverse))
    }

    /// Forward pass of a layer. Returns its output and its activations.
    fn layer(
        &self,
        layout: &LayerLayout,
        input: DeviceBuffer,
    ) -> Result<(DeviceBuffer, CudaLayerActivations), DeviceError> {
        let (weights, width) = (self.weights, self.weights.config.hidden);
        let [g_qkv, g_o, g_gate_up, g_down] = &layout.groups;
        let (normed, input_inverse) = self.norm(g_qkv, &input, layout.input_norm)?;
        let qkv = self.activation_buffer(g_qkv.outputs)?;
        let qkv_rows = self.as_matrix(&qkv, g_qkv.outputs);
        self.project(g_qkv, qkv_rows, &normed, None)?;
        self.rope(qkv_rows, Direction::Forward)?;
        let (attention_output, lse) =
            (self.extended_buffer(g_o)?, self.f32_buffer(self.micro_batch.rows * weights.config.heads)?);
        weights.device.attention(
            attention_output.input_part(),
            lse.view(),
            qkv_rows,
            &self.packed_sequences(),
        )?;
        let after_attention = self.activation_buffer(width)?;
        self.project(
            g_o,
            self.as_matrix(&after_attention, width),
            &attention_output,
            Some(self.as_matrix(&input, width)),
        )?;
        let (post_normed, after_attention_inverse) =
            self.norm(g_gate_up, &after_attention, layout.post_norm)?;
        let gate_up = self.activation_buffer(g_gate_up.outputs)?;
        let gate_up_rows = self.as_matrix(&gate_up, g_gate_up.outputs);
        self.project(g_gate_up, gate_up_rows, &post_normed, None)?;
        let swiglu_output = self.extended_buffer(g_down)?;
        weights.device.swiglu(swiglu_output.input_part(), gate_up_rows)?;
        let out = self.activation_buffer(width)?;
        self.project(
            g_down,
            self.as_matrix(&out, width),
            &swiglu_output,
            Some(self.as_matrix(&after_attention, width)),
        )?;
        let activations = CudaLayerActivations {
            input,
            input_inverse,
            normed,
            qkv,
            lse,
            attention_output,
            after_attention,
            after_attention_inverse,
            post_normed,
            gate_up,
            swiglu_output,
        };
        Ok((out, activations))
    }

    /// Backward pass of a layer: replaces `dx`, the gradient of its output, by the gradient of its input. The
    /// latter is computed only if `needs_input_gradient`.
    fn layer_backward(
        &self,
        layout: &LayerLayout,
        dx: &DeviceBuffer,
        activations: &CudaLayerActivations,
        needs_input_gradient: bool,
    ) -> Result<(), DeviceError> {
        let [g_qkv, g_o, ..] = &layout.groups;
        self.mlp_backward(layout, dx, activations)?;
        let (weights, width) = (self.weights, self.weights.config.hidden);
        let dattention_output =
            self.project_backward(g_o, self.as_matrix(dx, width), &activations.attention_output, true)?;
        let delta = self.f32_buffer(self.micro_batch.rows * weights.config.heads)?;
        let packed = self.packed_sequences();
        weights.device.attention_delta(
            delta.view(),
            activations.attention_output.input_part(),
            dattention_output.input_part(),
            &packed,
        )?;
        let (qkv, dqkv) =
            (self.as_matrix(&activations.qkv, g_qkv.outputs), self.activation_buffer(g_qkv.outputs)?);
        let dqkv = self.as_matrix(&dqkv, g_qkv.outputs);
        let sums = AttentionSums { lse: activations.lse.view(), delta: delta.view() };
        weights.device.attention_backward(dqkv, qkv, dattention_output.input_part(), sums, &packed)?;
        self.rope(dqkv, Direction::Backward)?;
        let dnormed = self.project_backward(g_qkv, dqkv, &activations.normed, needs_input_gradient)?;
        if !needs_input_gradient {
            return Ok(());
        }
        self.norm_backward(dx, &dnormed, &activations.input, layout.input_norm, &activations.input_inverse)
    }

    /// Backward pass of the MLP and its norm: adds to `dx`.
    fn mlp_backward(
        &self,
        layout: &LayerLayout,
        dx: &DeviceBuffer,
        activations: &CudaLayerActivations,
    ) -> Result<(), DeviceError> {
        let [.., g_gate_up, g_down] = &layout.groups;
        let width = self.weights.config.hidden;
        let dswiglu_output =
            self.project_backward(g_down, self.as_matrix(dx, width), &activations.swiglu_output, true)?;
        let dgate_up = self.activation_buffer(g_gate_up.outputs)?;
        let dgate_up = self.as_matrix(&dgate_up, g_gate_up.outputs);
        let gate_up = self.as_matrix(&activations.gate_up, g_gate_up.outputs);
        self.weights.device.swiglu_backward(dgate_up, dswiglu_output.input_part(), gate_up)?;
        let dnormed = self.project_backward(g_gate_up, dgate_up, &activations.post_normed, true)?;
        self.norm_backward(
            dx,
            &dnormed,
            &activations.after_attention,
            layout.post_norm,
            &activations.after_attention_inverse,
        )
    }

    /// Adds the gradient through a norm to `dx`.
    fn norm_backward(
        &self,
        dx: &DeviceBuffer,
        dnormed: &ExtendedInput,
        x: &DeviceBuffer,
        weight: usize,
        inverse: &DeviceBuffer,
    ) -> Result<(), DeviceError> {
        let weight = self.weights.weight_view(weight, self.weights.config.hidden);
        let residual = Some(dx.view());
        self.weights.device.rms_norm_backward(
            dx.view(),
            residual,
            dnormed.input_part(),
            x.view(),
            weight,
            inverse.view(),
        )
    }

    /// Computes the losses of all targets, and their gradients into `dx`, which must be zero. Logits are
    /// computed in chunks of rows, bounded by [`MAX_LOGITS_BYTES`].
    fn loss(&self, x: &DeviceBuffer, dx: &DeviceBuffer, loss: BufferView<'_>) -> Result<(), DeviceError> {
        let (weights, device, target_count) =
            (self.weights, &self.weights.device, self.micro_batch.target_count);
        let (width, vocabulary) = (weights.config.hidden, weights.config.vocabulary);
        let buffer = |rows: usize, width: usize| device.buffer(weights.element, rows * width);
        let (gathered, normed) = (buffer(target_count, width)?, buffer(target_count, width)?);
        let gathered_rows = MatrixView::dense(gathered.view(), target_count, width);
        device.gather_rows(gathered_rows, self.as_matrix(x, width), self.inputs.target_rows)?;
        let (inverse, weight) =
            (self.f32_buffer(target_count)?, weights.weight_view(weights.layout.norm, width));
        let normed_rows = MatrixView::dense(normed.view(), target_count, width);
        device.rms_norm(normed_rows, inverse.view(), gathered.view(), weight, weights.config.norm_eps)?;
        let head = MatrixView::dense(
            weights.weight_view(weights.layout.head, vocabulary * width),
            vocabulary,
            width,
        );
        let losses = self.f32_buffer(target_count)?;
        let dnormed = buffer(target_count, width)?;
        let dnormed_rows = MatrixView::dense(dnormed.view(), target_count, width);
        let chunk = (MAX_LOGITS_BYTES / (vocabulary * weights.element.size_bytes())).clamp(1, target_count);
        let logits = buffer(chunk, vocabulary)?;
        for first_row in (0..target_count).step_by(chunk) {
            let rows = chunk.min(target_count - first_row);
            let logits = MatrixView::dense(logits.view(), rows, vocabulary);
            let normed_chunk = normed_rows.row_range(first_row, rows);
            device.gemm(logits, normed_chunk.as_stored(), head.transposed(), None, GemmScales::REPLACE)?;
            let (targets, scales) = (self.inputs.targets.skip(first_row), self.inputs.scales.skip(first_row));
            device.cross_entropy(logits, losses.view_from(first_row), targets, scales)?;
            let dnormed_chunk = dnormed_rows.row_range(first_row, rows);
            device.gemm(dnormed_chunk, logits.as_stored(), head.as_stored(), None, GemmScales::REPLACE)?;
        }
        device.weighted_sum(loss, losses.view(), self.inputs.weights, target_count)?;
        // The normed rows are no longer needed, so their buffer is reused for the gradient of the gathered
        // rows.
        device.rms_norm_backward(
            normed.view(),
            None,
            dnormed_rows,
            gathered.view(),
            weight,
            inverse.view(),
        )?;
        device.scatter_rows(self.as_matrix(dx, width), normed_rows, self.inputs.target_rows)
    }
}
