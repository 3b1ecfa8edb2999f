//! The model on a card: forward and back for a micro-batch, the gradient of the adapter added up in place. Activations stay
//! in the precision of the weights; sums, the gradient and the losses are f32. No frozen weight gets a gradient.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::batch::{Batch, Inputs, Part, Weighed};
use super::frozen::{Carrier, Group, LayerPlace, Places};
use crate::device::cuda::{Buffer, Device, Element, Packed, Rows, View};
use crate::device::{DeviceError, Precision};
use crate::model::base::Base;
use crate::model::config::Config;
use crate::model::lora::Adapter;

/// What the logits of a chunk of rows may take.
const LOGITS_BYTES: usize = 256 << 20;
/// Largest head that the kernels know.
const MOST_HEAD_DIM: usize = 256;

/// Frozen weights on a card, and the copies of the adapter that the products read.
#[derive(Debug)]
pub struct CudaNet {
    device: Arc<Device>,
    config: Config,
    adapter: Adapter,
    element: Element,
    places: Places,
    frozen: Buffer,
    /// The checksum of the frozen weights as they were uploaded.
    expected: u64,
    /// Cosines, then sines.
    rope: Buffer,
    most_positions: usize,
    table: Buffer,
}

/// A group's input with its columns of LoRA, `[X | scale X A^T]`, or its gradient.
struct Wide {
    buffer: Buffer,
    rows: usize,
    inputs: usize,
    extra: usize,
}

impl Wide {
    fn all(&self) -> Rows<'_> {
        Rows::dense(self.buffer.view(), self.rows, self.inputs + self.extra)
    }

    fn x(&self) -> Rows<'_> {
        self.all().columns(0, self.inputs)
    }

    fn u(&self) -> Rows<'_> {
        self.all().columns(self.inputs, self.extra)
    }
}

/// What a layer's forward pass keeps for its backward pass.
struct Kept {
    input: Buffer,
    input_inverse: Buffer,
    normed: Wide,
    qkv: Buffer,
    lse: Buffer,
    mixed: Wide,
    middle: Buffer,
    middle_inverse: Buffer,
    post_normed: Wide,
    gate_up: Buffer,
    active: Wide,
}

/// A micro-batch on its way.
struct Pass<'a> {
    net: &'a CudaNet,
    part: Part,
    inputs: Inputs<'a>,
    gradient: &'a Buffer,
}

