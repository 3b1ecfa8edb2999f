//! The training loop, one step at a time, on the CPU or on a GPU. Saves nothing and reports nothing.
//!
//! On the CPU, samples run in parallel and gradients are summed in the order of the samples, so neither the
//! number of threads nor the micro-batch changes a bit. On a GPU, the same micro-batch gives the same bits in
//! every run.

mod cpu_backend;
mod gpu_backend;
mod report;
mod sample_store;

use std::sync::Arc;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use crate::device::cuda::KernelTime;
use crate::device::{DeviceError, DeviceId, Precision};
use crate::intake::Sample;
use crate::model::{
    AdapterLayout, BaseChecksum, BaseModel, LossAndGradient, TokenizedSample, WeightedSample,
    generate_greedy, sample_loss_and_gradient, tokenize,
};
use crate::random::Random;
use crate::state::{Cursor, Recipe, TrainState};
use cpu_backend::{AdaptedModel, CpuBackend, ScheduledUpdate};
use gpu_backend::{GpuBackend, StateCopy};
pub use report::{
    EngineConfig, Evaluation, NonFinite, ParityMismatch, RestoreError, StepError, StepOptions, StepReport,
};
pub use sample_store::{SampleReadError, SampleStore, SampleStoreBuilder};

/// Prefix of the tensor names of the first moments.
const FIRST_MOMENT_PREFIX: &str = "first.";
/// Prefix of the tensor names of the second moments.
const SECOND_MOMENT_PREFIX: &str = "second.";

/// Maximum tokens of the sample that the GPU and the CPU are compared with.
const MAX_COMPARED_TOKENS: usize = 32;

/// A model in training.
pub struct Engine {
    base: BaseModel,
    adapter: Arc<AdapterLayout>,
    recipe: Recipe,
    samples: SampleStore,
    cursor: Cursor,
    /// The step at which the schedule of the learning rate begins.
    schedule_begin: u64,
    /// Order of the samples in this epoch, computed from `cursor.random`.
    order: Vec<usize>,
    backend: Backend,
    precision: Precision,
    /// Checksum of `base` as it was read.
    base_checksum: BaseChecksum,
}

/// Holds parameters and moments, and computes steps.
enum Backend {
    Cpu(CpuBackend),
    Gpu(Box<GpuBackend>),
}

/// A state between two steps. On a GPU, the copy to the host may still be running.
pub struct Snapshot {
    adapter: Arc<AdapterLayout>,
    cursor: Cursor,
    data: SnapshotData,
}

/// Parameters, first and second moments, or a running copy of them.
enum SnapshotData {
    Ready([Vec<f32>; 3]),
    Pending(StateCopy),
}

impl Snapshot {
    /// Waits for the copy. Can be called on any thread.
    ///
    /// # Errors
    /// If the device fails.
    pub fn finish(self) -> Result<TrainState, DeviceError> {
        let [params, first, second] = match self.data {
            SnapshotData::Ready(data) => data,
            SnapshotData::Pending(fetched) => fetched.finish()?,
        };
        let mut optimizer = self.adapter.named_tensors(&first, FIRST_MOMENT_PREFIX);
        optimizer.extend(self.adapter.named_tensors(&second, SECOND_MOMENT_PREFIX));
        Ok(TrainState { adapter: self.adapter.named_tensors(&params, ""), optimizer, cursor: self.cursor })
    }
}

impl Engine {
    /// An engine on the CPU with the given base model.
    pub fn new_on_cpu(base: BaseModel, recipe: Recipe, samples: &[Sample]) -> Engine {
        let samples = SampleStore::in_memory(samples, recipe.context);
        Engine::with_samples(base, recipe, samples)
    }

    /// An engine on the CPU that takes its samples from a store with the recipe's context.
    pub fn with_samples(base: BaseModel, recipe: Recipe, samples: SampleStore) -> Engine {
        let adapter = AdapterLayout::new(&base.config, &recipe);
        let random = Random::new(recipe.seed).state();
        if samples.truncated() > 0 {
            tracing::warn!(
                "{} of {} samples are longer than {} tokens and were cut off",
                samples.truncated(),
                samples.len(),
                recipe.context
            );
        }
        Engine {
            backend: Backend::Cpu(CpuBackend::new(adapter.initial_params(recipe.seed))),
            cursor: Cursor { step: 0, updates: 0, epoch: 0, position: 0, random },
            schedule_begin: 0,
            order: Random::from_state(random).permutation(samples.len()),
            adapter: Arc::new(adapter),
            precision: Precision::F32,
            base_checksum: base.checksum(),
            base,
            recipe,
            samples,
        }
    }

