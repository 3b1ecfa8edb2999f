//! The optimizer's loop, one step at a time, on the CPU or on a card.
//!
//! On the CPU the sample is what is done in parallel and gradients are summed in the samples' order, so neither the number of
//! threads nor the micro-batch changes a bit. On a card the same micro-batch gives the same bits on every run.

mod cpu_backend;
mod gpu_backend;
mod report;

use std::path::Path;
use std::sync::Arc;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::{Cursor, Recipe, TrainState};
use crate::device::{DeviceError, DeviceId, Precision};
use crate::intake::Sample;
use crate::model::{
    AdapterLayout, BaseModel, TokenizedSample, generate_greedy, sample_loss_and_gradient, tokenize,
};
use crate::random::Random;
use cpu_backend::CpuBackend;
use gpu_backend::{GpuBackend, StateCopy};
pub use report::{
    EngineConfig, EngineError, Evaluation, NonFinite, ParityMismatch, RestoreError, StepOptions, StepReport,
};

/// Names of the moments' tensors begin so.
const FIRST_MOMENT_PREFIX: &str = "first.";
const SECOND_MOMENT_PREFIX: &str = "second.";

/// Tokens of the sample that card and CPU are compared by, at most.
const MAX_COMPARED_TOKENS: usize = 32;

/// A model in training.
pub struct Engine {
    base: BaseModel,
    adapter: Arc<AdapterLayout>,
    recipe: Recipe,
    samples: Vec<(TokenizedSample, f32)>,
    cursor: Cursor,
    /// This epoch's order; follows from `cursor.random`.
    order: Vec<usize>,
    state: Backend,
    precision: Precision,
}

/// Parameters and moments, where they are.
enum Backend {
    Cpu(CpuBackend),
    Gpu(Box<GpuBackend>),
}

/// A state between two steps, or a copy of it that is still on its way from a card.
pub struct Snapshot {
    adapter: Arc<AdapterLayout>,
    cursor: Cursor,
    data: SnapshotData,
}

enum SnapshotData {
    Ready([Vec<f32>; 3]),
    Pending(StateCopy),
}

impl Snapshot {
    /// Waits for it, on whatever thread.
    pub fn finish(self) -> Result<TrainState, DeviceError> {
        let [params, first, second] = match self.data {
            SnapshotData::Ready(lists) => lists,
            SnapshotData::Pending(fetched) => fetched.finish()?,
        };
        let mut optimizer = self.adapter.named_tensors(&first, FIRST_MOMENT_PREFIX);
        optimizer.extend(self.adapter.named_tensors(&second, SECOND_MOMENT_PREFIX));
        Ok(TrainState { adapter: self.adapter.named_tensors(&params, ""), optimizer, cursor: self.cursor })
    }
}

impl Engine {
    /// `base` is a Hugging Face Llama folder.
    pub fn new(
        base: &Path,
        recipe: Recipe,
        samples: Vec<Sample>,
        spec: &EngineConfig,
    ) -> Result<Engine, EngineError> {
        Ok(Engine::new_on_device(BaseModel::read(base)?, recipe, &samples, spec)?)
    }

    /// With a base at hand, on the CPU.
    pub fn new_on_cpu(base: BaseModel, recipe: Recipe, samples: &[Sample]) -> Engine {
        let adapter = AdapterLayout::new(&base.config, &recipe);
        let random = Random::new(recipe.seed).state();
        let samples: Vec<(TokenizedSample, f32)> =
            samples.iter().map(|sample| (tokenize(sample, recipe.context), sample.weight)).collect();
        let cut = samples.iter().filter(|(tokens, _)| tokens.truncated).count();
        if cut > 0 {
            tracing::warn!(
                "{cut} of {} samples are longer than {} tokens and were cut off",
                samples.len(),
                recipe.context
            );
        }
        Engine {
            state: Backend::Cpu(CpuBackend::new(adapter.initial_params(recipe.seed))),
            cursor: Cursor { step: 0, updates: 0, epoch: 0, position: 0, random },
            order: Random::from_state(random).permutation(samples.len()),
            adapter: Arc::new(adapter),
            precision: Precision::F32,
            base,
            recipe,
            samples,
        }
    }

    /// With a base at hand.
    pub fn new_on_device(
        base: BaseModel,
        recipe: Recipe,
        samples: &[Sample],
        spec: &EngineConfig,
    ) -> Result<Engine, DeviceError> {
        let mut engine = Engine::new_on_cpu(base, recipe, samples);
        if let DeviceId::Cuda(number) = spec.device {
            let longest = engine.samples.iter().map(|(tokens, _)| tokens.tokens.len()).max().unwrap_or(0);
            let how = (spec.precision, Arc::clone(&spec.wait_tracker));
            let mut card = GpuBackend::new(number, how, &engine.base, &engine.adapter, longest)?;
            let fresh = engine.adapter.initial_params(engine.recipe.seed);
            let zeroes = vec![0.0; fresh.len()];
            card.load_state([&fresh, &zeroes, &zeroes])?;
            engine.state = Backend::Gpu(Box::new(card));
            engine.precision = spec.precision;
        }
        Ok(engine)
    }

