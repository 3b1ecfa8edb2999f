//! The inputs of the engine, and what it reports: configuration, errors, step reports, comparisons.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::sample_store::SampleReadError;
use crate::device::{DeviceError, DeviceId, Precision, WaitTracker};
use crate::model::{AdapterMismatch, LossAndGradient};

/// Where and how an engine computes.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The device to compute on.
    pub device: DeviceId,
    /// Number format of weights and activations on a GPU. The CPU always uses f32.
    pub precision: Precision,
    /// Tracks how long the engine has waited for a GPU.
    pub wait_tracker: Arc<WaitTracker>,
}

/// Why a step can't be computed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The samples can't be read.
    #[error(transparent)]
    Samples(#[from] SampleReadError),
}

/// Why a state can't be restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A tensor is missing or has another shape. The engine is unchanged.
    #[error(transparent)]
    ShapeMismatch(#[from] AdapterMismatch),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// How to compute a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepOptions {
    /// Samples in memory at once. Affects memory and speed. On the CPU it changes no bit. On a GPU it can,
    /// because matrix products sum over the tokens of a micro-batch there.
    pub micro_batch: NonZeroUsize,
    /// Do not apply a step that is not finite. If off, every step is applied.
    pub check_finite: bool,
    /// Compute the step twice, and do not apply it if the results differ.
    pub recheck: bool,
    /// Sum gradients in the order of the samples. If off, in parallel on the CPU.
    pub in_order: bool,
    /// Give a batch without a token to learn the loss 0. If off, it is divided by 0.
    pub empty_batches: bool,
}

/// The part of a step that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    /// The loss.
    Loss,
    /// The gradient or its norm.
    Gradient,
    /// The updated weights.
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

/// The result of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Number of this step, counted from 1.
    pub step: u64,
    /// Mean loss per trained token, sample weights applied.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// Tokens of the batch that are learned.
    pub tokens: u64,
    /// If set, nothing was applied and the cursor has not moved. The caller skips, restores or stops.
    pub non_finite: Option<NonFinite>,
    /// The same batch gave two results. Nothing was applied and the cursor has not moved.
    pub results_differ: bool,
}

/// The quality of the model on held-out samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean loss per completion token.
    pub loss: f32,
    /// Fraction of the samples whose complete completion is correct.
    pub accuracy: f32,
}

/// A difference between the results of the GPU and the CPU for the same sample.
#[derive(Debug, Clone, PartialEq)]
pub struct ParityMismatch {
    /// Loss on the GPU.
    pub device_loss: f32,
    /// Loss on the CPU.
    pub cpu_loss: f32,
    /// Norm of the gradients' difference, relative to the CPU's gradient.
    pub gradient_distance: f32,
    /// Largest relative difference that is allowed.
    pub tolerance: f32,
}

impl std::fmt::Display for ParityMismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ParityMismatch { device_loss, cpu_loss, gradient_distance, tolerance } = self;
        write!(
            f,
            "the loss of the same sample is {device_loss} on the GPU and {cpu_loss} on the CPU, \
             the gradients differ by {gradient_distance:e}; the tolerance is {tolerance:e}"
        )
    }
}

impl ParityMismatch {
    /// Compares loss and gradient. Returns the difference if it is above the tolerance or not a number.
    pub(super) fn compare(
        device: &LossAndGradient,
        cpu: &LossAndGradient,
        tolerance: f32,
    ) -> Option<ParityMismatch> {
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt() as f32
        };
        let cpu_norm = norm(&mut cpu.gradient.iter().copied());
        let difference_norm = norm(&mut cpu.gradient.iter().zip(&device.gradient).map(|(a, b)| a - b));
        let mismatch = ParityMismatch {
            device_loss: device.loss,
            cpu_loss: cpu.loss,
            gradient_distance: difference_norm / cpu_norm.max(f32::MIN_POSITIVE),
            tolerance,
        };
        let loss_distance = (device.loss - cpu.loss).abs() / cpu.loss.abs().max(f32::MIN_POSITIVE);
        let is_close = |distance: f32| distance <= tolerance;
        (!is_close(loss_distance) || !is_close(mismatch.gradient_distance)).then_some(mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_results_match_and_distant_or_nan_results_do_not() {
        let pass = |loss, gradient: [f32; 2]| LossAndGradient { loss, gradient: gradient.into() };
        let cpu = pass(2.0, [3.0, 4.0]);
        let against = |loss, gradient| ParityMismatch::compare(&pass(loss, gradient), &cpu, 1e-3);
        assert_eq!(against(2.001, [3.0, 4.001]), None);
        assert!(against(2.01, [3.0, 4.0]).is_some());
        assert!(against(2.0, [3.0, 4.01]).is_some());
        assert!(against(f32::NAN, [3.0, 4.0]).is_some());
        assert!(against(2.0, [f32::NAN, 4.0]).is_some());
    }
}
