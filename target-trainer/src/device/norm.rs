//! RMSNorm (Zhang and Sennrich 2019) on the CPU: `y = x / sqrt(mean(x^2) + eps) * w`, row by row. Knows no
//! model.

/// Computes `y[t, h]` from `x[t, h]` and `w[h]`. Returns `1 / rms` of each row, `[t]`, for the backward pass.
pub fn rms_norm(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let width = w.len();
    let mut inverse = Vec::with_capacity(x.len() / width);
    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
        let r = 1.0 / (mean_square + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * r * w;
        }
        inverse.push(r);
    }
    inverse
}

/// Backward pass: adds the gradient that follows from `dy[t, h]` to `dx[t, h]`. The weight is frozen and gets
/// no gradient.
///
/// `inverse` is what [`rms_norm`] returned.
pub fn rms_norm_backward(dx: &mut [f32], dy: &[f32], x: &[f32], w: &[f32], inverse: &[f32]) {
    let width = w.len();
    for (((dx, dy), x), r) in
        dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width)).zip(inverse)
    {
        let dot: f32 = dy.iter().zip(w).zip(x).map(|((dy, w), x)| dy * w * x).sum();
        let shared = dot * r * r * r / width as f32;
        for (((dx, dy), w), x) in dx.iter_mut().zip(dy).zip(w).zip(x) {
            *dx += dy * w * r - x * shared;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::finite_differences::{assert_gradient_matches, random_values};

    #[test]
    fn gradient_matches_finite_differences() {
        let (x, w, dy) = (random_values(1, 12), random_values(2, 4), random_values(3, 12));
        let forward = |x: &[f32]| {
            let mut y = vec![0.0; 12];
            rms_norm(&mut y, x, &w, 1e-5);
            y
        };
        let mut y = vec![0.0; 12];
        let inverse = rms_norm(&mut y, &x, &w, 1e-5);
        let mut dx = vec![0.0; 12];
        rms_norm_backward(&mut dx, &dy, &x, &w, &inverse);
        assert_gradient_matches(&x, &dx, &dy, forward);
    }
}