    /// "cpu", or the card's number, name, compute capability and driver.
    pub fn device_name(&self) -> String {
        match &self.state {
            Backend::Cpu(_) => "cpu".to_owned(),
            Backend::Gpu(card) => card.device().name(),
        }
    }

    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Whether all steps of the recipe are done.
    pub fn finished(&self) -> bool {
        self.cursor.step >= self.recipe.steps
    }

    /// One optimizer step. Where it fails, nothing was applied and the cursor has not moved.
    pub fn step(&mut self, how: StepOptions) -> Result<StepReport, DeviceError> {
        let (members, after) = self.next_batch();
        let batch: Vec<(&TokenizedSample, f32)> = members
            .iter()
            .map(|member| &self.samples[*member])
            .map(|(tokens, weight)| (tokens, *weight))
            .collect();
        let learned: usize = batch.iter().map(|(tokens, _)| tokens.targets.len()).sum();
        let scale = 1.0 / (learned.max(1) as f32);
        let (step, updates) = (self.cursor.step + 1, self.cursor.updates + 1);
        let learning_rate = self.recipe.learning_rate_at(step);
        let outcome = match &mut self.state {
            Backend::Cpu(host) => {
                let net = (&self.base, &*self.adapter);
                host.step(net, &batch, how, scale, &self.recipe, (learning_rate, updates))
            }
            Backend::Gpu(card) => {
                let update = gpu_backend::adamw_update(&self.recipe, learning_rate, updates);
                card.step(&batch, (how.micro_batch, how.recheck), scale, &update)?
            }
        };
        let found = [
            (outcome.loss.is_finite(), NonFinite::Loss),
            (outcome.norm.is_finite() && outcome.gradient_is_finite, NonFinite::Gradient),
            (outcome.weights_are_finite, NonFinite::Weights),
        ];
        let non_finite = found.into_iter().find(|(fine, _)| how.check_finite && !fine).map(|(_, what)| what);
        if non_finite.is_none() && !outcome.results_differ {
            match &mut self.state {
                Backend::Cpu(host) => host.apply(),
                Backend::Gpu(card) => card.apply()?,
            }
            self.advance_to(Cursor { step, updates, ..after });
        }
        Ok(StepReport {
            step,
            loss: outcome.loss,
            gradient_norm: outcome.norm,
            learning_rate,
            non_finite,
            results_differ: outcome.results_differ,
        })
    }