    /// An engine on the configured device with the given base model.
    ///
    /// # Errors
    /// If the device fails or is missing.
    pub fn new_on_device(
        base: BaseModel,
        recipe: Recipe,
        samples: &[Sample],
        config: &EngineConfig,
    ) -> Result<Engine, DeviceError> {
        Engine::new_on_cpu(base, recipe, samples).on_device(config)
    }

    /// Moves an engine that has made no step to the configured device.
    ///
    /// # Errors
    /// If the device fails or is missing.
    pub fn on_device(mut self, config: &EngineConfig) -> Result<Engine, DeviceError> {
        if let DeviceId::Cuda(gpu_index) = config.device {
            let max_tokens = self.samples.max_tokens();
            let mut gpu = GpuBackend::new(gpu_index, config, &self.base, &self.adapter, max_tokens)?;
            let initial_params = self.adapter.initial_params(self.recipe.seed);
            let zeros = vec![0.0; initial_params.len()];
            gpu.load_state([&initial_params, &zeros, &zeros])?;
            self.backend = Backend::Gpu(Box::new(gpu));
            self.precision = config.precision;
        }
        Ok(self)
    }

    /// "cpu", or the GPU's number, name, compute capability and driver.
    pub fn device_name(&self) -> String {
        match &self.backend {
            Backend::Cpu(_) => "cpu".to_owned(),
            Backend::Gpu(gpu) => gpu.device().name(),
        }
    }

    /// The position in the run.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Whether all steps of the recipe are done.
    pub fn finished(&self) -> bool {
        self.cursor.step >= self.recipe.steps
    }

    /// Computes one optimizer step.
    ///
    /// # Errors
    /// If the device fails, or the samples can't be read. Nothing was applied then, and the cursor has not
    /// moved.
    pub fn step(&mut self, options: StepOptions) -> Result<StepReport, StepError> {
        let (sample_indices, next_cursor) = self.next_batch();
        let samples = self.samples.get(&sample_indices)?;
        let batch: Vec<WeightedSample<'_>> = samples
            .iter()
            .map(|sample| WeightedSample { sample: &sample.tokens, weight: sample.weight })
            .collect();
        let trained_tokens: usize = batch.iter().map(|weighted| weighted.sample.targets.len()).sum();
        let divisor = if options.empty_batches { trained_tokens.max(1) } else { trained_tokens };
        let scale = 1.0 / (divisor as f32);
        let (step, updates) = (self.cursor.step + 1, self.cursor.updates + 1);
        let learning_rate = self.recipe.learning_rate_at(step - self.schedule_begin);
        let outcome = match &mut self.backend {
            Backend::Cpu(cpu) => {
                let model = AdaptedModel { base: &self.base, adapter: &self.adapter };
                let update = ScheduledUpdate { t: updates, learning_rate };
                cpu.step(model, &batch, options, scale, &self.recipe, update)
            }
            Backend::Gpu(gpu) => {
                let update = gpu_backend::adamw_update(&self.recipe, learning_rate, updates);
                gpu.step(&batch, options, scale, &update)?
            }
        };
        let checks = [
            (outcome.loss.is_finite(), NonFinite::Loss),
            (outcome.norm.is_finite() && outcome.gradient_is_finite, NonFinite::Gradient),
            (outcome.weights_are_finite, NonFinite::Weights),
        ];
        let non_finite = checks
            .into_iter()
            .find(|(is_finite, _)| options.check_finite && !is_finite)
            .map(|(_, part)| part);
        if non_finite.is_none() && !outcome.results_differ {
            match &mut self.backend {
                Backend::Cpu(cpu) => cpu.apply(),
                Backend::Gpu(gpu) => gpu.apply()?,
            }
            self.advance_to(Cursor { step, updates, ..next_cursor });
        }
        Ok(StepReport {
            step,
            loss: outcome.loss,
            gradient_norm: outcome.norm,
            learning_rate,
            tokens: trained_tokens as u64,
            non_finite,
            results_differ: outcome.results_differ,
        })
    }

    /// Skips the batch that the next step would use.
    pub fn skip_batch(&mut self) {
        let (_, next_cursor) = self.next_batch();
        self.advance_to(Cursor { step: self.cursor.step + 1, ..next_cursor });
    }

