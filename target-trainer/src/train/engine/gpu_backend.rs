//! Parameters, moments and their updates on a card. Two sets of them: an update is written into the set that is not in use
//! and taken up by a change of sets, so that one that is not finite is simply not taken up, and a copy of the set in use goes
//! on while the next step runs.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::device::cuda::{
    AdamWUpdate, BufferView, CopyCompletion, CudaDevice, DeviceBuffer, ElementType, MAX_BLOCKS, PendingCopy,
    PinnedPool, StagingBuffer,
};
use crate::device::{DeviceError, Precision, WaitTracker};
use crate::model::{AdapterLayout, BaseModel, CudaModel, PackedBatch, WeightedSample};
use crate::optim::bias_correction;
use crate::train::Recipe;

/// What a step tells of itself, as words: two losses, the norm, the flags, two checksums of gradients, two of updates.
const OUTCOME_WORDS: usize = 12;
const LOSS_OFFSETS: [usize; 2] = [0, 1];
const NORM_OFFSET: usize = 2;
const FLAGS_OFFSET: usize = 3;
const GRADIENT_CHECKSUM_OFFSETS: [usize; 2] = [4, 6];
const UPDATE_CHECKSUM_OFFSETS: [usize; 2] = [8, 10];
/// The flag of an updated parameter that is not finite, as `kernels/optimizer.cu` has it; 1 is the gradient's.
const GRADIENT_NOT_FINITE: u32 = 1;
const WEIGHTS_NOT_FINITE: u32 = 2;

/// Parameters, first and second moments.
struct ParamSet {
    buffers: [DeviceBuffer; 3],
    /// A copy of this set is under way until there.
    copy_done: Option<CopyCompletion>,
}

impl ParamSet {
    fn new(device: &CudaDevice, count: usize) -> Result<ParamSet, DeviceError> {
        let list = || device.zeros(ElementType::F32, count);
        Ok(ParamSet { buffers: [list()?, list()?, list()?], copy_done: None })
    }

    fn views(&self) -> [BufferView<'_>; 3] {
        self.buffers.each_ref().map(DeviceBuffer::view)
    }
}

/// What a step computed; nothing of it is applied yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct StepOutcome {
    pub(super) loss: f32,
    pub(super) norm: f32,
    pub(super) gradient_is_finite: bool,
    pub(super) weights_are_finite: bool,
    /// Computed twice with two results.
    pub(super) results_differ: bool,
}

/// The `t`-th update, 1-based.
pub(super) fn adamw_update(recipe: &Recipe, rate: f32, t: u64) -> AdamWUpdate {
    AdamWUpdate {
        learning_rate: rate,
        beta1: recipe.beta1,
        beta2: recipe.beta2,
        epsilon: recipe.epsilon,
        weight_decay: recipe.weight_decay,
        clip_norm: recipe.clip_norm,
        bias_correction1: bias_correction(recipe.beta1, t),
        bias_correction2: bias_correction(recipe.beta2, t),
    }
}

/// A model in training on a card.
pub(super) struct GpuBackend {
    device: Arc<CudaDevice>,
    model: CudaModel,
    sets: [ParamSet; 2],
    current: usize,
    /// The products read copies of the parameters in use.
    adapter_copies_fresh: bool,
    gradient: DeviceBuffer,
    norm_partials: DeviceBuffer,
    outcome: DeviceBuffer,
    input_buffer: DeviceBuffer,
    upload_staging: StagingBuffer,
    download_staging: StagingBuffer,
    copies: Arc<PinnedPool>,
}

/// A copy of a state, on its way to the host.
pub(super) struct StateCopy {
    device: Arc<CudaDevice>,
    copying: PendingCopy,
    copies: Arc<PinnedPool>,
}

