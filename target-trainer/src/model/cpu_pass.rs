//! Forward and backward pass of one sample on the CPU. A pass is single-threaded and has its own buffers, so
//! passes of different samples can run in parallel. Knows no optimizer.

use super::base::{BaseModel, LayerWeights};
use super::lora::{AdapterLayout, LoraSlot};
use super::loss_and_gradient::LossAndGradient;
use super::tokens::{BOS, EOS, TokenizedSample};
use crate::device::{
    Accumulate, AttentionGradients, AttentionInputs, AttentionShape, Direction, MatmulSize, Rope, add,
    attention, attention_backward, cross_entropy, embed, matmul_nn, matmul_nt, matmul_tn, rms_norm,
    rms_norm_backward, swiglu, swiglu_backward,
};
use crate::progress;
use crate::state::Projection;

/// Model and parameters for the pass of one sample.
struct SamplePass<'a> {
    base: &'a BaseModel,
    adapter: &'a AdapterLayout,
    params: &'a [f32],
    /// Number of tokens of the sample.
    tokens: usize,
    /// The rotations of their positions.
    rope: Rope,
}

/// Activations that a layer's backward pass needs from its forward pass. `*_inverse` is `1 / rms` of each
/// row.
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

impl<'a> SamplePass<'a> {
    fn new(base: &'a BaseModel, adapter: &'a AdapterLayout, params: &'a [f32], tokens: &[u32]) -> Self {
        let rope = Rope::new(base.config.head_dim, base.config.rope_theta, tokens.len());
        SamplePass { base, adapter, params, tokens: tokens.len(), rope }
    }

    fn attention_shape(&self) -> AttentionShape {
        let config = &self.base.config;
        AttentionShape {
            tokens: self.tokens,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        }
    }

    /// Returns `x[t, in] W^T`, plus `scale x A^T B^T` if the projection has LoRA matrices.
    fn project(&self, layer: usize, projection: Projection, x: &[f32]) -> Vec<f32> {
        let (outputs, inputs) = self.base.config.projection_shape(projection);
        let (t, r) = (self.tokens, self.adapter.rank);
        let mut y = vec![0.0; t * outputs];
        matmul_nt(
            &mut y,
            x,
            self.base.layers[layer].weight(projection),
            MatmulSize { m: t, n: outputs, k: inputs },
            1.0,
            Accumulate::Replace,
        );
        if let Some(slot) = self.adapter.slot(layer, projection) {
            let (_, b) = self.adapter.matrices(slot, self.params);
            matmul_nt(
                &mut y,
                &self.lora_down(slot, x),
                b,
                MatmulSize { m: t, n: outputs, k: r },
                self.adapter.scale,
                Accumulate::Add,
            );
        }
        y
    }

    /// Returns `x A^T`.
    fn lora_down(&self, slot: LoraSlot, x: &[f32]) -> Vec<f32> {
        let (a, _) = self.adapter.matrices(slot, self.params);
        let mut u = vec![0.0; self.tokens * self.adapter.rank];
        matmul_nt(
            &mut u,
            x,
            a,
            MatmulSize { m: self.tokens, n: self.adapter.rank, k: slot.inputs },
            1.0,
            Accumulate::Replace,
        );
        u
    }

