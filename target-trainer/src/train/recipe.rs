//! The settings that decide what the weights become. Two runs with equal recipes, bases, data and seeds end bit-equal.

use serde::{Deserialize, Serialize};

/// What the weights depend on, beside base and data. The micro-batch is not in here: it changes no bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// Optimizer steps of a job.
    pub steps: u64,
    /// Samples whose gradients are summed for one optimizer step.
    pub batch: usize,
    /// Peak learning rate.
    pub learning_rate: f32,
    /// Seed of weights, order and whatever else is drawn.
    pub seed: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe { steps: 60, batch: 8, learning_rate: 3e-3, seed: 1 }
    }
}