impl StateCopy {
    /// Parameters, first and second moments, once they have arrived.
    pub(super) fn finish(self) -> Result<[Vec<f32>; 3], DeviceError> {
        self.device.bind()?;
        let words = self.copying.finish(&self.copies)?;
        let count = words.len() / 3;
        let list = |number: usize| {
            words[number * count..][..count].iter().map(|word| f32::from_bits(*word)).collect()
        };
        Ok([list(0), list(1), list(2)])
    }
}

impl GpuBackend {
    pub(super) fn new(
        number: usize,
        (precision, pulse): (Precision, Arc<WaitTracker>),
        base: &BaseModel,
        adapter: &AdapterLayout,
        longest: usize,
    ) -> Result<GpuBackend, DeviceError> {
        let device = CudaDevice::new(number, pulse)?;
        let net = CudaModel::new(Arc::clone(&device), base, adapter, precision, longest)?;
        let count = adapter.param_count();
        Ok(GpuBackend {
            model: net,
            sets: [ParamSet::new(&device, count)?, ParamSet::new(&device, count)?],
            current: 0,
            adapter_copies_fresh: false,
            gradient: device.zeros(ElementType::F32, count)?,
            norm_partials: device.zeros(ElementType::Bits64, MAX_BLOCKS as usize)?,
            outcome: device.zeros(ElementType::Bits32, OUTCOME_WORDS)?,
            input_buffer: device.buffer(ElementType::Bits32, 0)?,
            upload_staging: StagingBuffer::new(&device, 0)?,
            download_staging: StagingBuffer::new(&device, OUTCOME_WORDS)?,
            copies: Arc::default(),
            device,
        })
    }

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

