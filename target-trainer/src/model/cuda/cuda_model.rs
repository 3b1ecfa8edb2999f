//! The model on a card: forward and back for a micro-batch, the gradient of the adapter added up in place. Activations stay
//! in the precision of the weights; sums, the gradient and the losses are f32. No frozen weight gets a gradient.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::batch::{MicroBatch, MicroBatchInputs, PackedBatch, WeightedSample};
use super::frozen_layout::{FrozenLayout, LayerLayout, LoraProjection, ProjectionGroup};
use crate::device::cuda::{BufferView, CudaDevice, DeviceBuffer, ElementType, MatrixView, PackedSequences};
use crate::device::{DeviceError, Precision};
use crate::model::base::BaseModel;
use crate::model::config::ModelConfig;
use crate::model::lora::AdapterLayout;

/// What the logits of a chunk of rows may take.
const MAX_LOGITS_BYTES: usize = 256 << 20;
/// Largest head that the kernels know.
const MOST_HEAD_DIM: usize = 256;

/// Frozen weights on a card, and the copies of the adapter that the products read.
#[derive(Debug)]
pub struct CudaModel {
    device: Arc<CudaDevice>,
    config: ModelConfig,
    adapter: AdapterLayout,
    element: ElementType,
    layout: FrozenLayout,
    frozen: DeviceBuffer,
    /// The checksum of the frozen weights as they were uploaded.
    expected_checksum: u64,
    /// Cosines, then sines.
    rope: DeviceBuffer,
    max_positions: usize,
    copy_table: DeviceBuffer,
}

/// A group's input with its columns of LoRA, `[X | scale X A^T]`, or its gradient.
struct ExtendedInput {
    buffer: DeviceBuffer,
    rows: usize,
    inputs: usize,
    lora_columns: usize,
}

impl ExtendedInput {
    fn all(&self) -> MatrixView<'_> {
        MatrixView::dense(self.buffer.view(), self.rows, self.inputs + self.lora_columns)
    }

    fn input_part(&self) -> MatrixView<'_> {
        self.all().column_range(0, self.inputs)
    }

    fn lora_part(&self) -> MatrixView<'_> {
        self.all().column_range(self.inputs, self.lora_columns)
    }
}

/// What a layer's forward pass keeps for its backward pass.
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

/// A micro-batch on its way.
struct MicroBatchPass<'a> {
    model: &'a CudaModel,
    micro_batch: MicroBatch,
    inputs: MicroBatchInputs<'a>,
    gradient: &'a DeviceBuffer,
}

impl CudaModel {
    /// Uploads the base. Samples have at most `longest` tokens.
    pub fn new(
        device: Arc<CudaDevice>,
        base: &BaseModel,
        adapter: &AdapterLayout,
        precision: Precision,
        longest: usize,
    ) -> Result<CudaModel, DeviceError> {
        let config = base.config.clone();
        if config.head_dim > MOST_HEAD_DIM {
            let name = format!("a head size of {}, where {MOST_HEAD_DIM} is the largest", config.head_dim);
            return Err(DeviceError::CallFailed {
                device: device.name(),
                call: "attention",
                name,
                code: None,
            });
        }
        let element = match precision {
            Precision::F32 => ElementType::F32,
            Precision::Bf16 => ElementType::Bf16,
        };
        let places = FrozenLayout::new(&config, adapter);
        let frozen = device.buffer(element, places.len())?;
        let expected = places.upload(&device, &frozen, base)?;
        let most_positions = longest.max(1);
        let rope = upload_floats(&device, &rope_table(&config, most_positions))?;
        let bytes = places.copy_table(adapter, &frozen);
        let table = device.buffer(ElementType::Bits64, bytes.len() / 8)?;
        device.upload(&table, 0, &bytes)?;
        let adapter = adapter.clone();
        Ok(CudaModel {
            device,
            config,
            adapter,
            element,
            layout: places,
            frozen,
            expected_checksum: expected,
            rope,
            max_positions: most_positions,
            copy_table: table,
        })
    }

    /// Makes the products read these parameters, from work that is queued later on.
    pub fn refresh_adapter_copies(&self, params: BufferView<'_>) -> Result<(), DeviceError> {
        self.device.copy_adapter_blocks(
            self.element,
            self.copy_table.view(),
            params,
            self.copy_table.len() / 4,
        )
    }

