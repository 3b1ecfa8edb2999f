//! Parameters, moments and updates on a GPU. There are two sets of them: a step writes its update into the
//! unused set, and applying it swaps the sets. So an update that is not finite is never applied, and the
//! current set can be copied to the host while the next step runs.

use std::sync::Arc;

use super::report::{EngineConfig, StepOptions};
use crate::device::DeviceError;
use crate::device::cuda::{
    AdamWUpdate, BufferView, CopyCompletion, CudaDevice, DeviceBuffer, ElementType, MAX_BLOCKS, PendingCopy,
    PinnedPool, StagingBuffer, StepChecks,
};
use crate::model::{AdapterLayout, BaseModel, CudaModel, LossAndGradient, PackedBatch, WeightedSample};
use crate::optim::bias_correction;
use crate::state::Recipe;

/// Layout of a step's outcome in 32-bit words: two losses, the norm, the flags, two checksums of the
/// gradient, two of the update. Each checksum has two words.
const OUTCOME_WORDS: usize = 12;
const LOSS_OFFSETS: [usize; 2] = [0, 1];
const NORM_OFFSET: usize = 2;
const FLAGS_OFFSET: usize = 3;
const GRADIENT_CHECKSUM_OFFSETS: [usize; 2] = [4, 6];
const UPDATE_CHECKSUM_OFFSETS: [usize; 2] = [8, 10];
/// Flag for a gradient that is not finite, set by `kernels/optimizer.cu`.
const GRADIENT_NOT_FINITE: u32 = 1;
/// Flag for an updated parameter that is not finite, set by `kernels/optimizer.cu`.
const WEIGHTS_NOT_FINITE: u32 = 2;

/// Parameters, first and second moments, each as one flat buffer.
struct ParamSet {
    buffers: [DeviceBuffer; 3],
    /// Completion of a copy of this set to the host, if one was started.
    copy_done: Option<CopyCompletion>,
}

impl ParamSet {
    fn new(device: &CudaDevice, count: usize) -> Result<ParamSet, DeviceError> {
        let zeros = || device.zeros(ElementType::F32, count);
        Ok(ParamSet { buffers: [zeros()?, zeros()?, zeros()?], copy_done: None })
    }

    fn views(&self) -> [BufferView<'_>; 3] {
        self.buffers.each_ref().map(DeviceBuffer::view)
    }
}

/// The result of a step. Nothing of it is applied yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepOutcome {
    pub(super) loss: f32,
    pub(super) norm: f32,
    pub(super) gradient_is_finite: bool,
    pub(super) weights_are_finite: bool,
    /// The step was computed twice and the results differ.
    pub(super) results_differ: bool,
}

/// The parameters of AdamW's `t`-th update, counted from 1.
pub(super) fn adamw_update(recipe: &Recipe, learning_rate: f32, t: u64) -> AdamWUpdate {
    AdamWUpdate {
        learning_rate,
        beta1: recipe.beta1,
        beta2: recipe.beta2,
        epsilon: recipe.epsilon,
        weight_decay: recipe.weight_decay,
        clip_norm: recipe.clip_norm,
        bias_correction1: bias_correction(recipe.beta1, t),
        bias_correction2: bias_correction(recipe.beta2, t),
    }
}

/// A model in training on a GPU.
pub(super) struct GpuBackend {
    device: Arc<CudaDevice>,
    model: CudaModel,
    sets: [ParamSet; 2],
    /// Index of the current set.
    current: usize,
    /// Whether the model's copies of the adapter are those of the current parameters.
    adapter_copies_fresh: bool,
    gradient: DeviceBuffer,
    norm_partials: DeviceBuffer,
    outcome_buffer: DeviceBuffer,
    input_buffer: DeviceBuffer,
    upload_staging: StagingBuffer,
    download_staging: StagingBuffer,
    pinned_pool: Arc<PinnedPool>,
}

/// A copy of a state to the host that may still be running.
pub(super) struct StateCopy {
    device: Arc<CudaDevice>,
    pending_copy: PendingCopy,
    pinned_pool: Arc<PinnedPool>,
}

impl StateCopy {
    /// Waits for the copy. Returns parameters, first and second moments.
    pub(super) fn finish(self) -> Result<[Vec<f32>; 3], DeviceError> {
        self.device.bind()?;
        let words = self.pending_copy.finish(&self.pinned_pool)?;
        let count = words.len() / 3;
        let vector =
            |index: usize| words[index * count..][..count].iter().map(|word| f32::from_bits(*word)).collect();
        Ok([vector(0), vector(1), vector(2)])
    }
}