    /// The indices of the next batch's samples, and the cursor after it.
    fn next_batch(&self) -> (Vec<usize>, Cursor) {
        let mut cursor = self.cursor.clone();
        let mut order = std::borrow::Cow::Borrowed(&self.order);
        let mut sample_indices = Vec::with_capacity(self.recipe.batch);
        while sample_indices.len() < self.recipe.batch && !self.samples.is_empty() {
            if cursor.position as usize >= order.len() {
                let mut random = Random::from_state(cursor.random);
                random.permutation(self.samples.len());
                cursor = Cursor { epoch: cursor.epoch + 1, position: 0, random: random.state(), ..cursor };
                order = std::borrow::Cow::Owned(
                    Random::from_state(cursor.random).permutation(self.samples.len()),
                );
            }
            sample_indices.push(order[cursor.position as usize]);
            cursor.position += 1;
        }
        (sample_indices, cursor)
    }

    fn advance_to(&mut self, cursor: Cursor) {
        if cursor.random != self.cursor.random {
            self.order = Random::from_state(cursor.random).permutation(self.samples.len());
        }
        self.cursor = cursor;
    }

    /// The state between two steps. Waits for the copy.
    ///
    /// # Errors
    /// If the device fails.
    pub fn state(&mut self) -> Result<TrainState, DeviceError> {
        self.snapshot()?.finish()
    }

    /// Starts a copy of the state and returns at once. Later steps may run before the copy is done.
    ///
    /// # Errors
    /// If the device fails.
    pub fn snapshot(&mut self) -> Result<Snapshot, DeviceError> {
        let data = match &mut self.backend {
            Backend::Cpu(cpu) => SnapshotData::Ready(cpu.state_vectors()),
            Backend::Gpu(gpu) => SnapshotData::Pending(gpu.start_state_copy()?),
        };
        Ok(Snapshot { adapter: Arc::clone(&self.adapter), cursor: self.cursor.clone(), data })
    }

    /// Continues from `state`.
    ///
    /// # Errors
    /// If the tensors do not fit this engine, or the device fails.
    pub fn restore(&mut self, state: TrainState) -> Result<(), RestoreError> {
        let params = self.adapter.flat_params(&state.adapter, "")?;
        let first = self.adapter.flat_params(&state.optimizer, FIRST_MOMENT_PREFIX)?;
        let second = self.adapter.flat_params(&state.optimizer, SECOND_MOMENT_PREFIX)?;
        match &mut self.backend {
            Backend::Cpu(cpu) => cpu.load_state([params, first, second]),
            Backend::Gpu(gpu) => gpu.load_state([&params, &first, &second])?,
        }
        self.order = Random::from_state(state.cursor.random).permutation(self.samples.len());
        self.cursor = state.cursor;
        Ok(())
    }

    /// Begins the epoch anew. Only for the guard `resume_order`.
    pub fn restart_order(&mut self) {
        let random = Random::new(self.recipe.seed).state();
        self.order = Random::from_state(random).permutation(self.samples.len());
        (self.cursor.random, self.cursor.position) = (random, 0);
    }

    /// Begins the schedule of the learning rate anew. Only for the guard `resume_schedule`.
    pub fn restart_schedule(&mut self) {
        self.schedule_begin = self.cursor.step;
    }

    /// Whether the frozen weights on the GPU are unchanged since their upload. Waits.
    ///
    /// # Errors
    /// If the device fails.
    pub fn weights_intact(&mut self) -> Result<bool, DeviceError> {
        match &mut self.backend {
            Backend::Cpu(_) => Ok(true),
            Backend::Gpu(gpu) => gpu.weights_intact(),
        }
    }

    /// Whether the frozen weights in the memory of the machine are as they were read.
    pub fn base_intact(&self) -> bool {
        self.base.checksum() == self.base_checksum
    }

    /// Replaces the frozen weights in the memory of the machine by the same ones, read again.
    pub fn replace_base(&mut self, base: BaseModel) {
        self.base = base;
    }

    /// Uploads the frozen weights again.
    ///
    /// # Errors
    /// If the device fails.
    pub fn reload_weights(&mut self) -> Result<(), DeviceError> {
        match &mut self.backend {
            Backend::Cpu(_) => Ok(()),
            Backend::Gpu(gpu) => gpu.reload_weights(&self.base),
        }
    }

    /// Frees device memory that is cached for later steps.
    pub fn release_caches(&mut self) {
        if let Backend::Gpu(gpu) = &self.backend {
            gpu.device().release_caches();
        }
    }