impl CudaNet {
    /// Uploads the base. Samples have at most `longest` tokens.
    pub fn new(
        device: Arc<Device>,
        base: &Base,
        adapter: &Adapter,
        precision: Precision,
        longest: usize,
    ) -> Result<CudaNet, DeviceError> {
        let config = base.config.clone();
        if config.head_dim > MOST_HEAD_DIM {
            let name = format!("a head size of {}, where {MOST_HEAD_DIM} is the largest", config.head_dim);
            return Err(DeviceError::Refused { device: device.name(), call: "attention", name, code: None });
        }
        let element = match precision {
            Precision::F32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        let places = Places::new(&config, adapter);
        let frozen = device.buffer(element, places.len())?;
        let expected = places.upload(&device, &frozen, base)?;
        let most_positions = longest.max(1);
        let rope = upload_floats(&device, &rope_table(&config, most_positions))?;
        let bytes = places.table(adapter, &frozen);
        let table = device.buffer(Element::Long, bytes.len() / 8)?;
        device.upload(&table, 0, &bytes)?;
        let adapter = adapter.clone();
        Ok(CudaNet {
            device,
            config,
            adapter,
            element,
            places,
            frozen,
            expected,
            rope,
            most_positions,
            table,
        })
    }

    /// Makes the products read these parameters, from work that is queued later on.
    pub fn spread(&self, params: View<'_>) -> Result<(), DeviceError> {
        self.device.spread(self.element, self.table.view(), params, self.table.len() / 4)
    }

    /// Adds the batch's gradient to `gradient` and its weighted sum of losses to `loss`, one f32. `words` holds what
    /// [`Batch::words`] has.
    pub fn pass(
        &self,
        batch: &Batch,
        words: &Buffer,
        gradient: &Buffer,
        loss: View<'_>,
    ) -> Result<(), DeviceError> {
        for part in &batch.parts {
            Pass { net: self, part: *part, inputs: part.inputs(words), gradient }.run(loss)?;
        }
        Ok(())
    }

    /// Weighted sum of losses, and `scale` times its gradient, of samples in one micro-batch. Waits. Leaves the copies of
    /// these parameters behind.
    pub fn pass_once(
        &self,
        params: &[f32],
        samples: &[Weighed<'_>],
        scale: f32,
    ) -> Result<(f32, Vec<f32>), DeviceError> {
        let all = NonZeroUsize::new(samples.len()).unwrap_or(NonZeroUsize::MIN);
        let batch = Batch::new(samples.iter().copied(), all, scale);
        let device = &self.device;
        let words = device.buffer(Element::Word, batch.words().len().max(1))?;
        let bytes: Vec<u8> = batch.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        device.upload(&words, 0, &bytes)?;
        let params = upload_floats(device, params)?;
        self.spread(params.view())?;
        let gradient = device.zeros(Element::F32, self.adapter.count())?;
        let loss = device.zeros(Element::F32, 1)?;
        self.pass(&batch, &words, &gradient, loss.view())?;
        Ok((floats(&device.download(&loss)?)[0], floats(&device.download(&gradient)?)))
    }

    /// Whether the frozen weights are those that were uploaded, and the copies those of the parameters. Waits.
    ///
    /// The copies lie between the weights: they are set to zero for the sum over the weights, and put back for a second sum
    /// over all, which must be that of before.
    pub fn intact(&self, params: View<'_>) -> Result<bool, DeviceError> {
        let device = &self.device;
        let sums = device.zeros(Element::Long, 3)?;
        let zero = device.zeros(Element::F32, self.adapter.count())?;
        let words = (self.frozen.len() * self.element.bytes() / 4) as u64;
        let sum = |number| device.checksum(sums.from(number), self.frozen.view(), words, 0);
        sum(0)?;
        self.spread(zero.view())?;
        sum(1)?;
        self.spread(params)?;
        sum(2)?;
        let sums = device.download(&sums)?;
        let sums: Vec<u64> = sums.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect();
        Ok(sums[1] == self.expected && sums[0] == sums[2])
    }

    /// Uploads the base again; the parameters have to be spread after that.
    pub fn reload(&self, base: &Base) -> Result<(), DeviceError> {
        self.places.upload(&self.device, &self.frozen, base)?;
        Ok(())
    }

    fn at(&self, place: usize, len: usize) -> View<'_> {
        self.frozen.part(place, len)
    }
}

/// `[2, positions, head_dim / 2]`, by the CPU's own formula.
fn rope_table(config: &Config, positions: usize) -> Vec<f32> {
    let half = config.head_dim / 2;
    let angle = |at: usize| {
        let frequency = config.theta.powf(-2.0 * (at % half) as f32 / config.head_dim as f32);
        (at / half) as f32 * frequency
    };
    let all = 0..positions * half;
    all.clone().map(|at| angle(at).cos()).chain(all.map(|at| angle(at).sin())).collect()
}

fn upload_floats(device: &Device, values: &[f32]) -> Result<Buffer, DeviceError> {
    let buffer = device.buffer(Element::F32, values.len())?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    device.upload(&buffer, 0, &bytes)?;
    Ok(buffer)
}

pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
}

