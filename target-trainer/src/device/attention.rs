//! Causal attention with grouped queries (Ainslie et al. 2023): several query heads share one head of keys
//! and values. Knows no model.

use super::matmul::{Accumulate, MatmulSize, matmul_nn, matmul_nt, matmul_tn};

/// Sizes of an attention operation.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Tokens of the sample.
    pub tokens: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Factor of the scores, `1 / sqrt(d)`.
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// The head of keys and values that a query head uses.
    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

/// Returns one head's columns of `x[t, heads * d]` as `[t, d]`.
fn gather_head(x: &[f32], heads: usize, head: usize, d: usize) -> Vec<f32> {
    let mut part = Vec::with_capacity(x.len() / heads);
    x.chunks_exact(heads * d).for_each(|row| part.extend_from_slice(&row[head * d..(head + 1) * d]));
    part
}

/// Adds `part[t, d]` to one head's columns of `x[t, heads * d]`.
fn scatter_head(x: &mut [f32], part: &[f32], heads: usize, head: usize, d: usize) {
    for (row, part) in x.chunks_exact_mut(heads * d).zip(part.chunks_exact(d)) {
        row[head * d..(head + 1) * d].iter_mut().zip(part).for_each(|(x, part)| *x += part);
    }
}

/// Queries, keys and values of an attention operation: `q[t, heads * d]`, `k` and `v[t, kv_heads * d]`.
#[derive(Debug, Clone, Copy)]
pub struct AttentionInputs<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
}

/// Adds the attention output to `out[t, heads * d]`, which must be zero. Returns the probabilities `[heads,
/// t, t]` for the backward pass.
pub fn attention(out: &mut [f32], inputs: AttentionInputs<'_>, shape: AttentionShape) -> Vec<f32> {
    let AttentionShape { tokens: t, heads, kv_heads, head_dim: d } = shape;
    let mut probabilities = vec![0.0; heads * t * t];
    for (head, p) in probabilities.chunks_exact_mut(t * t).enumerate() {
        let kv = shape.kv_head(head);
        let (q, k, v) = (
            gather_head(inputs.q, heads, head, d),
            gather_head(inputs.k, kv_heads, kv, d),
            gather_head(inputs.v, kv_heads, kv, d),
        );
        matmul_nt(p, &q, &k, MatmulSize { m: t, n: t, k: d }, shape.scale(), Accumulate::Replace);
        p.chunks_exact_mut(t).enumerate().for_each(|(row, p)| softmax_causal(p, row));
        let mut head_out = vec![0.0; t * d];
        matmul_nn(&mut head_out, p, &v, MatmulSize { m: t, n: d, k: t }, 1.0, Accumulate::Replace);
        scatter_head(out, &head_out, heads, head, d);
    }
    probabilities
}

/// Softmax over the positions 0 to `last`. Later positions get probability 0.
fn softmax_causal(row: &mut [f32], last: usize) {
    let (visible, masked) = row.split_at_mut(last + 1);
    let max_score = visible.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for p in visible.iter_mut() {
        *p = (*p - max_score).exp();
        sum += *p;
    }
    visible.iter_mut().for_each(|p| *p /= sum);
    masked.fill(0.0);
}

/// Gradients of the inputs of an attention operation.
pub struct AttentionGradients<'a> {
    /// Gradient of the queries, `[t, heads * d]`.
    pub dq: &'a mut [f32],
    /// Gradient of the keys, `[t, kv_heads * d]`.
    pub dk: &'a mut [f32],
    /// Gradient of the values, `[t, kv_heads * d]`.
    pub dv: &'a mut [f32],
}

/// Backward pass: adds the gradients that follow from `dout[t, heads * d]` to `gradients`.
///
/// `inputs` and `probabilities` are those of the forward pass.
pub fn attention_backward(
    gradients: AttentionGradients<'_>,
    dout: &[f32],
    inputs: AttentionInputs<'_>,
    probabilities: &[f32],
    shape: AttentionShape,
) {
    let AttentionShape { tokens: t, heads, kv_heads, head_dim: d } = shape;
    let AttentionGradients { dq, dk, dv } = gradients;
    for (head, p) in probabilities.chunks_exact(t * t).enumerate() {
        let kv = shape.kv_head(head);
        let (q, k, v) = (
            gather_head(inputs.q, heads, head, d),
            gather_head(inputs.k, kv_heads, kv, d),
            gather_head(inputs.v, kv_heads, kv, d),
        );
        let dhead_out = gather_head(dout, heads, head, d);
        let mut part = vec![0.0; t * d];
        matmul_tn(&mut part, p, &dhead_out, MatmulSize { m: t, n: d, k: t }, 1.0, Accumulate::Replace);
        scatter_head(dv, &part, kv_heads, kv, d);
        let mut ds = vec![0.0; t * t];
        matmul_nt(&mut ds, &dhead_out, &v, MatmulSize { m: t, n: t, k: d }, 1.0, Accumulate::Replace);
        for (ds, p) in ds.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
            let dot: f32 = ds.iter().zip(p).map(|(ds, p)| ds * p).sum();
            ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = p * (*ds - dot));
        }
        matmul_nn(&mut part, &ds, &k, MatmulSize { m: t, n: d, k: t }, shape.scale(), Accumulate::Replace);
        scatter_head(dq, &part, heads, head, d);
        matmul_tn(&mut part, &ds, &q, MatmulSize { m: t, n: d, k: t }, shape.scale(), Accumulate::Replace);
        scatter_head(dk, &part, kv_heads, kv, d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::finite_differences::{assert_gradient_matches, random_values};

    const SHAPE: AttentionShape = AttentionShape { tokens: 5, heads: 4, kv_heads: 2, head_dim: 4 };

    fn forward(q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; q.len()];
        attention(&mut out, AttentionInputs { q, k, v }, SHAPE);
        out
    }

    #[test]
    fn gradients_match_finite_differences() {
        let (q, k, v, dout) =
            (random_values(1, 80), random_values(2, 40), random_values(3, 40), random_values(4, 80));
        let inputs = AttentionInputs { q: &q, k: &k, v: &v };
        let p = attention(&mut vec![0.0; 80], inputs, SHAPE);
        let (mut dq, mut dk, mut dv) = (vec![0.0; 80], vec![0.0; 40], vec![0.0; 40]);
        let gradients = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        attention_backward(gradients, &dout, inputs, &p, SHAPE);
        assert_gradient_matches(&q, &dq, &dout, |q| forward(q, &k, &v));
        assert_gradient_matches(&k, &dk, &dout, |k| forward(&q, k, &v));
        assert_gradient_matches(&v, &dv, &dout, |v| forward(&q, &k, v));
    }

    #[test]
    fn tokens_do_not_attend_to_later_tokens() {
        let (q, mut k, mut v) = (random_values(1, 80), random_values(2, 40), random_values(3, 40));
        let before = forward(&q, &k, &v);
        k[32..].fill(9.0);
        v[32..].fill(9.0);
        assert_eq!(before[..64], forward(&q, &k, &v)[..64]);
    }
}