    /// Backward pass of [`SamplePass::project`]: adds to `dx` and to the gradient of the LoRA matrices. The
    /// frozen weight gets no gradient.
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
            MatmulSize { m: t, n: inputs, k: outputs },
            1.0,
            Accumulate::Add,
        );
        let Some(slot) = self.adapter.slot(layer, projection) else { return };
        let (a, b) = self.adapter.matrices(slot, self.params);
        let u = self.lora_down(slot, x);
        let mut du = vec![0.0; t * r];
        matmul_nn(&mut du, dy, b, MatmulSize { m: t, n: r, k: outputs }, scale, Accumulate::Replace);
        let (da, db) = self.adapter.matrices_mut(slot, gradient);
        matmul_tn(db, dy, &u, MatmulSize { m: outputs, n: r, k: t }, scale, Accumulate::Add);
        matmul_tn(da, &du, x, MatmulSize { m: r, n: inputs, k: t }, 1.0, Accumulate::Add);
        matmul_nn(dx, &du, a, MatmulSize { m: t, n: inputs, k: r }, 1.0, Accumulate::Add);
    }

    /// RMSNorm of `x`. Also returns `1 / rms` of each row.
    fn norm(&self, x: &[f32], weight: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut y = vec![0.0; x.len()];
        let inverse = rms_norm(&mut y, x, weight, self.base.config.norm_eps);
        (y, inverse)
    }

    /// Replaces `x`, the layer's input, by its output.
    fn layer(&self, index: usize, x: &mut [f32]) -> LayerActivations {
        let LayerWeights { input_norm, post_norm, .. } = &self.base.layers[index];
        let config = &self.base.config;
        let input = x.to_vec();
        let (normed, input_inverse) = self.norm(x, input_norm);
        let mut q = self.project(index, Projection::QProj, &normed);
        let mut k = self.project(index, Projection::KProj, &normed);
        let v = self.project(index, Projection::VProj, &normed);
        self.rope.rotate(&mut q, config.heads, Direction::Forward);
        self.rope.rotate(&mut k, config.kv_heads, Direction::Forward);
        let mut attention_output = vec![0.0; q.len()];
        let probabilities =
            attention(&mut attention_output, AttentionInputs { q: &q, k: &k, v: &v }, self.attention_shape());
        add(x, &self.project(index, Projection::OProj, &attention_output));
        let after_attention = x.to_vec();
        let (post_normed, after_attention_inverse) = self.norm(x, post_norm);
        let gate = self.project(index, Projection::GateProj, &post_normed);
        let up = self.project(index, Projection::UpProj, &post_normed);
        let mut swiglu_output = vec![0.0; gate.len()];
        swiglu(&mut swiglu_output, &gate, &up);
        add(x, &self.project(index, Projection::DownProj, &swiglu_output));
        LayerActivations {
            input,
            input_inverse,
            normed,
            q,
            k,
            v,
            probabilities,
            attention_output,
            after_attention,
            after_attention_inverse,
            post_normed,
            gate,
            up,
            swiglu_output,
        }
    }

    /// Replaces `dx`, the gradient of the layer's output, by the gradient of its input.
    fn layer_backward(
        &self,
        index: usize,
        dx: &mut [f32],
        activations: &LayerActivations,
        gradient: &mut [f32],
    ) {
        self.mlp_backward(index, dx, activations, gradient);
        let config = &self.base.config;
        let mut dattention_output = vec![0.0; activations.attention_output.len()];
        self.project_backward(
            index,
            Projection::OProj,
            &mut dattention_output,
            dx,
            &activations.attention_output,
            gradient,
        );
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; activations.q.len()], vec![0.0; activations.k.len()], vec![0.0; activations.v.len()]);
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention_backward(
            gradients,
            &dattention_output,
            AttentionInputs { q: &activations.q, k: &activations.k, v: &activations.v },
            &activations.probabilities,
            self.attention_shape(),
        );
        self.rope.rotate(&mut dq, config.heads, Direction::Backward);
        self.rope.rotate(&mut dk, config.kv_heads, Direction::Backward);
        let mut dnormed = vec![0.0; activations.normed.len()];
        for (projection, dy) in [(Projection::QProj, &dq), (Projection::KProj, &dk), (Projection::VProj, &dv)]
        {
            self.project_backward(index, projection, &mut dnormed, dy, &activations.normed, gradient);
        }
        rms_norm_backward(
            dx,
            &dnormed,
            &activations.input,
            &self.base.layers[index].input_norm,
            &activations.input_inverse,
        );
    }

    /// Backward pass of the MLP and its norm: adds to `dx`.
    fn mlp_backward(
        &self,
        index: usize,
        dx: &mut [f32],
        activations: &LayerActivations,
        gradient: &mut [f32],
    ) {
        let mut dswiglu_output = vec![0.0; activations.swiglu_output.len()];
        self.project_backward(
            index,
            Projection::DownProj,
            &mut dswiglu_output,
            dx,
            &activations.swiglu_output,
            gradient,
        );
        let (mut dgate, mut dup) = (vec![0.0; activations.gate.len()], vec![0.0; activations.up.len()]);
        swiglu_backward(&mut dgate, &mut dup, &dswiglu_output, &activations.gate, &activations.up);
        let mut dnormed = vec![0.0; activations.post_normed.len()];
        self.project_backward(
            index,
            Projection::GateProj,
            &mut dnormed,
            &dgate,
            &activations.post_normed,
            gradient,
        );
        self.project_backward(
            index,
            Projection::UpProj,
            &mut dnormed,
            &dup,
            &activations.post_normed,
            gradient,
        );
        rms_norm_backward(
            dx,
            &dnormed,
            &activations.after_attention,
            &self.base.layers[index].post_norm,
            &activations.after_attention_inverse,
        );
    }

    /// Runs all layers. Returns the residual stream at the end and each layer's activations.
    fn forward(&self, tokens: &[u32]) -> (Vec<f32>, Vec<LayerActivations>) {
        let width = self.base.config.hidden;
        let mut x = vec![0.0; tokens.len() * width];
        embed(&mut x, &self.base.embedding, tokens, width);
        let mut layer = |index| {
            progress::advance();
            self.layer(index, &mut x)
        };
        let activations = (0..self.base.config.layers).map(&mut layer).collect();
        (x, activations)
    }
}

