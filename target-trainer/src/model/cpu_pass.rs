//! One sample through the model and back. Single-threaded, with buffers of its own: the unit of parallelism.

use super::base::{BaseModel, LayerWeights};
use super::lora::{AdapterLayout, LoraSlot};
use super::tokens::{BOS, EOS, TokenizedSample};
use crate::device::{
    Accumulate, AttentionGradients, AttentionShape, Direction, Rope, add, attention, attention_backward,
    cross_entropy, embed, matmul_nn, matmul_nt, matmul_tn, rms_norm, rms_norm_backward, swiglu,
    swiglu_backward,
};
use crate::train::Projection;

/// Base and adapter, for one pass.
#[derive(Clone, Copy)]
struct SamplePass<'a> {
    base: &'a BaseModel,
    adapter: &'a AdapterLayout,
    params: &'a [f32],
    tokens: usize,
}

/// What a layer's forward pass keeps for its backward pass.
struct LayerActivations {
    input: Vec<f32>,
    input_inverse: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    probabilities: Vec<f32>,
    attention_output: Vec<f32>,
    after_attention: Vec<f32>,
    after_attention_inverse: Vec<f32>,
    post_normed: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    swiglu_output: Vec<f32>,
}

impl SamplePass<'_> {
    fn attention_shape(&self) -> AttentionShape {
        let config = &self.base.config;
        AttentionShape {
            tokens: self.tokens,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }

    fn rope(&self) -> Rope {
        Rope::new(self.base.config.head_dim, self.base.config.rope_theta)
    }

    /// `x[t, in] W^T`, and the LoRA matrices' part where there are some.
    fn project(&self, layer: usize, projection: Projection, x: &[f32]) -> Vec<f32> {
        let (outputs, inputs) = self.base.config.projection_shape(projection);
        let (t, r) = (self.tokens, self.adapter.rank);
        let mut y = vec![0.0; t * outputs];
        matmul_nt(
            &mut y,
            x,
            self.base.layers[layer].weight(projection),
            (t, outputs, inputs),
            1.0,
            Accumulate::Replace,
        );
        if let Some(slot) = self.adapter.slot(layer, projection) {
            let (_, b) = self.adapter.matrices(slot, self.params);
            matmul_nt(
                &mut y,
                &self.lora_down(slot, x),
                b,
                (t, outputs, r),
                self.adapter.scale,
                Accumulate::Add,
            );
        }
        y
    }

    /// `x A^T`.
    fn lora_down(&self, slot: LoraSlot, x: &[f32]) -> Vec<f32> {
        let (a, _) = self.adapter.matrices(slot, self.params);
        let mut u = vec![0.0; self.tokens * self.adapter.rank];
        matmul_nt(&mut u, x, a, (self.tokens, self.adapter.rank, slot.inputs), 1.0, Accumulate::Replace);
        u
    }

    /// Adds to `dx` and to the gradient of the LoRA matrices what `dy` asks of them; the frozen weight gets none.
    fn project_backward(
        &self,
        layer: usize,
        projection: Projection,
        dx: &mut [f32],
        dy: &[f32],
        x: &[f32],
        gradient: &mut [f32],
    ) {
        let (outputs, inputs) = self.base.config.projection_shape(projection);
        let (t, r, scale) = (self.tokens, self.adapter.rank, self.adapter.scale);
        matmul_nn(
            dx,
            dy,
            self.base.layers[layer].weight(projection),
            (t, inputs, outputs),
            1.0,
            Accumulate::Add,
        );
        let Some(slot) = self.adapter.slot(layer, projection) else { return };
        let (a, b) = self.adapter.matrices(slot, self.params);
        let u = self.lora_down(slot, x);
        let mut du = vec![0.0; t * r];
        matmul_nn(&mut du, dy, b, (t, r, outputs), scale, Accumulate::Replace);
        let (da, db) = self.adapter.matrices_mut(slot, gradient);
        matmul_tn(db, dy, &u, (outputs, r, t), scale, Accumulate::Add);
        matmul_tn(da, &du, x, (r, inputs, t), 1.0, Accumulate::Add);
        matmul_nn(dx, &du, a, (t, inputs, r), 1.0, Accumulate::Add);
    }

    fn norm(&self, x: &[f32], weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut y = vec![0.0; x.len()];
        let inverse = rms_norm(&mut y, x, weight, self.base.config.norm_eps);
        (y, inverse)
    }

    /// `x` becomes the layer's output.
    fn layer(&self, number: usize, x: &mut [f32]) -> LayerActivations {
        let LayerWeights { input_norm, post_norm, .. } = &self.base.layers[number];
        let config = &self.base.config;
        let input = x.to_vec();
        let (normed, input_inverse) = self.norm(x, input_norm);
        let mut q = self.project(number, Projection::QProj, &normed);
        let mut k = self.project(number, Projection::KProj, &normed);
        let v = self.project(number, Projection::VProj, &normed);
        self.rope().rotate(&mut q, config.heads, Direction::Forward);
        self.rope().rotate(&mut k, config.kv_heads, Direction::Forward);
        let mut mixed = vec![0.0; q.len()];
        let probabilities = attention(&mut mixed, &q, &k, &v, self.attention_shape());
        add(x, &self.project(number, Projection::OProj, &mixed));
        let middle = x.to_vec();
        let (post_normed, middle_inverse) = self.norm(x, post_norm);
        let gate = self.project(number, Projection::GateProj, &post_normed);
        let up = self.project(number, Projection::UpProj, &post_normed);
        let mut active = vec![0.0; gate.len()];
        swiglu(&mut active, &gate, &up);
        add(x, &self.project(number, Projection::DownProj, &active));
        LayerActivations {
            input,
            input_inverse,
            normed,
            q,
            k,
            v,
            probabilities,
            attention_output: mixed,
            after_attention: middle,
            after_attention_inverse: middle_inverse,
            post_normed,
            gate,
            up,
            swiglu_output: active,
        }
    }

    /// `dx` of the layer's output becomes that of its input.
    fn layer_backward(&self, number: usize, dx: &mut [f32], kept: &LayerActivations, gradient: &mut [f32]) {
        self.mlp_backward(number, dx, kept, gradient);
        let config = &self.base.config;
        let mut dmixed = vec![0.0; kept.attention_output.len()];
        self.project_backward(number, Projection::OProj, &mut dmixed, dx, &kept.attention_output, gradient);
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; kept.q.len()], vec![0.0; kept.k.len()], vec![0.0; kept.v.len()]);
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention_backward(
            gradients,
            &dmixed,
            (&kept.q, &kept.k, &kept.v),
            &kept.probabilities,
            self.attention_shape(),
        );
        self.rope().rotate(&mut dq, config.heads, Direction::Backward);
        self.rope().rotate(&mut dk, config.kv_heads, Direction::Backward);
        let mut dnormed = vec![0.0; kept.normed.len()];
        for (projection, dy) in [(Projection::QProj, &dq), (Projection::KProj, &dk), (Projection::VProj, &dv)]
        {
            self.project_backward(number, projection, &mut dnormed, dy, &kept.normed, gradient);
        }
        rms_norm_backward(
            dx,
            &dnormed,
            &kept.input,
            &self.base.layers[number].input_norm,
            &kept.input_inverse,
        );
    }

    fn mlp_backward(&self, number: usize, dx: &mut [f32], kept: &LayerActivations, gradient: &mut [f32]) {
        let mut dactive = vec![0.0; kept.swiglu_output.len()];
        self.project_backward(number, Projection::DownProj, &mut dactive, dx, &kept.swiglu_output, gradient);
        let (mut dgate, mut dup) = (vec![0.0; kept.gate.len()], vec![0.0; kept.up.len()]);
        swiglu_backward(&mut dgate, &mut dup, &dactive, &kept.gate, &kept.up);
        let mut dnormed = vec![0.0; kept.post_normed.len()];
        self.project_backward(
            number,
            Projection::GateProj,
            &mut dnormed,
            &dgate,
            &kept.post_normed,
            gradient,
        );
        self.project_backward(number, Projection::UpProj, &mut dnormed, &dup, &kept.post_normed, gradient);
        rms_norm_backward(
            dx,
            &dnormed,
            &kept.after_attention,
            &self.base.layers[number].post_norm,
            &kept.after_attention_inverse,
        );
    }

    /// Through all layers; what each kept, and the residual stream at the end.
    fn forward(&self, tokens: &[u32]) -> (Vec<f32>, Vec<LayerActivations>) {
        let width = self.base.config.hidden;
        let mut x = vec![0.0; tokens.len() * width];
        embed(&mut x, &self.base.embedding, tokens, width);
        let kept = (0..self.base.config.layers).map(|number| self.layer(number, &mut x)).collect();
        (x, kept)
    }
}

