//! Test support: pseudo-random values, and a comparison of gradients with finite differences.

/// Pseudo-random values between -1 and 1.
pub(crate) fn random_values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Asserts that `dx` is the gradient of `sum(forward(x) * dy)`.
pub(crate) fn assert_gradient_matches(
    x: &[f32],
    dx: &[f32],
    dy: &[f32],
    forward: impl Fn(&[f32]) -> Vec<f32>,
) {
    const STEP: f32 = 1e-2;
    let value =
        |x: &[f32]| -> f64 { forward(x).iter().zip(dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum() };
    for index in 0..x.len() {
        let shifted = |delta: f32| {
            let mut x = x.to_vec();
            x[index] += delta;
            value(&x)
        };
        // A fourth-order difference: a large step is exact enough, and rounding errors stay small.
        let derivative = (8.0 * (shifted(STEP) - shifted(-STEP))
            - (shifted(2.0 * STEP) - shifted(-2.0 * STEP)))
            / (12.0 * f64::from(STEP));
        let error = (derivative - f64::from(dx[index])).abs() / (1e-2 + derivative.abs());
        assert!(
            error < 1e-2,
            "element {index}: {derivative} by finite differences, {} by the backward pass",
            dx[index]
        );
    }
}
