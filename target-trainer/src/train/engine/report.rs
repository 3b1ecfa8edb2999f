//! What an engine is told, and what it tells.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::device::{DeviceError, DeviceId, Precision, WaitTracker};
use crate::model::BaseModelError;

/// Where an engine computes, and how.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    pub device: DeviceId,
    /// Of weights and activations on a card; the CPU always uses f32.
    pub precision: Precision,
    /// Tells how long a card has been waited for.
    pub wait_tracker: Arc<WaitTracker>,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    Base(#[from] BaseModelError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Why a state was not taken up.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is of another shape. Nothing has changed.
    #[error("{0}")]
    ShapeMismatch(String),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// How a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOptions {
    /// Samples in memory at a time: memory and speed. On the CPU it changes no bit; on a card sums over tokens are done by
    /// matrix products, so another micro-batch may end with other bits.
    pub micro_batch: NonZeroUsize,
    /// Off: whatever was computed is applied.
    pub check_finite: bool,
    /// Computes the gradient twice before anything is applied.
    pub recheck: bool,
}

/// What was found not to be finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    Loss,
    Gradient,
    Weights,
}

impl std::fmt::Display for NonFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            NonFinite::Loss => "loss",
            NonFinite::Gradient => "gradient",
            NonFinite::Weights => "weights",
        })
    }
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Number of this step, 1-based.
    pub step: u64,
    /// Mean loss of a learned token, sample weights applied.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    pub learning_rate: f32,
    /// Set: nothing was applied and the cursor has not moved; the caller skips, restores or stops.
    pub non_finite: Option<NonFinite>,
    /// The same batch gave two results: nothing was applied and the cursor has not moved.
    pub results_differ: bool,
}

/// How well held-out samples are answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean loss of a learned token.
    pub loss: f32,
    /// Part of the samples whose whole completion is right.
    pub accuracy: f32,
}

/// A card that computes something else than the CPU.
#[derive(Debug, Clone, PartialEq)]
pub struct ParityMismatch {
    pub device_loss: f32,
    pub cpu_loss: f32,
    /// Norm of the gradients' difference, relative to the CPU's gradient.
    pub gradient_distance: f32,
    /// What is borne.
    pub tolerance: f32,
}

impl std::fmt::Display for ParityMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ParityMismatch { device_loss, cpu_loss, gradient_distance, tolerance } = self;
        write!(
            f,
            "the same sample's loss is {device_loss} on the card and {cpu_loss} on the CPU, its gradients are {gradient_distance:e} apart; {tolerance:e} is borne"
        )
    }
}

impl ParityMismatch {
    /// What is beyond the tolerance, or not a number.
    pub(super) fn compare(
        device: &(f32, Vec<f32>),
        cpu: &(f32, Vec<f32>),
        tolerance: f32,
    ) -> Option<ParityMismatch> {
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt() as f32
        };
        let length = norm(&mut cpu.1.iter().copied());
        let apart = norm(&mut cpu.1.iter().zip(&device.1).map(|(a, b)| a - b));
        let found = ParityMismatch {
            device_loss: device.0,
            cpu_loss: cpu.0,
            gradient_distance: apart / length.max(f32::MIN_POSITIVE),
            tolerance,
        };
        let loss_distance = (device.0 - cpu.0).abs() / cpu.0.abs().max(f32::MIN_POSITIVE);
        let is_near = |distance: f32| distance <= tolerance;
        (!is_near(loss_distance) || !is_near(found.gradient_distance)).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_agrees_and_what_is_far_or_not_a_number_does_not() {
        let cpu = (2.0, vec![3.0, 4.0]);
        let against =
            |loss, gradient: [f32; 2]| ParityMismatch::compare(&(loss, gradient.into()), &cpu, 1e-3);
        assert_eq!(against(2.001, [3.0, 4.001]), None);
        assert!(against(2.01, [3.0, 4.0]).is_some());
        assert!(against(2.0, [3.0, 4.01]).is_some());
        assert!(against(f32::NAN, [3.0, 4.0]).is_some());
        assert!(against(2.0, [f32::NAN, 4.0]).is_some());
    }
}