impl<'a> Pass<'a> {
    fn run(&self, loss: View<'_>) -> Result<(), DeviceError> {
        let (net, rows, width) = (self.net, self.part.rows, self.net.config.hidden);
        let mut x = self.buffer(width)?;
        let table = net.at(net.places.embedding, net.config.vocabulary * width);
        net.device.embed(self.rows(&x, width), table, self.inputs.tokens)?;
        let mut kept = Vec::with_capacity(net.places.layers.len());
        for place in &net.places.layers {
            let layer;
            (x, layer) = self.layer(place, x)?;
            kept.push(layer);
        }
        let dx = net.device.zeros(net.element, rows * width)?;
        self.loss(&x, &dx, loss)?;
        drop(x);
        for (number, place) in net.places.layers.iter().enumerate().rev() {
            if let Some(kept) = kept.pop() {
                self.layer_backward(place, &dx, &kept, number > 0)?;
            }
        }
        Ok(())
    }

    /// For all rows.
    fn buffer(&self, width: usize) -> Result<Buffer, DeviceError> {
        self.net.device.buffer(self.net.element, self.part.rows * width)
    }

    fn floats(&self, len: usize) -> Result<Buffer, DeviceError> {
        self.net.device.buffer(Element::F32, len)
    }

    fn wide(&self, group: &Group) -> Result<Wide, DeviceError> {
        let buffer = self.buffer(group.width())?;
        Ok(Wide { buffer, rows: self.part.rows, inputs: group.inputs, extra: group.extra })
    }

