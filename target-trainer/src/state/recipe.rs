//! The settings that the weights depend on. On the CPU, runs with equal recipe, base model and data end with
//! the same bits.

use serde::{Deserialize, Serialize};

use super::projection::Projection;

/// Largest number of samples of a step.
pub const MAX_BATCH: usize = 1 << 20;
/// Largest number of steps: a cursor counts samples, of which a step has [`MAX_BATCH`] at most.
const MAX_STEPS: u64 = 1_000_000_000_000;

/// What the weights depend on, in addition to the base model and the data. The micro-batch is not part of it:
/// on the CPU it changes no bit. On a GPU it can, because matrix products sum over the tokens of a
/// micro-batch there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Optimizer steps of a job.
    pub steps: u64,
    /// Samples whose gradients are summed for one optimizer step.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// The learning rate decays along a cosine to this fraction of its peak.
    pub min_ratio: f32,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f32,
    /// AdamW's decay of the first moment.
    pub beta1: f32,
    /// AdamW's decay of the second moment.
    pub beta2: f32,
    /// AdamW's term against division by zero.
    pub epsilon: f32,
    /// Gradients are scaled down to this norm.
    pub clip_norm: f32,
    /// Rank of the LoRA matrices; their scale is `alpha / rank`.
    pub rank: usize,
    /// Scales the LoRA matrices' product, see `rank`.
    pub alpha: f32,
    /// Projections that get LoRA matrices.
    pub targets: Vec<Projection>,
    /// Maximum tokens of a sample. Longer samples are cut off.
    pub context: usize,
    /// Seed of the LoRA matrices' initial values and of the order of samples.
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Recipe {
        use Projection::{DownProj, GateProj, KProj, OProj, QProj, UpProj, VProj};
        Recipe {
            steps: 60,
            batch: 8,
            learning_rate: 1e-2,
            warmup_steps: 10,
            min_ratio: 0.1,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            rank: 8,
            alpha: 16.0,
            targets: vec![QProj, KProj, VProj, OProj, GateProj, UpProj, DownProj],
            context: 1024,
            seed: 1,
        }
    }
}

/// A field of a recipe that is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{key} {requirement}")]
pub struct InvalidField {
    /// Name of the field.
    pub key: &'static str,
    /// What it must be.
    pub requirement: &'static str,
}

impl Recipe {
    /// The fields that are out of range.
    pub fn invalid_fields(&self) -> Vec<InvalidField> {
        let is_decay = |value: f32| (0.0..1.0).contains(&value);
        let checks = [
            ((1..=MAX_STEPS).contains(&self.steps), "steps", "must be from 1 to 1000000000000"),
            ((1..=MAX_BATCH).contains(&self.batch), "batch", "must be from 1 to 1048576"),
            (self.warmup_steps <= MAX_STEPS, "warmup_steps", "must be from 0 to 1000000000000"),
            (self.learning_rate > 0.0 && self.learning_rate.is_finite(), "learning_rate", "must be above 0"),
            ((0.0..=1.0).contains(&self.min_ratio), "min_ratio", "must be from 0 to 1"),
            (self.weight_decay >= 0.0 && self.weight_decay.is_finite(), "weight_decay", "must be at least 0"),
            (is_decay(self.beta1), "beta1", "must be from 0 to below 1"),
            (is_decay(self.beta2), "beta2", "must be from 0 to below 1"),
            (self.epsilon > 0.0 && self.epsilon.is_finite(), "epsilon", "must be above 0"),
            (self.clip_norm > 0.0 && self.clip_norm.is_finite(), "clip_norm", "must be above 0 and finite"),
            ((1..=1024).contains(&self.rank), "rank", "must be from 1 to 1024"),
            (self.alpha.is_finite(), "alpha", "must be finite"),
            (!self.targets.is_empty(), "targets", "must name at least one projection"),
            ((2..=1 << 20).contains(&self.context), "context", "must be from 2 to 1048576"),
        ];
        checks
            .into_iter()
            .filter(|(is_valid, ..)| !is_valid)
            .map(|(_, key, requirement)| InvalidField { key, requirement })
            .collect()
    }

    /// Learning rate of a step, counted from 1: linear warm-up, then a cosine down to `min_ratio`.
    pub fn learning_rate_at(&self, step: u64) -> f32 {
        let (step, warmup) = (step as f64, self.warmup_steps as f64);
        if step <= warmup {
            return (f64::from(self.learning_rate) * step / warmup.max(1.0)) as f32;
        }
        let span = (self.steps as f64 - warmup).max(1.0);
        let progress = ((step - warmup) / span).min(1.0);
        let floor = f64::from(self.min_ratio);
        let ratio = floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        (f64::from(self.learning_rate) * ratio) as f32
    }
}