    /// Adds the batch's gradient to `gradient` and its weighted sum of losses to `loss`, one f32. `words` holds what
    /// [`Batch::words`] has.
    pub fn forward_backward(
        &self,
        batch: &PackedBatch,
        words: &DeviceBuffer,
        gradient: &DeviceBuffer,
        loss: BufferView<'_>,
    ) -> Result<(), DeviceError> {
        for part in &batch.micro_batches {
            MicroBatchPass { model: self, micro_batch: *part, inputs: part.inputs(words), gradient }
                .run(loss)?;
        }
        Ok(())
    }

    /// Weighted sum of losses, and `scale` times its gradient, of samples in one micro-batch. Waits. Leaves the copies of
    /// these parameters behind.
    pub fn forward_backward_once(
        &self,
        params: &[f32],
        samples: &[WeightedSample<'_>],
        scale: f32,
    ) -> Result<(f32, Vec<f32>), DeviceError> {
        let all = NonZeroUsize::new(samples.len()).unwrap_or(NonZeroUsize::MIN);
        let batch = PackedBatch::new(samples.iter().copied(), all, scale);
        let device = &self.device;
        let words = device.buffer(ElementType::Bits32, batch.words().len().max(1))?;
        let bytes: Vec<u8> = batch.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        device.upload(&words, 0, &bytes)?;
        let params = upload_floats(device, params)?;
        self.refresh_adapter_copies(params.view())?;
        let gradient = device.zeros(ElementType::F32, self.adapter.param_count())?;
        let loss = device.zeros(ElementType::F32, 1)?;
        self.forward_backward(&batch, &words, &gradient, loss.view())?;
        Ok((floats(&device.download(&loss)?)[0], floats(&device.download(&gradient)?)))
    }

    /// Whether the frozen weights are those that were uploaded, and the copies those of the parameters. Waits.
    ///
    /// The copies lie between the weights: they are set to zero for the sum over the weights, and put back for a second sum
    /// over all, which must be that of before.
    pub fn weights_intact(&self, params: BufferView<'_>) -> Result<bool, DeviceError> {
        let device = &self.device;
        let sums = device.zeros(ElementType::Bits64, 3)?;
        let zero = device.zeros(ElementType::F32, self.adapter.param_count())?;
        let words = (self.frozen.len() * self.element.size_bytes() / 4) as u64;
        let sum = |number| device.checksum(sums.view_from(number), self.frozen.view(), words, 0);
        sum(0)?;
        self.refresh_adapter_copies(zero.view())?;
        sum(1)?;
        self.refresh_adapter_copies(params)?;
        sum(2)?;
        let sums = device.download(&sums)?;
        let sums: Vec<u64> = sums.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        Ok(sums[1] == self.expected_checksum && sums[0] == sums[2])
    }

    /// Uploads the base again; the parameters have to be spread after that.
    pub fn reload_weights(&self, base: &BaseModel) -> Result<(), DeviceError> {
        self.layout.upload(&self.device, &self.frozen, base)?;
        Ok(())
    }

    fn weight_view(&self, place: usize, len: usize) -> BufferView<'_> {
        self.frozen.view_range(place, len)
    }
}

/// `[2, positions, head_dim / 2]`, by the CPU's own formula.
fn rope_table(config: &ModelConfig, positions: usize) -> Vec<f32> {
    let half = config.head_dim / 2;
    let angle = |at: usize| {
        let frequency = config.rope_theta.powf(-2.0 * (at % half) as f32 / config.head_dim as f32);
        (at / half) as f32 * frequency
    };
    let all = 0..positions * half;
    all.clone().map(|at| angle(at).cos()).chain(all.map(|at| angle(at).sin())).collect()
}

fn upload_floats(device: &CudaDevice, values: &[f32]) -> Result<DeviceBuffer, DeviceError> {
    let buffer = device.buffer(ElementType::F32, values.len())?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    device.upload(&buffer, 0, &bytes)?;
    Ok(buffer)
}

pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

impl<'a> MicroBatchPass<'a> {
    fn run(&self, loss: BufferView<'_>) -> Result<(), DeviceError> {
        let (net, rows, width) = (self.model, self.micro_batch.rows, self.model.config.hidden);
        let mut x = self.activation_buffer(width)?;
        let table = net.weight_view(net.layout.embedding, net.config.vocabulary * width);
        net.device.embed(self.as_matrix(&x, width), table, self.inputs.tokens)?;
        let mut kept = Vec::with_capacity(net.layout.layers.len());
        for place in &net.layout.layers {
            let layer;
            (x, layer) = self.layer(place, x)?;
            kept.push(layer);
        }
        let dx = net.device.zeros(net.element, rows * width)?;
        self.loss(&x, &dx, loss)?;
        drop(x);
        for (number, place) in net.layout.layers.iter().enumerate().rev() {
            if let Some(kept) = kept.pop() {
                self.layer_backward(place, &dx, &kept, number > 0)?;
            }
        }
        Ok(())
    }