    /// Passes over the batch that the next step would use.
    pub fn skip_batch(&mut self) {
        let (_, after) = self.next_batch();
        self.advance_to(Cursor { step: self.cursor.step + 1, ..after });
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

    fn advance_to(&mut self, cursor: Cursor) {
        if cursor.random != self.cursor.random {
            self.order = Random::from_state(cursor.random).permutation(self.samples.len());
        }
        self.cursor = cursor;
    }

    /// The state between two steps. Waits for it.
    pub fn state(&mut self) -> Result<TrainState, DeviceError> {
        self.snapshot()?.finish()
    }

    /// Returns at once; the following steps may run before it is finished.
    pub fn snapshot(&mut self) -> Result<Snapshot, DeviceError> {
        let lists = match &mut self.state {
            Backend::Cpu(host) => SnapshotData::Ready(host.state_vectors()),
            Backend::Gpu(card) => SnapshotData::Pending(card.start_state_copy()?),
        };
        Ok(Snapshot { adapter: Arc::clone(&self.adapter), cursor: self.cursor.clone(), data: lists })
    }

    /// Goes on from `state`.
    pub fn restore(&mut self, state: TrainState) -> Result<(), RestoreError> {
        let flat =
            |tensors, prefix| self.adapter.flat_params(tensors, prefix).map_err(RestoreError::ShapeMismatch);
        let params = flat(&state.adapter, "")?;
        let (first, second) =
            (flat(&state.optimizer, FIRST_MOMENT_PREFIX)?, flat(&state.optimizer, SECOND_MOMENT_PREFIX)?);
        match &mut self.state {
            Backend::Cpu(host) => host.load_state([params, first, second]),
            Backend::Gpu(card) => card.load_state([&params, &first, &second])?,
        }
        self.order = Random::from_state(state.cursor.random).permutation(self.samples.len());
        self.cursor = state.cursor;
        Ok(())
    }

    /// Whether the frozen weights on the card are those that were uploaded. Waits.
    pub fn weights_intact(&mut self) -> Result<bool, DeviceError> {
        match &mut self.state {
            Backend::Cpu(_) => Ok(true),
            Backend::Gpu(card) => card.weights_intact(),
        }
    }

    /// Uploads the frozen weights again.
    pub fn reload_weights(&mut self) -> Result<(), DeviceError> {
        match &mut self.state {
            Backend::Cpu(_) => Ok(()),
            Backend::Gpu(card) => card.reload_weights(&self.base),
        }
    }

    /// Gives memory back that is only kept for later steps.
    pub fn release_caches(&mut self) {
        if let Backend::Gpu(card) = &self.state {
            card.device().release_caches();
        }
    }

    /// Computes one short sample on both; what is beyond rounding.
    pub fn compare_with_cpu(&mut self) -> Result<Option<ParityMismatch>, DeviceError> {
        let Backend::Gpu(card) = &mut self.state else { return Ok(None) };
        let samples = self.samples.iter().map(|(tokens, _)| truncated(tokens));
        let Some(tokens) = samples.into_iter().find(|tokens| !tokens.targets.is_empty()) else {
            return Ok(None);
        };
        let [params, ..] = card.start_state_copy()?.finish()?;
        let device = card.pass_once(&params, (&tokens, 1.0))?;
        let cpu = sample_loss_and_gradient(&self.base, &self.adapter, &params, &tokens, 1.0);
        let tolerance = match self.precision {
            Precision::F32 => 1e-3,
            Precision::Bf16 => 5e-2,
        };
        Ok(ParityMismatch::compare(&device, &cpu, tolerance))
    }

    /// From here on every kernel is waited for, and its time kept.
    pub fn start_profile(&mut self) {
        if let Backend::Gpu(card) = &self.state {
            card.device().start_profile();
        }
    }

    /// Where the time went since then: a line for each kernel, the longest first.
    pub fn profile(&mut self) -> String {
        let Backend::Gpu(card) = &self.state else { return "cpu: kernels are timed on a card only".into() };
        let rows = card.device().take_profile();
        let total: f64 = rows.iter().map(|(_, seconds, _)| seconds).sum();
        let line = |(name, seconds, launches): &(String, f64, u64)| {
            let part = 100.0 * seconds / total.max(f64::MIN_POSITIVE);
            format!("{name:<36} {part:>5.1} % {seconds:>10.6} s {launches:>8}")
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Loss and exact answers on samples of a prompt and a completion; computed on the CPU.
    pub fn evaluate(&mut self, samples: &[Sample]) -> Result<Evaluation, DeviceError> {
        let params = match &mut self.state {
            Backend::Cpu(host) => host.params().to_vec(),
            Backend::Gpu(card) => {
                let [params, ..] = card.start_state_copy()?.finish()?;
                params
            }
        };
        let (base, adapter, context) = (&self.base, &*self.adapter, self.recipe.context);
        let results: Vec<(f32, usize, bool)> = samples
            .par_iter()
            .map(|sample| evaluate_sample((base, adapter, &params), sample, context))
            .collect();
        let learned: usize = results.iter().map(|(_, learned, _)| learned).sum();
        let right = results.iter().filter(|(.., right)| *right).count();
        let loss: f32 = results.iter().map(|(loss, ..)| loss).sum();
        Ok(Evaluation {
            loss: loss / learned.max(1) as f32,
            accuracy: right as f32 / samples.len().max(1) as f32,
        })
    }
}

/// At most [`COMPARED`] tokens of a sample.
fn truncated(tokens: &TokenizedSample) -> TokenizedSample {
    let mut tokens = tokens.clone();
    tokens.tokens.truncate(MAX_COMPARED_TOKENS);
    tokens.targets.retain(|target| target.row < tokens.tokens.len());
    tokens
}

fn evaluate_sample(
    (base, adapter, params): (&BaseModel, &AdapterLayout, &[f32]),
    sample: &Sample,
    context: usize,
) -> (f32, usize, bool) {
    let tokens = tokenize(sample, context);
    let (loss, _) = sample_loss_and_gradient(base, adapter, params, &tokens, 0.0);
    let text = |learned| {
        sample
            .segments
            .iter()
            .filter(move |segment| segment.learned == learned)
            .map(|segment| segment.text.as_str())
            .collect::<String>()
    };
    let (prompt, completion) = (text(false), text(true));
    let said = generate_greedy(base, adapter, params, &prompt, completion.len());
    (loss, tokens.targets.len(), said == completion.as_bytes())
}