    /// Computes one short sample on the GPU and on the CPU. Returns the difference if it is larger than
    /// rounding explains.
    ///
    /// # Errors
    /// If the device fails.
    pub fn compare_with_cpu(&mut self) -> Result<Option<ParityMismatch>, DeviceError> {
        let Backend::Gpu(gpu) = &mut self.backend else { return Ok(None) };
        let Some(tokens) = self.samples.first_with_target().map(truncated) else { return Ok(None) };
        let [params, ..] = gpu.start_state_copy()?.finish()?;
        let device = gpu.forward_backward_once(&params, WeightedSample { sample: &tokens, weight: 1.0 })?;
        let cpu = sample_loss_and_gradient(&self.base, &self.adapter, &params, &tokens, 1.0);
        let tolerance = match self.precision {
            Precision::F32 => 1e-3,
            Precision::Bf16 => 5e-2,
        };
        Ok(ParityMismatch::compare(&device, &cpu, tolerance))
    }

    /// Starts to measure kernels. From then on the engine waits after each kernel.
    pub fn start_profile(&mut self) {
        if let Backend::Gpu(gpu) = &self.backend {
            gpu.device().start_profile();
        }
    }

    /// The time of each kernel since [`Engine::start_profile`]: one line per kernel, the longest first.
    pub fn profile(&mut self) -> String {
        let Backend::Gpu(gpu) = &self.backend else {
            return "cpu: only kernels on a GPU are measured".into();
        };
        let rows = gpu.device().take_profile();
        let total: f64 = rows.iter().map(|(_, time)| time.total.as_secs_f64()).sum();
        let line = |(name, time): &(String, KernelTime)| {
            let (seconds, launches) = (time.total.as_secs_f64(), time.launches);
            let part = 100.0 * seconds / total.max(f64::MIN_POSITIVE);
            format!("{name:<36} {part:>5.1} % {seconds:>10.6} s {launches:>8}")
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Loss and exact answers on samples with a prompt and a completion. Computed on the CPU.
    ///
    /// # Errors
    /// If the parameters can't be copied from the device.
    pub fn evaluate(&mut self, samples: &[Sample]) -> Result<Evaluation, DeviceError> {
        let params = match &mut self.backend {
            Backend::Cpu(cpu) => cpu.params().to_vec(),
            Backend::Gpu(gpu) => {
                let [params, ..] = gpu.start_state_copy()?.finish()?;
                params
            }
        };
        let (base, adapter, context) = (&self.base, &*self.adapter, self.recipe.context);
        let model = AdaptedModel { base, adapter };
        let results: Vec<SampleEvaluation> =
            samples.par_iter().map(|sample| evaluate_sample(model, &params, sample, context)).collect();
        let trained_tokens: usize = results.iter().map(|result| result.trained_tokens).sum();
        let correct = results.iter().filter(|result| result.is_correct).count();
        let loss: f32 = results.iter().map(|result| result.loss).sum();
        Ok(Evaluation {
            loss: loss / trained_tokens.max(1) as f32,
            accuracy: correct as f32 / samples.len().max(1) as f32,
        })
    }
}

/// The first [`MAX_COMPARED_TOKENS`] tokens of a sample.
fn truncated(tokens: &TokenizedSample) -> TokenizedSample {
    let mut tokens = tokens.clone();
    tokens.tokens.truncate(MAX_COMPARED_TOKENS);
    tokens.targets.retain(|target| target.row < tokens.tokens.len());
    tokens
}

/// The quality of the model on one sample.
struct SampleEvaluation {
    /// Sum of the losses.
    loss: f32,
    trained_tokens: usize,
    /// Whether the complete completion is correct.
    is_correct: bool,
}

fn evaluate_sample(
    model: AdaptedModel<'_>,
    params: &[f32],
    sample: &Sample,
    context: usize,
) -> SampleEvaluation {
    let AdaptedModel { base, adapter } = model;
    let tokens = tokenize(sample, context);
    let LossAndGradient { loss, .. } = sample_loss_and_gradient(base, adapter, params, &tokens, 0.0);
    let text = |learned| {
        sample
            .segments
            .iter()
            .filter(move |segment| segment.learned == learned)
            .map(|segment| segment.text.as_str())
            .collect::<String>()
    };
    let (prompt, completion) = (text(false), text(true));
    let answer = generate_greedy(base, adapter, params, &prompt, completion.len());
    SampleEvaluation {
        loss,
        trained_tokens: tokens.targets.len(),
        is_correct: answer == completion.as_bytes(),
    }
}