    /// For all rows.
    fn activation_buffer(&self, width: usize) -> Result<DeviceBuffer, DeviceError> {
        self.model.device.buffer(self.model.element, self.micro_batch.rows * width)
    }

    fn f32_buffer(&self, len: usize) -> Result<DeviceBuffer, DeviceError> {
        self.model.device.buffer(ElementType::F32, len)
    }

    fn extended_buffer(&self, group: &ProjectionGroup) -> Result<ExtendedInput, DeviceError> {
        let buffer = self.activation_buffer(group.width())?;
        Ok(ExtendedInput {
            buffer,
            rows: self.micro_batch.rows,
            inputs: group.inputs,
            lora_columns: group.lora_columns,
        })
    }

    fn as_matrix<'b>(&self, buffer: &'b DeviceBuffer, width: usize) -> MatrixView<'b> {
        MatrixView::dense(buffer.view(), self.micro_batch.rows, width)
    }

    fn packed_sequences(&self) -> PackedSequences<'_> {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.model.config;
        let MicroBatch { rows, sequences, longest, .. } = self.micro_batch;
        let starts = self.inputs.starts;
        PackedSequences { starts, sequences, rows, longest, heads, kv_heads, head_dim, tensor_cores: true }
    }

    fn rope(&self, qkv: MatrixView<'_>, back: bool) -> Result<(), DeviceError> {
        let (net, config) = (self.model, &self.model.config);
        let heads = (config.heads + config.kv_heads, config.head_dim);
        net.device.rope(qkv, net.rope.view(), self.inputs.positions, heads, net.max_positions, back)
    }

    /// `out = [X | U] [W | B]^T`, and the residual; fills in `U` first.
    fn project(
        &self,
        group: &ProjectionGroup,
        out: MatrixView<'_>,
        input: &ExtendedInput,
        residual: Option<MatrixView<'_>>,
    ) -> Result<(), DeviceError> {
        let (device, frozen) = (&self.model.device, &self.model.frozen);
        if group.lora_columns > 0 {
            let scales = (self.model.adapter.scale, 0.0);
            device.gemm(
                input.lora_part(),
                input.input_part().as_stored(),
                group.lora_a(frozen).transposed(),
                None,
                scales,
            )?;
        }
        let beta = if residual.is_some() { 1.0 } else { 0.0 };
        device.gemm(out, input.all().as_stored(), group.weight(frozen).transposed(), residual, (1.0, beta))
    }

    /// Adds to the gradient of the adapter; the gradient of the input, unless nobody wants it.
    fn project_backward(
        &self,
        group: &ProjectionGroup,
        dy: MatrixView<'_>,
        input: &ExtendedInput,
        wanted: bool,
    ) -> Result<ExtendedInput, DeviceError> {
        let (device, frozen) = (&self.model.device, &self.model.frozen);
        let (rank, scale) = (self.model.adapter.rank, self.model.adapter.scale);
        let d = self.extended_buffer(group)?;
        let weight = group.weight(frozen);
        if wanted {
            device.gemm(d.all(), dy.as_stored(), weight.as_stored(), None, (1.0, 0.0))?;
        } else if group.lora_columns > 0 {
            let b = weight.column_range(group.inputs, group.lora_columns);
            device.gemm(d.lora_part(), dy.as_stored(), b.as_stored(), None, (1.0, 0.0))?;
        }
        for LoraProjection { slot, first_row: from, first_column: column } in &group.lora_projections {
            let (a_len, b_len) = (rank * slot.inputs, slot.outputs * rank);
            let da = MatrixView::dense(self.gradient.view_range(slot.offset, a_len), rank, slot.inputs);
            let db =
                MatrixView::dense(self.gradient.view_range(slot.offset + a_len, b_len), slot.outputs, rank);
            let (du, u) =
                (d.lora_part().column_range(*column, rank), input.lora_part().column_range(*column, rank));
            device.gemm(da, du.transposed(), input.input_part().as_stored(), None, (scale, 1.0))?;
            device.gemm(
                db,
                dy.column_range(*from, slot.outputs).transposed(),
                u.as_stored(),
                None,
                (1.0, 1.0),
            )?;
        }
        if wanted && group.lora_columns > 0 {
            device.gemm(
                d.input_part(),
                d.lora_part().as_stored(),
                group.lora_a(frozen).as_stored(),
                None,
                (scale, 1.0),
            )?;
        }
        Ok(d)
    }

    /// The norm of `x` as a group's input.
    fn norm(
        &self,
        group: &ProjectionGroup,
        x: &DeviceBuffer,
        weight: usize,
    ) -> Result<(ExtendedInput, DeviceBuffer), DeviceError> {
        let net = self.model;
        let (normed, inverse) = (self.extended_buffer(group)?, self.f32_buffer(self.micro_batch.rows)?);
        let weight = net.weight_view(weight, net.config.hidden);
        net.device.rms_norm(normed.input_part(), inverse.view(), x.view(), weight, net.config.norm_eps)?;
        Ok((normed, inverse))
    }

    /// The layer's output, and what it kept.
    fn layer(
        &self,
        place: &LayerLayout,
        input: DeviceBuffer,
    ) -> Result<(DeviceBuffer, CudaLayerActivations), DeviceError> {
        let (net, width) = (self.model, self.model.config.hidden);
        let [g_qkv, g_o, g_gate_up, g_down] = &place.groups;
        let (normed, input_inverse) = self.norm(g_qkv, &input, place.input_norm)?;
        let qkv = self.activation_buffer(g_qkv.outputs)?;
        let qkv_rows = self.as_matrix(&qkv, g_qkv.outputs);
        self.project(g_qkv, qkv_rows, &normed, None)?;
        self.rope(qkv_rows, false)?;
        let (mixed, lse) =
            (self.extended_buffer(g_o)?, self.f32_buffer(self.micro_batch.rows * net.config.heads)?);
        net.device.attention(mixed.input_part(), lse.view(), qkv_rows, &self.packed_sequences())?;
        let middle = self.activation_buffer(width)?;
        self.project(g_o, self.as_matrix(&middle, width), &mixed, Some(self.as_matrix(&input, width)))?;
        let (post_normed, middle_inverse) = self.norm(g_gate_up, &middle, place.post_norm)?;
        let gate_up = self.activation_buffer(g_gate_up.outputs)?;
        let gate_up_rows = self.as_matrix(&gate_up, g_gate_up.outputs);
        self.project(g_gate_up, gate_up_rows, &post_normed, None)?;
        let active = self.extended_buffer(g_down)?;
        net.device.swiglu(active.input_part(), gate_up_rows)?;
        let out = self.activation_buffer(width)?;
        self.project(g_down, self.as_matrix(&out, width), &active, Some(self.as_matrix(&middle, width)))?;
        let kept = CudaLayerActivations {
            input,
            input_inverse,
            normed,
            qkv,
            lse,
            attention_output: mixed,
            after_attention: middle,
            after_attention_inverse: middle_inverse,
            post_normed,
            gate_up,
            swiglu_output: active,
        };
        Ok((out, kept))
    }

    /// `dx` of the layer's output becomes that of its input, unless nobody wants it.
    fn layer_backward(
        &self,
        place: &LayerLayout,
        dx: &DeviceBuffer,
        kept: &CudaLayerActivations,
        wanted: bool,
    ) -> Result<(), DeviceError> {
        let [g_qkv, g_o, ..] = &place.groups;
        self.mlp_backward(place, dx, kept)?;
        let (net, width) = (self.model, self.model.config.hidden);
        let dmixed = self.project_backward(g_o, self.as_matrix(dx, width), &kept.attention_output, true)?;
        let delta = self.f32_buffer(self.micro_batch.rows * net.config.heads)?;
        let packed = self.packed_sequences();
        net.device.attention_delta(
            delta.view(),
            kept.attention_output.input_part(),
            dmixed.input_part(),
            &packed,
        )?;
        let (qkv, dqkv) = (self.as_matrix(&kept.qkv, g_qkv.outputs), self.activation_buffer(g_qkv.outputs)?);
        let dqkv = self.as_matrix(&dqkv, g_qkv.outputs);
        let sums = (kept.lse.view(), delta.view());
        net.device.attention_backward(dqkv, qkv, dmixed.input_part(), sums, &packed)?;
        self.rope(dqkv, true)?;
        let dnormed = self.project_backward(g_qkv, dqkv, &kept.normed, wanted)?;
        match wanted {
            true => self.norm_backward(dx, &dnormed, &kept.input, place.input_norm, &kept.input_inverse),
            false => Ok(()),
        }
    }

    fn mlp_backward(
        &self,
        place: &LayerLayout,
        dx: &DeviceBuffer,
        kept: &CudaLayerActivations,
    ) -> Result<(), DeviceError> {
        let [.., g_gate_up, g_down] = &place.groups;
        let width = self.model.config.hidden;
        let dactive = self.project_backward(g_down, self.as_matrix(dx, width), &kept.swiglu_output, true)?;
        let dgate_up = self.activation_buffer(g_gate_up.outputs)?;
        let dgate_up = self.as_matrix(&dgate_up, g_gate_up.outputs);
        let gate_up = self.as_matrix(&kept.gate_up, g_gate_up.outputs);
        self.model.device.swiglu_backward(dgate_up, dactive.input_part(), gate_up)?;
        let dnormed = self.project_backward(g_gate_up, dgate_up, &kept.post_normed, true)?;
        self.norm_backward(
            dx,
            &dnormed,
            &kept.after_attention,
            place.post_norm,
            &kept.after_attention_inverse,
        )
    }

    /// Adds to `dx`.
    fn norm_backward(
        &self,
        dx: &DeviceBuffer,
        dnormed: &ExtendedInput,
        x: &DeviceBuffer,
        weight: usize,
        inverse: &DeviceBuffer,
    ) -> Result<(), DeviceError> {
        let weight = self.model.weight_view(weight, self.model.config.hidden);
        let residual = Some(dx.view());
        self.model.device.rms_norm_backward(
            dx.view(),
            residual,
            dnormed.input_part(),
            x.view(),
            weight,
            inverse.view(),
        )
    }

    /// Losses of the learned rows, whose gradients go to `dx`, zero before. Only so many rows have logits at a time.
    fn loss(&self, x: &DeviceBuffer, dx: &DeviceBuffer, loss: BufferView<'_>) -> Result<(), DeviceError> {
        let (net, device, learned) = (self.model, &self.model.device, self.micro_batch.target_count);
        let (width, vocabulary) = (net.config.hidden, net.config.vocabulary);
        let buffer = |rows: usize, width: usize| device.buffer(net.element, rows * width);
        let (picked, normed) = (buffer(learned, width)?, buffer(learned, width)?);
        let picked_rows = MatrixView::dense(picked.view(), learned, width);
        device.gather_rows(picked_rows, self.as_matrix(x, width), self.inputs.target_rows)?;
        let (inverse, weight) = (self.f32_buffer(learned)?, net.weight_view(net.layout.norm, width));
        let normed_rows = MatrixView::dense(normed.view(), learned, width);
        device.rms_norm(normed_rows, inverse.view(), picked.view(), weight, net.config.norm_eps)?;
        let head = MatrixView::dense(net.weight_view(net.layout.head, vocabulary * width), vocabulary, width);
        let losses = self.f32_buffer(learned)?;
        let dnormed = buffer(learned, width)?;
        let dnormed_rows = MatrixView::dense(dnormed.view(), learned, width);
        let chunk = (MAX_LOGITS_BYTES / (vocabulary * net.element.size_bytes())).clamp(1, learned);
        let logits = buffer(chunk, vocabulary)?;
        for from in (0..learned).step_by(chunk) {
            let rows = chunk.min(learned - from);
            let logits = MatrixView::dense(logits.view(), rows, vocabulary);
            let some = normed_rows.rows(from, rows);
            device.gemm(logits, some.as_stored(), head.transposed(), None, (1.0, 0.0))?;
            let (targets, scales) = (self.inputs.targets.skip(from), self.inputs.scales.skip(from));
            device.cross_entropy(logits, losses.view_from(from), targets, scales)?;
            let dsome = dnormed_rows.rows(from, rows);
            device.gemm(dsome, logits.as_stored(), head.as_stored(), None, (1.0, 0.0))?;
        }
        device.weighted_sum(loss, losses.view(), self.inputs.weights, learned)?;
        // The normed rows are needed no longer: their place takes the gradient of what was picked.
        device.rms_norm_backward(normed.view(), None, dnormed_rows, picked.view(), weight, inverse.view())?;
        device.scatter_rows(self.as_matrix(dx, width), normed_rows, self.inputs.target_rows)
    }
}
