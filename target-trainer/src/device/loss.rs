//! Cross-entropy loss fused with its backward pass. Computes logits only for rows that have a target.

use super::matmul::{Accumulate, MatmulSize, matmul_nn, matmul_nt};

/// A row of a sample and the token that should follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetToken {
    /// Index of the row whose next token is learned.
    pub row: usize,
    /// The token that should follow.
    pub token: u32,
}

/// Returns the sum of the losses of `targets` and adds `scale * d(sum)/dx` to `dx[t, h]`.
///
/// Shapes: `x[t, h]`, `head[v, h]`; `width` is `h`.
pub fn cross_entropy(
    dx: &mut [f32],
    x: &[f32],
    head: &[f32],
    targets: &[TargetToken],
    width: usize,
    scale: f32,
) -> f32 {
    let (rows, vocabulary) = (targets.len(), head.len() / width);
    let mut target_rows = Vec::with_capacity(rows * width);
    targets.iter().for_each(|target| target_rows.extend_from_slice(&x[target.row * width..][..width]));
    let mut logits = vec![0.0; rows * vocabulary];
    matmul_nt(
        &mut logits,
        &target_rows,
        head,
        MatmulSize { m: rows, n: vocabulary, k: width },
        1.0,
        Accumulate::Replace,
    );
    let mut loss = 0.0;
    for (row, target) in logits.chunks_exact_mut(vocabulary).zip(targets) {
        loss += softmax_and_loss(row, target.token as usize);
        row[target.token as usize] -= 1.0;
        row.iter_mut().for_each(|d| *d *= scale);
    }
    let mut dtarget_rows = vec![0.0; rows * width];
    matmul_nn(
        &mut dtarget_rows,
        &logits,
        head,
        MatmulSize { m: rows, n: width, k: vocabulary },
        1.0,
        Accumulate::Replace,
    );
    for (target, dtarget_rows) in targets.iter().zip(dtarget_rows.chunks_exact(width)) {
        dx[target.row * width..][..width].iter_mut().zip(dtarget_rows).for_each(|(dx, d)| *dx += d);
    }
    loss
}

/// Replaces logits by probabilities and returns the loss of `token`.
fn softmax_and_loss(row: &mut [f32], token: usize) -> f32 {
    let max_logit = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let target_logit = row[token] - max_logit;
    let mut sum = 0.0;
    for p in row.iter_mut() {
        *p = (*p - max_logit).exp();
        sum += *p;
    }
    row.iter_mut().for_each(|p| *p /= sum);
    sum.ln() - target_logit
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::finite_differences::{assert_gradient_matches, random_values};

    #[test]
    fn gradient_matches_finite_differences() {
        let (x, head) = (random_values(1, 12), random_values(2, 28));
        let targets = [TargetToken { row: 0, token: 3 }, TargetToken { row: 2, token: 6 }];
        let mut dx = vec![0.0; 12];
        cross_entropy(&mut dx, &x, &head, &targets, 4, 0.5);
        assert_gradient_matches(&x, &dx, &[0.5], |x| {
            vec![cross_entropy(&mut [0.0; 12], x, &head, &targets, 4, 1.0)]
        });
        assert!(dx[4..8].iter().all(|d| *d == 0.0), "a row without a target gets no gradient");
    }

    #[test]
    fn no_targets_give_zero_loss() {
        assert_eq!(cross_entropy(&mut [0.0; 4], &[1.0; 4], &[1.0; 8], &[], 4, 1.0), 0.0);
    }
}