/// Sum of the sample's losses, and `scale` times its gradient, as long as the adapter's parameters.
pub fn sample_loss_and_gradient(
    base: &BaseModel,
    adapter: &AdapterLayout,
    params: &[f32],
    tokens: &TokenizedSample,
    scale: f32,
) -> (f32, Vec<f32>) {
    let mut gradient = vec![0.0; adapter.param_count()];
    if tokens.targets.is_empty() {
        return (0.0, gradient);
    }
    let net = SamplePass { base, adapter, params, tokens: tokens.tokens.len() };
    let (x, kept) = net.forward(&tokens.tokens);
    let (normed, inverse) = net.norm(&x, &base.norm);
    let mut dnormed = vec![0.0; x.len()];
    let loss = cross_entropy(&mut dnormed, &normed, base.head(), &tokens.targets, base.config.hidden, scale);
    let mut dx = vec![0.0; x.len()];
    rms_norm_backward(&mut dx, &dnormed, &x, &base.norm, &inverse);
    for (number, kept) in kept.iter().enumerate().rev() {
        net.layer_backward(number, &mut dx, kept, &mut gradient);
    }
    (loss, gradient)
}

/// `[t, vocabulary]`.
pub fn logits(base: &BaseModel, adapter: &AdapterLayout, params: &[f32], tokens: &[u32]) -> Vec<f32> {
    let net = SamplePass { base, adapter, params, tokens: tokens.len() };
    let (x, _) = net.forward(tokens);
    let (normed, _) = net.norm(&x, &base.norm);
    let (t, v, h) = (tokens.len(), base.config.vocabulary, base.config.hidden);
    let mut logits = vec![0.0; t * v];
    matmul_nt(&mut logits, &normed, base.head(), (t, v, h), 1.0, Accumulate::Replace);
    logits
}

/// The likeliest continuation of a prompt, token by token, at most `most` bytes.
pub fn generate_greedy(
    base: &BaseModel,
    adapter: &AdapterLayout,
    params: &[f32],
    prompt: &str,
    most: usize,
) -> Vec<u8> {
    let mut tokens: Vec<u32> = std::iter::once(BOS).chain(prompt.bytes().map(u32::from)).collect();
    let mut said = Vec::new();
    while said.len() < most {
        let all = logits(base, adapter, params, &tokens);
        let last = &all[all.len() - base.config.vocabulary..];
        let best =
            last.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(EOS, |(token, _)| token as u32);
        let Ok(byte) = u8::try_from(best) else { break };
        said.push(byte);
        tokens.push(best);
    }
    said
}