impl GpuBackend {
    pub(super) fn new(
        gpu_index: usize,
        config: &EngineConfig,
        base: &BaseModel,
        adapter: &AdapterLayout,
        max_tokens: usize,
    ) -> Result<GpuBackend, DeviceError> {
        let device = CudaDevice::new(gpu_index, Arc::clone(&config.wait_tracker))?;
        let model = CudaModel::new(Arc::clone(&device), base, adapter, config.precision, max_tokens)?;
        let count = adapter.param_count();
        Ok(GpuBackend {
            model,
            sets: [ParamSet::new(&device, count)?, ParamSet::new(&device, count)?],
            current: 0,
            adapter_copies_fresh: false,
            gradient: device.zeros(ElementType::F32, count)?,
            norm_partials: device.zeros(ElementType::Bits64, MAX_BLOCKS as usize)?,
            outcome_buffer: device.zeros(ElementType::Bits32, OUTCOME_WORDS)?,
            input_buffer: device.buffer(ElementType::Bits32, 0)?,
            upload_staging: StagingBuffer::new(&device, 0)?,
            download_staging: StagingBuffer::new(&device, OUTCOME_WORDS)?,
            pinned_pool: Arc::default(),
            device,
        })
    }

    /// The device.
    pub(super) fn device(&self) -> &CudaDevice {
        &self.device
    }