    fn rows<'b>(&self, buffer: &'b Buffer, width: usize) -> Rows<'b> {
        Rows::dense(buffer.view(), self.part.rows, width)
    }

    fn packed(&self) -> Packed<'_> {
        let Config { heads, kv_heads, head_dim, .. } = self.net.config;
        let Part { rows, sequences, longest, .. } = self.part;
        let starts = self.inputs.starts;
        Packed { starts, sequences, rows, longest, heads, kv_heads, head_dim, tensor_cores: true }
    }

    fn rope(&self, qkv: Rows<'_>, back: bool) -> Result<(), DeviceError> {
        let (net, config) = (self.net, &self.net.config);
        let heads = (config.heads + config.kv_heads, config.head_dim);
        net.device.rope(qkv, net.rope.view(), self.inputs.positions, heads, net.most_positions, back)
    }

    /// `out = [X | U] [W | B]^T`, and the residual; fills in `U` first.
    fn project(
        &self,
        group: &Group,
        out: Rows<'_>,
        input: &Wide,
        residual: Option<Rows<'_>>,
    ) -> Result<(), DeviceError> {
        let (device, frozen) = (&self.net.device, &self.net.frozen);
        if group.extra > 0 {
            let scales = (self.net.adapter.scale, 0.0);
            device.product(input.u(), input.x().as_is(), group.a(frozen).transposed(), None, scales)?;
        }
        let beta = if residual.is_some() { 1.0 } else { 0.0 };
        device.product(out, input.all().as_is(), group.weight(frozen).transposed(), residual, (1.0, beta))
    }

    /// Adds to the gradient of the adapter; the gradient of the input, unless nobody wants it.
    fn project_backward(
        &self,
        group: &Group,
        dy: Rows<'_>,
        input: &Wide,
        wanted: bool,
    ) -> Result<Wide, DeviceError> {
        let (device, frozen) = (&self.net.device, &self.net.frozen);
        let (rank, scale) = (self.net.adapter.rank, self.net.adapter.scale);
        let d = self.wide(group)?;
        let weight = group.weight(frozen);
        if wanted {
            device.product(d.all(), dy.as_is(), weight.as_is(), None, (1.0, 0.0))?;
        } else if group.extra > 0 {
            let b = weight.columns(group.inputs, group.extra);
            device.product(d.u(), dy.as_is(), b.as_is(), None, (1.0, 0.0))?;
        }
        for Carrier { slot, from, column } in &group.carriers {
            let (a_len, b_len) = (rank * slot.inputs, slot.outputs * rank);
            let da = Rows::dense(self.gradient.part(slot.at, a_len), rank, slot.inputs);
            let db = Rows::dense(self.gradient.part(slot.at + a_len, b_len), slot.outputs, rank);
            let (du, u) = (d.u().columns(*column, rank), input.u().columns(*column, rank));
            device.product(da, du.transposed(), input.x().as_is(), None, (scale, 1.0))?;
            device.product(db, dy.columns(*from, slot.outputs).transposed(), u.as_is(), None, (1.0, 1.0))?;
        }
        if wanted && group.extra > 0 {
            device.product(d.x(), d.u().as_is(), group.a(frozen).as_is(), None, (scale, 1.0))?;
        }
        Ok(d)
    }

    /// The norm of `x` as a group's input.
    fn norm(&self, group: &Group, x: &Buffer, weight: usize) -> Result<(Wide, Buffer), DeviceError> {
        let net = self.net;
        let (normed, inverse) = (self.wide(group)?, self.floats(self.part.rows)?);
        let weight = net.at(weight, net.config.hidden);
        net.device.rms_norm(normed.x(), inverse.view(), x.view(), weight, net.config.eps)?;
        Ok((normed, inverse))
    }

    /// The layer's output, and what it kept.
    fn layer(&self, place: &LayerPlace, input: Buffer) -> Result<(Buffer, Kept), DeviceError> {
        let (net, width) = (self.net, self.net.config.hidden);
        let [g_qkv, g_o, g_gate_up, g_down] = &place.groups;
        let (normed, input_inverse) = self.norm(g_qkv, &input, place.input_norm)?;
        let qkv = self.buffer(g_qkv.outputs)?;
        let qkv_rows = self.rows(&qkv, g_qkv.outputs);
        self.project(g_qkv, qkv_rows, &normed, None)?;
        self.rope(qkv_rows, false)?;
        let (mixed, lse) = (self.wide(g_o)?, self.floats(self.part.rows * net.config.heads)?);
        net.device.attention(mixed.x(), lse.view(), qkv_rows, &self.packed())?;
        let middle = self.buffer(width)?;
        self.project(g_o, self.rows(&middle, width), &mixed, Some(self.rows(&input, width)))?;
        let (post_normed, middle_inverse) = self.norm(g_gate_up, &middle, place.post_norm)?;
        let gate_up = self.buffer(g_gate_up.outputs)?;
        let gate_up_rows = self.rows(&gate_up, g_gate_up.outputs);
        self.project(g_gate_up, gate_up_rows, &post_normed, None)?;
        let active = self.wide(g_down)?;
        net.device.swiglu(active.x(), gate_up_rows)?;
        let out = self.buffer(width)?;
        self.project(g_down, self.rows(&out, width), &active, Some(self.rows(&middle, width)))?;
        let kept = Kept {
            input,
            input_inverse,
            normed,
            qkv,
            lse,
            mixed,
            middle,
            middle_inverse,
            post_normed,
            gate_up,
            active,
        };
        Ok((out, kept))
    }

    /// `dx` of the layer's output becomes that of its input, unless nobody wants it.
    fn layer_backward(
        &self,
        place: &LayerPlace,
        dx: &Buffer,
        kept: &Kept,
        wanted: bool,
    ) -> Result<(), DeviceError> {
        let [g_qkv, g_o, ..] = &place.groups;
        self.mlp_backward(place, dx, kept)?;
        let (net, width) = (self.net, self.net.config.hidden);
        let dmixed = self.project_backward(g_o, self.rows(dx, width), &kept.mixed, true)?;
        let delta = self.floats(self.part.rows * net.config.heads)?;
        let packed = self.packed();
        net.device.attention_delta(delta.view(), kept.mixed.x(), dmixed.x(), &packed)?;
        let (qkv, dqkv) = (self.rows(&kept.qkv, g_qkv.outputs), self.buffer(g_qkv.outputs)?);
        let dqkv = self.rows(&dqkv, g_qkv.outputs);
        let sums = (kept.lse.view(), delta.view());
        net.device.attention_backward(dqkv, qkv, dmixed.x(), sums, &packed)?;
        self.rope(dqkv, true)?;
        let dnormed = self.project_backward(g_qkv, dqkv, &kept.normed, wanted)?;
        match wanted {
            true => self.norm_backward(dx, &dnormed, &kept.input, place.input_norm, &kept.input_inverse),
            false => Ok(()),
        }
    }

    fn mlp_backward(&self, place: &LayerPlace, dx: &Buffer, kept: &Kept) -> Result<(), DeviceError> {
        let [.., g_gate_up, g_down] = &place.groups;
        let width = self.net.config.hidden;
        let dactive = self.project_backward(g_down, self.rows(dx, width), &kept.active, true)?;
        let dgate_up = self.buffer(g_gate_up.outputs)?;
        let dgate_up = self.rows(&dgate_up, g_gate_up.outputs);
        let gate_up = self.rows(&kept.gate_up, g_gate_up.outputs);
        self.net.device.swiglu_backward(dgate_up, dactive.x(), gate_up)?;
        let dnormed = self.project_backward(g_gate_up, dgate_up, &kept.post_normed, true)?;
        self.norm_backward(dx, &dnormed, &kept.middle, place.post_norm, &kept.middle_inverse)
    }

    /// Adds to `dx`.
    fn norm_backward(
        &self,
        dx: &Buffer,
        dnormed: &Wide,
        x: &Buffer,
        weight: usize,
        inverse: &Buffer,
    ) -> Result<(), DeviceError> {
        let weight = self.net.at(weight, self.net.config.hidden);
        let residual = Some(dx.view());
        self.net.device.rms_norm_backward(dx.view(), residual, dnormed.x(), x.view(), weight, inverse.view())
    }

    /// Losses of the learned rows, whose gradients go to `dx`, zero before. Only so many rows have logits at a time.
    fn loss(&self, x: &Buffer, dx: &Buffer, loss: View<'_>) -> Result<(), DeviceError> {
        let (net, device, learned) = (self.net, &self.net.device, self.part.learned);
        let (width, vocabulary) = (net.config.hidden, net.config.vocabulary);
        let buffer = |rows: usize, width: usize| device.buffer(net.element, rows * width);
        let (picked, normed) = (buffer(learned, width)?, buffer(learned, width)?);
        let picked_rows = Rows::dense(picked.view(), learned, width);
        device.gather_rows(picked_rows, self.rows(x, width), self.inputs.which)?;
        let (inverse, weight) = (self.floats(learned)?, net.at(net.places.norm, width));
        let normed_rows = Rows::dense(normed.view(), learned, width);
        device.rms_norm(normed_rows, inverse.view(), picked.view(), weight, net.config.eps)?;
        let head = Rows::dense(net.at(net.places.head, vocabulary * width), vocabulary, width);
        let losses = self.floats(learned)?;
        let dnormed = buffer(learned, width)?;
        let dnormed_rows = Rows::dense(dnormed.view(), learned, width);
        let chunk = (LOGITS_BYTES / (vocabulary * net.element.bytes())).clamp(1, learned);
        let logits = buffer(chunk, vocabulary)?;
        for from in (0..learned).step_by(chunk) {
            let rows = chunk.min(learned - from);
            let logits = Rows::dense(logits.view(), rows, vocabulary);
            let some = normed_rows.rows(from, rows);
            device.product(logits, some.as_is(), head.transposed(), None, (1.0, 0.0))?;
            let (targets, scales) = (self.inputs.targets.after(from), self.inputs.scales.after(from));
            device.cross_entropy(logits, losses.from(from), targets, scales)?;
            let dsome = dnormed_rows.rows(from, rows);
            device.product(dsome, logits.as_is(), head.as_is(), None, (1.0, 0.0))?;
        }
        device.weighted_sum(loss, losses.view(), self.inputs.weights, learned)?;
        // The normed rows are needed no longer: their place takes the gradient of what was picked.
        device.rms_norm_backward(normed.view(), None, dnormed_rows, picked.view(), weight, inverse.view())?;
        device.scatter_rows(self.rows(dx, width), normed_rows, self.inputs.which)
    }
}
