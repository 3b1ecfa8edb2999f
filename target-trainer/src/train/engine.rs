//! Stand-in with the real engine's face: follows a decaying number. Replaced by the real one.

use std::num::NonZeroUsize;

use crate::intake::Sample;
use crate::train::{Cursor, NamedTensor, Recipe, TrainState};

/// What was found not to be finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonFinite {
    Loss,
    Gradient,
    Weights,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Number of this step, 1-based.
    pub step: u64,
    /// Mean loss per learned token, weights applied.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f32,
    pub learning_rate: f32,
    /// Set: the update was computed but NOT applied, and the cursor has not moved; the caller decides
    /// (`skip`, restore an older state, stop).
    pub non_finite: Option<NonFinite>,
}

/// A model in training.
pub struct Engine {
    recipe: Recipe,
    samples: Vec<Sample>,
    value: f32,
    cursor: Cursor,
}

impl Engine {
    /// `base` is a Hugging Face Llama directory.
    pub fn new(
        _base: &std::path::Path,
        recipe: Recipe,
        samples: Vec<Sample>,
    ) -> Result<Engine, std::io::Error> {
        let cursor = Cursor { step: 0, updates: 0, epoch: 0, position: 0, random: [recipe.seed, 0, 0, 0] };
        Ok(Engine { recipe, samples, value: 1.0, cursor })
    }

    /// One optimizer step. `micro_batch` samples are in memory at a time; it changes memory and speed, never a bit.
    /// `check_finite` off applies whatever was computed.
    pub fn step(&mut self, _micro_batch: NonZeroUsize, check_finite: bool) -> StepReport {
        let weight: f32 = self.samples.iter().map(|sample| sample.weight).sum();
        let loss = self.value * weight;
        let non_finite = (check_finite && !loss.is_finite()).then_some(NonFinite::Loss);
        let step = self.cursor.step + 1;
        if non_finite.is_none() {
            self.value *= 0.95;
            self.cursor.step = step;
            self.cursor.updates += 1;
        }
        StepReport { step, loss, gradient_norm: 0.0, learning_rate: self.recipe.learning_rate, non_finite }
    }

    /// Passes over the batch that the next step would use: the cursor moves, the weights don't.
    pub fn skip(&mut self) {
        self.cursor.step += 1;
    }

    /// Whether all steps of the recipe are done.
    pub fn finished(&self) -> bool {
        self.cursor.step >= self.recipe.steps
    }

    pub fn state(&self) -> TrainState {
        let tensor = |name: &str| NamedTensor { name: name.into(), shape: vec![1], data: vec![self.value] };
        TrainState { adapter: vec![tensor("a")], optimizer: vec![tensor("m")], cursor: self.cursor.clone() }
    }

    /// Goes on from `state`, which must be of the same shapes.
    pub fn restore(&mut self, state: TrainState) -> Result<(), String> {
        self.value =
            state.adapter.first().and_then(|tensor| tensor.data.first().copied()).ok_or("no adapter")?;
        self.cursor = state.cursor;
        Ok(())
    }
}