    fn params(&self) -> BufferView<'_> {
        self.sets[self.current].buffers[0].view()
    }

    fn refresh_adapter_copies(&mut self) -> Result<(), DeviceError> {
        if !self.adapter_copies_fresh {
            self.model.refresh_adapter_copies(self.params())?;
            self.adapter_copies_fresh = true;
        }
        Ok(())
    }

    /// Computes the gradient of a batch and the update, and waits once. [`GpuBackend::apply`] makes the
    /// update current.
    pub(super) fn step(
        &mut self,
        samples: &[WeightedSample<'_>],
        options: StepOptions,
        scale: f32,
        update: &AdamWUpdate,
    ) -> Result<StepOutcome, DeviceError> {
        let StepOptions { micro_batch, recheck, .. } = options;
        self.device.bind()?;
        self.refresh_adapter_copies()?;
        let batch = PackedBatch::new(samples.iter().copied(), micro_batch, scale);
        self.upload_batch(&batch)?;
        self.device.fill(&self.outcome_buffer, 0)?;
        let passes = if recheck { 2 } else { 1 };
        for (loss_offset, checksum_offset) in
            LOSS_OFFSETS.into_iter().zip(GRADIENT_CHECKSUM_OFFSETS).take(passes)
        {
            self.device.fill(&self.gradient, 0)?;
            self.model.forward_backward(
                &batch,
                &self.input_buffer,
                &self.gradient,
                self.outcome_buffer.view_from(loss_offset),
            )?;
            if recheck {
                let len_words = self.gradient.len() as u64;
                self.device.checksum(
                    self.outcome_buffer.view_from(checksum_offset),
                    self.gradient.view(),
                    len_words,
                    0,
                )?;
            }
        }
        for checksum_offset in UPDATE_CHECKSUM_OFFSETS.into_iter().take(passes) {
            self.queue_update(update)?;
            if recheck {
                self.checksum_update(checksum_offset)?;
            }
        }
        self.read_outcome(scale, recheck)
    }

    /// Computes the checksum of the unused set, which an update was written into.
    fn checksum_update(&self, offset: usize) -> Result<(), DeviceError> {
        let buffers = &self.sets[1 - self.current].buffers;
        for (index, buffer) in (0..).zip(buffers) {
            let len_words = buffer.len() as u64;
            self.device.checksum(
                self.outcome_buffer.view_from(offset),
                buffer.view(),
                len_words,
                index * len_words,
            )?;
        }
        Ok(())
    }

    fn upload_batch(&mut self, batch: &PackedBatch) -> Result<(), DeviceError> {
        let words = batch.words();
        if words.len() > self.input_buffer.len() {
            self.input_buffer = self.device.buffer(ElementType::Bits32, words.len().next_power_of_two())?;
        }
        if words.len() > self.upload_staging.capacity_words() {
            self.upload_staging = StagingBuffer::new(&self.device, words.len().next_power_of_two())?;
        }
        self.upload_staging.begin_upload(&self.device, &self.input_buffer, words)
    }

    /// Writes the update into the unused set, after any copy of that set.
    fn queue_update(&mut self, update: &AdamWUpdate) -> Result<(), DeviceError> {
        self.wait_for_copy(1 - self.current)?;
        let checks = StepChecks {
            norm: self.outcome_buffer.view_from(NORM_OFFSET),
            flags: self.outcome_buffer.view_from(FLAGS_OFFSET),
        };
        self.device.gradient_norm(checks, self.norm_partials.view(), self.gradient.view())?;
        let [to, from] = [1 - self.current, self.current].map(|index| self.sets[index].views());
        self.device.adamw(to, from, self.gradient.view(), checks, update)
    }

    /// Makes later work on the device wait for a copy of this set.
    fn wait_for_copy(&mut self, set: usize) -> Result<(), DeviceError> {
        if let Some(copy_done) = &self.sets[set].copy_done {
            self.device.wait_for_copy(copy_done)?;
            self.sets[set].copy_done = None;
        }
        Ok(())
    }

    /// Waits for the step and reads its outcome.
    fn read_outcome(&mut self, scale: f32, recheck: bool) -> Result<StepOutcome, DeviceError> {
        self.download_staging.begin_download(&self.device, &self.outcome_buffer)?;
        let words = self.download_staging.wait_for_words()?;
        let is_equal_pair = |offsets: [usize; 2]| {
            let [first, second] = offsets.map(|offset| [words[offset], words[offset + 1]]);
            first == second
        };
        let results_match = words[LOSS_OFFSETS[0]] == words[LOSS_OFFSETS[1]]
            && is_equal_pair(GRADIENT_CHECKSUM_OFFSETS)
            && is_equal_pair(UPDATE_CHECKSUM_OFFSETS);
        Ok(StepOutcome {
            loss: f32::from_bits(words[LOSS_OFFSETS[0]]) * scale,
            norm: f32::from_bits(words[NORM_OFFSET]),
            gradient_is_finite: words[FLAGS_OFFSET] & GRADIENT_NOT_FINITE == 0,
            weights_are_finite: words[FLAGS_OFFSET] & WEIGHTS_NOT_FINITE == 0,
            results_differ: recheck && !results_match,
        })
    }

    /// Makes the last step's update current. If that fails, the parameters stay as they were.
    pub(super) fn apply(&mut self) -> Result<(), DeviceError> {
        let next = 1 - self.current;
        self.adapter_copies_fresh = false;
        self.model.refresh_adapter_copies(self.sets[next].buffers[0].view())?;
        (self.current, self.adapter_copies_fresh) = (next, true);
        Ok(())
    }

    /// Starts a copy of the state to the host. The next step may run before it is done.
    pub(super) fn start_state_copy(&mut self) -> Result<StateCopy, DeviceError> {
        self.device.bind()?;
        let set = &mut self.sets[self.current];
        let (pending_copy, copy_done) = self.pinned_pool.begin_copy(&self.device, &set.buffers.each_ref())?;
        set.copy_done = Some(copy_done);
        Ok(StateCopy {
            device: Arc::clone(&self.device),
            pending_copy,
            pinned_pool: Arc::clone(&self.pinned_pool),
        })
    }

    /// Replaces parameters, first and second moments.
    pub(super) fn load_state(&mut self, vectors: [&[f32]; 3]) -> Result<(), DeviceError> {
        self.device.bind()?;
        let unused = 1 - self.current;
        self.wait_for_copy(unused)?;
        for (buffer, vector) in self.sets[unused].buffers.iter().zip(vectors) {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_ne_bytes()).collect();
            self.device.upload(buffer, 0, &bytes)?;
        }
        self.apply()
    }

    /// Whether the frozen weights are unchanged since their upload. Waits.
    pub(super) fn weights_intact(&mut self) -> Result<bool, DeviceError> {
        self.device.bind()?;
        self.refresh_adapter_copies()?;
        // If the check fails in between, the copies may be zeros.
        self.adapter_copies_fresh = false;
        let intact = self.model.weights_intact(self.params())?;
        self.adapter_copies_fresh = true;
        Ok(intact)
    }

    /// Uploads the frozen weights again.
    pub(super) fn reload_weights(&mut self, base: &BaseModel) -> Result<(), DeviceError> {
        self.device.bind()?;
        self.adapter_copies_fresh = false;
        self.model.reload_weights(base)?;
        self.refresh_adapter_copies()
    }

    /// Loss and gradient of one sample with these parameters. Waits.
    pub(super) fn forward_backward_once(
        &mut self,
        params: &[f32],
        sample: WeightedSample<'_>,
    ) -> Result<LossAndGradient, DeviceError> {
        self.device.bind()?;
        self.adapter_copies_fresh = false;
        self.model.forward_backward_once(params, &[sample], 1.0)
    }
}
