//! What a forward and backward pass gives, on the CPU and on a device.

/// A loss and its gradient for each parameter of the adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LossAndGradient {
    /// Sum of the losses.
    pub loss: f32,
    /// In the order of the adapter's flat list.
    pub gradient: Vec<f32>,
}

impl LossAndGradient {
    /// The sum of two losses and of their gradients.
    pub fn plus(mut self, other: LossAndGradient) -> LossAndGradient {
        self.loss += other.loss;
        self.gradient.iter_mut().zip(&other.gradient).for_each(|(sum, value)| *sum += value);
        self
    }

    /// Whether loss and gradient are equal bit by bit.
    pub fn is_bit_equal(&self, other: &LossAndGradient) -> bool {
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|value| value.to_bits()).collect() };
        self.loss.to_bits() == other.loss.to_bits() && bits(&self.gradient) == bits(&other.gradient)
    }
}