    /// One pass over the batch and the update that follows from it, which [`Card::apply`] takes up. One wait.
    pub(super) fn step(
        &mut self,
        samples: &[WeightedSample<'_>],
        (micro_batch, recheck): (NonZeroUsize, bool),
        scale: f32,
        update: &AdamWUpdate,
    ) -> Result<StepOutcome, DeviceError> {
        self.device.bind()?;
        self.refresh_adapter_copies()?;
        let batch = PackedBatch::new(samples.iter().copied(), micro_batch, scale);
        self.upload_batch(&batch)?;
        self.device.fill(&self.outcome, 0)?;
        let passes = if recheck { 2 } else { 1 };
        for (loss, sum) in LOSS_OFFSETS.into_iter().zip(GRADIENT_CHECKSUM_OFFSETS).take(passes) {
            self.device.fill(&self.gradient, 0)?;
            self.model.forward_backward(
                &batch,
                &self.input_buffer,
                &self.gradient,
                self.outcome.view_from(loss),
            )?;
            if recheck {
                let words = self.gradient.len() as u64;
                self.device.checksum(self.outcome.view_from(sum), self.gradient.view(), words, 0)?;
            }
        }
        for sum in UPDATE_CHECKSUM_OFFSETS.into_iter().take(passes) {
            self.queue_update(update)?;
            if recheck {
                self.checksum_update(sum)?;
            }
        }
        self.outcome(scale, recheck)
    }

    /// Checksum of the set that an update was written into.
    fn checksum_update(&self, at: usize) -> Result<(), DeviceError> {
        let lists = &self.sets[1 - self.current].buffers;
        for (number, list) in (0..).zip(lists) {
            let words = list.len() as u64;
            self.device.checksum(self.outcome.view_from(at), list.view(), words, number * words)?;
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

    /// Into the set that is not in use, once no copy of it is under way any more.
    fn queue_update(&mut self, update: &AdamWUpdate) -> Result<(), DeviceError> {
        self.wait_for_copy(1 - self.current)?;
        let (norm, flags) = (self.outcome.view_from(NORM_OFFSET), self.outcome.view_from(FLAGS_OFFSET));
        self.device.gradient_norm(norm, flags, self.norm_partials.view(), self.gradient.view())?;
        let [to, from] = [1 - self.current, self.current].map(|number| self.sets[number].views());
        self.device.adamw(to, from, self.gradient.view(), (flags, norm), update)
    }

    /// Makes later work wait for a copy of this set.
    fn wait_for_copy(&mut self, set: usize) -> Result<(), DeviceError> {
        if let Some(mark) = &self.sets[set].copy_done {
            self.device.wait_for_copy(mark)?;
            self.sets[set].copy_done = None;
        }
        Ok(())
    }

    fn outcome(&mut self, scale: f32, recheck: bool) -> Result<StepOutcome, DeviceError> {
        self.download_staging.begin_download(&self.device, &self.outcome)?;
        let words = self.download_staging.wait_for_words()?;
        let is_twice = |sums: [usize; 2]| {
            let [first, second] = sums.map(|at| [words[at], words[at + 1]]);
            first == second
        };
        let is_same = words[LOSS_OFFSETS[0]] == words[LOSS_OFFSETS[1]]
            && is_twice(GRADIENT_CHECKSUM_OFFSETS)
            && is_twice(UPDATE_CHECKSUM_OFFSETS);
        Ok(StepOutcome {
            loss: f32::from_bits(words[LOSS_OFFSETS[0]]) * scale,
            norm: f32::from_bits(words[NORM_OFFSET]),
            gradient_is_finite: words[FLAGS_OFFSET] & GRADIENT_NOT_FINITE == 0,
            weights_are_finite: words[FLAGS_OFFSET] & WEIGHTS_NOT_FINITE == 0,
            results_differ: recheck && !is_same,
        })
    }

    /// Takes the last step's update up. Where that fails, the parameters of before are those in use.
    pub(super) fn apply(&mut self) -> Result<(), DeviceError> {
        let next = 1 - self.current;
        self.adapter_copies_fresh = false;
        self.model.refresh_adapter_copies(self.sets[next].buffers[0].view())?;
        (self.current, self.adapter_copies_fresh) = (next, true);
        Ok(())
    }

    /// Begins a copy of the state between two steps; the next step may run meanwhile.
    pub(super) fn start_state_copy(&mut self) -> Result<StateCopy, DeviceError> {
        self.device.bind()?;
        let set = &mut self.sets[self.current];
        let (copying, mark) = self.copies.begin_copy(&self.device, &set.buffers.each_ref())?;
        set.copy_done = Some(mark);
        Ok(StateCopy { device: Arc::clone(&self.device), copying, copies: Arc::clone(&self.copies) })
    }

    /// Parameters, first and second moments.
    pub(super) fn load_state(&mut self, lists: [&[f32]; 3]) -> Result<(), DeviceError> {
        self.device.bind()?;
        let other = 1 - self.current;
        self.wait_for_copy(other)?;
        for (buffer, list) in self.sets[other].buffers.iter().zip(lists) {
            let bytes: Vec<u8> = list.iter().flat_map(|value| value.to_ne_bytes()).collect();
            self.device.upload(buffer, 0, &bytes)?;
        }
        self.apply()
    }

    pub(super) fn weights_intact(&mut self) -> Result<bool, DeviceError> {
        self.device.bind()?;
        self.refresh_adapter_copies()?;
        // If it fails half-way, the copies may be zeroes.
        self.adapter_copies_fresh = false;
        let intact = self.model.weights_intact(self.params())?;
        self.adapter_copies_fresh = true;
        Ok(intact)
    }

    pub(super) fn reload_weights(&mut self, base: &BaseModel) -> Result<(), DeviceError> {
        self.device.bind()?;
        self.adapter_copies_fresh = false;
        self.model.reload_weights(base)?;
        self.refresh_adapter_copies()
    }

    /// Loss and gradient of one sample with these parameters. Waits.
    pub(super) fn pass_once(
        &mut self,
        params: &[f32],
        sample: WeightedSample<'_>,
    ) -> Result<(f32, Vec<f32>), DeviceError> {
        self.device.bind()?;
        self.adapter_copies_fresh = false;
        self.model.forward_backward_once(params, &[sample], 1.0)
    }
}
