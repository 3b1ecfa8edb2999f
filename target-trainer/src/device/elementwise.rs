//! Embedding look-up, addition and SwiGLU (Shazeer 2020) on the CPU. Knows no model.

/// Writes the rows of `table[v, h]` selected by `tokens[t]` to `x[t, h]`. `width` is `h`.
pub fn embed(x: &mut [f32], table: &[f32], tokens: &[u32], width: usize) {
    for (row, token) in x.chunks_exact_mut(width).zip(tokens) {
        row.copy_from_slice(&table[*token as usize * width..][..width]);
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `out = gate * sigmoid(gate) * up`.
pub fn swiglu(out: &mut [f32], gate: &[f32], up: &[f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate * sigmoid(*gate) * up;
    }
}

/// Backward pass of [`swiglu`]: sets `dgate` and `dup` from `dout`, the gradient of the output.
pub fn swiglu_backward(dgate: &mut [f32], dup: &mut [f32], dout: &[f32], gate: &[f32], up: &[f32]) {
    for ((((dgate, dup), dout), gate), up) in dgate.iter_mut().zip(dup).zip(dout).zip(gate).zip(up) {
        let s = sigmoid(*gate);
        *dgate = dout * up * s * (1.0 + gate * (1.0 - s));
        *dup = dout * gate * s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::finite_differences::{assert_gradient_matches, random_values};

    #[test]
    fn swiglu_gradients_match_finite_differences() {
        let (gate, up, dout) = (random_values(1, 20), random_values(2, 20), random_values(3, 20));
        let forward = |gate: &[f32], up: &[f32]| {
            let mut out = vec![0.0; 20];
            swiglu(&mut out, gate, up);
            out
        };
        let (mut dgate, mut dup) = (vec![0.0; 20], vec![0.0; 20]);
        swiglu_backward(&mut dgate, &mut dup, &dout, &gate, &up);
        assert_gradient_matches(&gate, &dgate, &dout, |gate| forward(gate, &up));
        assert_gradient_matches(&up, &dup, &dout, |up| forward(&gate, up));
    }
}
