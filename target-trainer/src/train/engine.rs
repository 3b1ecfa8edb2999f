//! The optimizer's loop, one step at a time. The sample is what is done in parallel and gradients are summed in the
//! samples' order, so neither the number of threads nor the micro-batch changes a bit.

use std::num::NonZeroUsize;
use std::path::Path;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::{Cursor, Recipe, TrainState};
use crate::intake::Sample;
use crate::model::{Adapter, Base, BaseError, Tokens, greedy, sample_pass, tokenize};
use crate::optim::{Moments, adamw, norm};
use crate::random::Random;

/// Names of the moments' tensors begin so.
const FIRST: &str = "first.";
const SECOND: &str = "second.";

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
}

/// How well held-out samples are answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Mean loss of a learned token.
    pub loss: f32,
    /// Part of the samples whose whole completion is right.
    pub accuracy: f32,
}

/// A model in training.
pub struct Engine {
    base: Base,
    adapter: Adapter,
    recipe: Recipe,
    samples: Vec<(Tokens, f32)>,
    params: Vec<f32>,
    moments: Moments,
    cursor: Cursor,
    /// This epoch's order; follows from `cursor.random`.
    order: Vec<usize>,
}

/// A batch's gradient, and the sum of its losses.
struct Batch {
    gradient: Vec<f32>,
    loss: f32,
}

impl Engine {
    /// `base` is a Hugging Face Llama folder.
    pub fn new(base: &Path, recipe: Recipe, samples: Vec<Sample>) -> Result<Engine, BaseError> {
        Ok(Engine::with_base(Base::read(base)?, recipe, &samples))
    }

    /// With a base at hand.
    pub fn with_base(base: Base, recipe: Recipe, samples: &[Sample]) -> Engine {
        let adapter = Adapter::new(&base.config, &recipe);
        let random = Random::new(recipe.seed).state();
        let samples: Vec<(Tokens, f32)> =
            samples.iter().map(|sample| (tokenize(sample, recipe.context), sample.weight)).collect();
        let cut = samples.iter().filter(|(tokens, _)| tokens.cut).count();
        if cut > 0 {
            tracing::warn!(
                "{cut} of {} samples are longer than {} tokens and were cut off",
                samples.len(),
                recipe.context
            );
        }
        Engine {
            params: adapter.fresh(recipe.seed),
            moments: Moments::zero(adapter.count()),
            cursor: Cursor { step: 0, updates: 0, epoch: 0, position: 0, random },
            order: Random::from_state(random).permutation(samples.len()),
            base,
            adapter,
            recipe,
            samples,
        }
    }

    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Whether all steps of the recipe are done.
    pub fn finished(&self) -> bool {
        self.cursor.step >= self.recipe.steps
    }

    /// One optimizer step. `micro_batch` samples are in memory at a time: memory and speed, never a bit.
    /// With `check_finite` off, whatever was computed is applied.
    pub fn step(&mut self, micro_batch: NonZeroUsize, check_finite: bool) -> StepReport {
        let (members, after) = self.next_batch();
        let learned: usize = members.iter().map(|member| self.samples[*member].0.targets.len()).sum();
        let scale = 1.0 / (learned.max(1) as f32);
        let Batch { gradient, loss } = self.batch(&members, micro_batch, scale);
        let (loss, gradient_norm) = (loss * scale, norm(&gradient));
        let (step, updates) = (self.cursor.step + 1, self.cursor.updates + 1);
        let rate = self.recipe.learning_rate_at(step);
        let updated =
            adamw(&self.params, &self.moments, &gradient, gradient_norm, &self.recipe, rate, updates);
        let found = [
            (loss.is_finite(), NonFinite::Loss),
            (gradient_norm.is_finite(), NonFinite::Gradient),
            (updated.params.iter().all(|param| param.is_finite()), NonFinite::Weights),
        ];
        let non_finite = found.into_iter().find(|(fine, _)| check_finite && !fine).map(|(_, what)| what);
        if non_finite.is_none() {
            (self.params, self.moments) = (updated.params, updated.moments);
            self.move_on(Cursor { step, updates, ..after });
        }
        StepReport { step, loss, gradient_norm, learning_rate: rate, non_finite }
    }

