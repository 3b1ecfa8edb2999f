//! The settings that decide what the weights become. Two runs with equal recipes, bases, data and seeds end bit-equal.

use serde::{Deserialize, Serialize};

/// Projections of a decoder layer that may carry LoRA matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

/// What the weights depend on, beside base and data. The micro-batch is not in here: on the CPU it changes no bit. On a card it
/// may, for sums over tokens are done by matrix products there.
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
    /// The learning rate decays along a cosine to this part of its peak.
    pub min_ratio: f32,
    pub weight_decay: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    /// Gradients are scaled down to this norm.
    pub clip_norm: f32,
    /// Rank of the LoRA matrices; their scale is `alpha / rank`.
    pub rank: usize,
    pub alpha: f32,
    pub targets: Vec<Projection>,
    /// Tokens of a sample at most.
    pub context: usize,
    /// Seed of the LoRA matrices' start and of the order of samples.
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

impl Recipe {
    /// What is out of range: key, and the words that follow it.
    pub fn validate(&self) -> Vec<(&'static str, String)> {
        let part = |value: f32| (0.0..1.0).contains(&value);
        let checks = [
            (self.steps > 0, "steps", "is at least 1"),
            (self.batch > 0, "batch", "is at least 1"),
            (self.learning_rate > 0.0 && self.learning_rate.is_finite(), "learning_rate", "is above 0"),
            ((0.0..=1.0).contains(&self.min_ratio), "min_ratio", "is from 0 to 1"),
            (self.weight_decay >= 0.0 && self.weight_decay.is_finite(), "weight_decay", "is at least 0"),
            (part(self.beta1), "beta1", "is from 0 to below 1"),
            (part(self.beta2), "beta2", "is from 0 to below 1"),
            (self.epsilon > 0.0, "epsilon", "is above 0"),
            (self.clip_norm > 0.0, "clip_norm", "is above 0"),
            ((1..=1024).contains(&self.rank), "rank", "is from 1 to 1024"),
            (self.alpha.is_finite(), "alpha", "is finite"),
            (!self.targets.is_empty(), "targets", "names at least one projection"),
            ((2..=1 << 20).contains(&self.context), "context", "is from 2 to 1048576"),
        ];
        checks.into_iter().filter(|(fine, ..)| !fine).map(|(_, key, words)| (key, words.to_owned())).collect()
    }

    /// Learning rate of the `step`-th step, 1-based: linear warm-up, then a cosine down to `min_ratio`.
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
