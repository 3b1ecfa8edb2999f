//! For tests: numbers from a seed, and gradients held against finite differences.

/// Numbers between -1 and 1.
pub(crate) fn random_values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// `dx` is the gradient of `sum(forward(x) * dy)`.
pub(crate) fn assert_gradient_matches(
    x: &[f32],
    dx: &[f32],
    dy: &[f32],
    forward: impl Fn(&[f32]) -> Vec<f32>,
) {
    const STEP: f32 = 1e-2;
    let value =
        |x: &[f32]| -> f64 { forward(x).iter().zip(dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum() };
    for at in 0..x.len() {
        let moved = |by: f32| {
            let mut x = x.to_vec();
            x[at] += by;
            value(&x)
        };
        // Fourth order, so that a large step is exact enough and rounding stays small.
        let slope = (8.0 * (moved(STEP) - moved(-STEP)) - (moved(2.0 * STEP) - moved(-2.0 * STEP)))
            / (12.0 * f64::from(STEP));
        let error = (slope - f64::from(dx[at])).abs() / (1e-2 + slope.abs());
        assert!(error < 1e-2, "element {at}: by differences {slope}, by hand {}", dx[at]);
    }
}