    /// Passes over the batch that the next step would use.
    pub fn skip(&mut self) {
        let (_, after) = self.next_batch();
        self.move_on(Cursor { step: self.cursor.step + 1, ..after });
    }

    /// The next batch's samples, and where the data stands after it.
    fn next_batch(&self) -> (Vec<usize>, Cursor) {
        let mut cursor = self.cursor.clone();
        let mut order = std::borrow::Cow::Borrowed(&self.order);
        let mut members = Vec::with_capacity(self.recipe.batch);
        while members.len() < self.recipe.batch && !self.samples.is_empty() {
            if cursor.position as usize >= order.len() {
                let mut random = Random::from_state(cursor.random);
                random.permutation(self.samples.len());
                cursor = Cursor { epoch: cursor.epoch + 1, position: 0, random: random.state(), ..cursor };
                order = std::borrow::Cow::Owned(
                    Random::from_state(cursor.random).permutation(self.samples.len()),
                );
            }
            members.push(order[cursor.position as usize]);
            cursor.position += 1;
        }
        (members, cursor)
    }

    fn move_on(&mut self, cursor: Cursor) {
        if cursor.random != self.cursor.random {
            self.order = Random::from_state(cursor.random).permutation(self.samples.len());
        }
        self.cursor = cursor;
    }

    fn batch(&self, members: &[usize], micro_batch: NonZeroUsize, scale: f32) -> Batch {
        let mut batch = Batch { gradient: vec![0.0; self.adapter.count()], loss: 0.0 };
        for some in members.chunks(micro_batch.get()) {
            let passes: Vec<(f32, Vec<f32>)> =
                some.par_iter().map(|member| self.pass(*member, scale)).collect();
            for (loss, gradient) in passes {
                batch.loss += loss;
                batch.gradient.iter_mut().zip(&gradient).for_each(|(sum, one)| *sum += one);
            }
        }
        batch
    }

    fn pass(&self, member: usize, scale: f32) -> (f32, Vec<f32>) {
        let (tokens, weight) = &self.samples[member];
        let (loss, gradient) = sample_pass(&self.base, &self.adapter, &self.params, tokens, scale * weight);
        (loss * weight, gradient)
    }

    pub fn state(&self) -> TrainState {
        let mut optimizer = self.adapter.named(&self.moments.first, FIRST);
        optimizer.extend(self.adapter.named(&self.moments.second, SECOND));
        TrainState { adapter: self.adapter.named(&self.params, ""), optimizer, cursor: self.cursor.clone() }
    }

    /// Goes on from `state`. The error names what does not fit; then nothing has changed.
    pub fn restore(&mut self, state: TrainState) -> Result<(), String> {
        let params = self.adapter.flat(&state.adapter, "")?;
        let first = self.adapter.flat(&state.optimizer, FIRST)?;
        let second = self.adapter.flat(&state.optimizer, SECOND)?;
        (self.params, self.moments) = (params, Moments { first, second });
        self.order = Random::from_state(state.cursor.random).permutation(self.samples.len());
        self.cursor = state.cursor;
        Ok(())
    }

    /// Loss and exact answers on samples of a prompt and a completion.
    pub fn evaluate(&self, samples: &[Sample]) -> Evaluation {
        let results: Vec<(f32, usize, bool)> =
            samples.par_iter().map(|sample| self.evaluate_one(sample)).collect();
        let learned: usize = results.iter().map(|(_, learned, _)| learned).sum();
        let right = results.iter().filter(|(.., right)| *right).count();
        let loss: f32 = results.iter().map(|(loss, ..)| loss).sum();
        Evaluation {
            loss: loss / learned.max(1) as f32,
            accuracy: right as f32 / samples.len().max(1) as f32,
        }
    }

    fn evaluate_one(&self, sample: &Sample) -> (f32, usize, bool) {
        let tokens = tokenize(sample, self.recipe.context);
        let (loss, _) = sample_pass(&self.base, &self.adapter, &self.params, &tokens, 0.0);
        let text = |learned| {
            sample
                .segments
                .iter()
                .filter(move |segment| segment.learned == learned)
                .map(|segment| segment.text.as_str())
                .collect::<String>()
        };
        let (prompt, completion) = (text(false), text(true));
        let said = greedy(&self.base, &self.adapter, &self.params, &prompt, completion.len());
        (loss, tokens.targets.len(), said == completion.as_bytes())
    }
}