/// Returns the sum of the sample's losses, and `scale` times its gradient.
pub fn sample_loss_and_gradient(
    base: &BaseModel,
    adapter: &AdapterLayout,
    params: &[f32],
    sample: &TokenizedSample,
    scale: f32,
) -> LossAndGradient {
    let mut gradient = vec![0.0; adapter.param_count()];
    if sample.targets.is_empty() {
        return LossAndGradient { loss: 0.0, gradient };
    }
    let pass = SamplePass::new(base, adapter, params, &sample.tokens);
    let (x, activations) = pass.forward(&sample.tokens);
    let (normed, inverse) = pass.norm(&x, &base.norm);
    let mut dnormed = vec![0.0; x.len()];
    let loss = cross_entropy(&mut dnormed, &normed, base.head(), &sample.targets, base.config.hidden, scale);
    let mut dx = vec![0.0; x.len()];
    rms_norm_backward(&mut dx, &dnormed, &x, &base.norm, &inverse);
    for (index, layer_activations) in activations.iter().enumerate().rev() {
        pass.layer_backward(index, &mut dx, layer_activations, &mut gradient);
        progress::advance();
    }
    LossAndGradient { loss, gradient }
}

/// Returns the logits of all tokens, `[t, vocabulary]`.
pub fn logits(base: &BaseModel, adapter: &AdapterLayout, params: &[f32], tokens: &[u32]) -> Vec<f32> {
    let pass = SamplePass::new(base, adapter, params, tokens);
    let (x, _) = pass.forward(tokens);
    let (normed, _) = pass.norm(&x, &base.norm);
    let (t, v, h) = (tokens.len(), base.config.vocabulary, base.config.hidden);
    let mut logits = vec![0.0; t * v];
    matmul_nt(&mut logits, &normed, base.head(), MatmulSize { m: t, n: v, k: h }, 1.0, Accumulate::Replace);
    logits
}

/// Generates a continuation of `prompt` by greedy decoding: at most `max_bytes` bytes, ending at the first
/// token that is not a byte.
pub fn generate_greedy(
    base: &BaseModel,
    adapter: &AdapterLayout,
    params: &[f32],
    prompt: &str,
    max_bytes: usize,
) -> Vec<u8> {
    let mut tokens: Vec<u32> = std::iter::once(BOS).chain(prompt.bytes().map(u32::from)).collect();
    let mut output = Vec::new();
    while output.len() < max_bytes {
        let all_logits = logits(base, adapter, params, &tokens);
        let last_row = &all_logits[all_logits.len() - base.config.vocabulary..];
        let best_token = last_row
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))
            .map_or(EOS, |(token, _)| token as u32);
        let Ok(byte) = u8::try_from(best_token) else { break };
        output.push(byte);
        tokens.push(best_token);
    }
    output
}
