//! Parameters, moments and their updates on a card. Two sets of them: an update is written into the set that is not in use
//! and taken up by a change of sets, so that one that is not finite is simply not taken up, and a copy of the set in use goes
//! on while the next step runs.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::device::cuda::{BLOCKS, Buffer, Copies, Copying, Device, Element, Mark, Staging, Update, View};
use crate::device::{DeviceError, Precision, Pulse};
use crate::model::{Adapter, Base, Batch, CudaNet, Weighed};
use crate::optim::correction;
use crate::train::Recipe;

/// What a step tells of itself, as words: two losses, the norm, the flags, two checksums of gradients, two of updates.
const OUTCOME: usize = 12;
const LOSSES: [usize; 2] = [0, 1];
const NORM: usize = 2;
const FLAGS: usize = 3;
const CHECKSUMS: [usize; 2] = [4, 6];
const UPDATES: [usize; 2] = [8, 10];
/// The flag of an updated parameter that is not finite, as `kernels/optimizer.cu` has it; 1 is the gradient's.
const GRADIENT_FLAG: u32 = 1;
const WEIGHTS_FLAG: u32 = 2;

/// Parameters, first and second moments.
struct Set {
    lists: [Buffer; 3],
    /// A copy of this set is under way until there.
    copied: Option<Mark>,
}

impl Set {
    fn new(device: &Device, count: usize) -> Result<Set, DeviceError> {
        let list = || device.zeros(Element::F32, count);
        Ok(Set { lists: [list()?, list()?, list()?], copied: None })
    }

    fn views(&self) -> [View<'_>; 3] {
        self.lists.each_ref().map(Buffer::view)
    }
}

/// What a step computed; nothing of it is applied yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) loss: f32,
    pub(super) norm: f32,
    pub(super) gradient_is_finite: bool,
    pub(super) weights_are_finite: bool,
    /// Computed twice with two results.
    pub(super) disagreed: bool,
}

/// The `t`-th update, 1-based.
pub(super) fn update(recipe: &Recipe, rate: f32, t: u64) -> Update {
    Update {
        rate,
        beta1: recipe.beta1,
        beta2: recipe.beta2,
        epsilon: recipe.epsilon,
        decay: recipe.weight_decay,
        clip_norm: recipe.clip_norm,
        correction1: correction(recipe.beta1, t),
        correction2: correction(recipe.beta2, t),
    }
}

/// A model in training on a card.
pub(super) struct Card {
    device: Arc<Device>,
    net: CudaNet,
    sets: [Set; 2],
    current: usize,
    /// The products read copies of the parameters in use.
    is_spread: bool,
    gradient: Buffer,
    partial: Buffer,
    outcome: Buffer,
    inputs: Buffer,
    sending: Staging,
    fetching: Staging,
    copies: Arc<Copies>,
}

/// A copy of a state, on its way to the host.
pub(super) struct Fetched {
    device: Arc<Device>,
    copying: Copying,
    copies: Arc<Copies>,
}

impl Fetched {
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

impl Card {
    pub(super) fn new(
        number: usize,
        (precision, pulse): (Precision, Arc<Pulse>),
        base: &Base,
        adapter: &Adapter,
        longest: usize,
    ) -> Result<Card, DeviceError> {
        let device = Device::new(number, pulse)?;
        let net = CudaNet::new(Arc::clone(&device), base, adapter, precision, longest)?;
        let count = adapter.count();
        Ok(Card {
            net,
            sets: [Set::new(&device, count)?, Set::new(&device, count)?],
            current: 0,
            is_spread: false,
            gradient: device.zeros(Element::F32, count)?,
            partial: device.zeros(Element::Long, BLOCKS as usize)?,
            outcome: device.zeros(Element::Word, OUTCOME)?,
            inputs: device.buffer(Element::Word, 0)?,
            sending: Staging::new(&device, 0)?,
            fetching: Staging::new(&device, OUTCOME)?,
            copies: Arc::default(),
            device,
        })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    fn params(&self) -> View<'_> {
        self.sets[self.current].lists[0].view()
    }

    fn spread(&mut self) -> Result<(), DeviceError> {
        if !self.is_spread {
            self.net.spread(self.params())?;
            self.is_spread = true;
        }
        Ok(())
    }

    /// One pass over the batch and the update that follows from it, which [`Card::apply`] takes up. One wait.
    pub(super) fn step(
        &mut self,
        samples: &[Weighed<'_>],
        (micro_batch, recheck): (NonZeroUsize, bool),
        scale: f32,
        update: &Update,
    ) -> Result<Outcome, DeviceError> {
        self.device.bind()?;
        self.spread()?;
        let batch = Batch::new(samples.iter().copied(), micro_batch, scale);
        self.send(&batch)?;
        self.device.fill(&self.outcome, 0)?;
        let passes = if recheck { 2 } else { 1 };
        for (loss, sum) in LOSSES.into_iter().zip(CHECKSUMS).take(passes) {
            self.device.fill(&self.gradient, 0)?;
            self.net.pass(&batch, &self.inputs, &self.gradient, self.outcome.from(loss))?;
            if recheck {
                let words = self.gradient.len() as u64;
                self.device.checksum(self.outcome.from(sum), self.gradient.view(), words, 0)?;
            }
        }
        for sum in UPDATES.into_iter().take(passes) {
            self.update(update)?;
            if recheck {
                self.sum_up_update(sum)?;
            }
        }
        self.outcome(scale, recheck)
    }

    /// Checksum of the set that an update was written into.
    fn sum_up_update(&self, at: usize) -> Result<(), DeviceError> {
        let lists = &self.sets[1 - self.current].lists;
        for (number, list) in (0..).zip(lists) {
            let words = list.len() as u64;
            self.device.checksum(self.outcome.from(at), list.view(), words, number * words)?;
        }
        Ok(())
    }

    fn send(&mut self, batch: &Batch) -> Result<(), DeviceError> {
        let words = batch.words();
        if words.len() > self.inputs.len() {
            self.inputs = self.device.buffer(Element::Word, words.len().next_power_of_two())?;
        }
        if words.len() > self.sending.room() {
            self.sending = Staging::new(&self.device, words.len().next_power_of_two())?;
        }
        self.sending.send(&self.device, &self.inputs, words)
    }

    /// Into the set that is not in use, once no copy of it is under way any more.
    fn update(&mut self, update: &Update) -> Result<(), DeviceError> {
        self.release(1 - self.current)?;
        let (norm, flags) = (self.outcome.from(NORM), self.outcome.from(FLAGS));
        self.device.norm(norm, flags, self.partial.view(), self.gradient.view())?;
        let [to, from] = [1 - self.current, self.current].map(|number| self.sets[number].views());
        self.device.adamw(to, from, self.gradient.view(), (flags, norm), update)
    }

    /// Makes later work wait for a copy of this set.
    fn release(&mut self, set: usize) -> Result<(), DeviceError> {
        if let Some(mark) = &self.sets[set].copied {
            self.device.hold(mark)?;
            self.sets[set].copied = None;
        }
        Ok(())
    }

    fn outcome(&mut self, scale: f32, recheck: bool) -> Result<Outcome, DeviceError> {
        self.fetching.fetch(&self.device, &self.outcome)?;
        let words = self.fetching.words()?;
        let is_twice = |sums: [usize; 2]| {
            let [first, second] = sums.map(|at| [words[at], words[at + 1]]);
            first == second
        };
        let is_same = words[LOSSES[0]] == words[LOSSES[1]] && is_twice(CHECKSUMS) && is_twice(UPDATES);
        Ok(Outcome {
            loss: f32::from_bits(words[LOSSES[0]]) * scale,
            norm: f32::from_bits(words[NORM]),
            gradient_is_finite: words[FLAGS] & GRADIENT_FLAG == 0,
            weights_are_finite: words[FLAGS] & WEIGHTS_FLAG == 0,
            disagreed: recheck && !is_same,
        })
    }

    /// Takes the last step's update up. Where that fails, the parameters of before are those in use.
    pub(super) fn apply(&mut self) -> Result<(), DeviceError> {
        let next = 1 - self.current;
        self.is_spread = false;
        self.net.spread(self.sets[next].lists[0].view())?;
        (self.current, self.is_spread) = (next, true);
        Ok(())
    }

    /// Begins a copy of the state between two steps; the next step may run meanwhile.
    pub(super) fn fetch(&mut self) -> Result<Fetched, DeviceError> {
        self.device.bind()?;
        let set = &mut self.sets[self.current];
        let (copying, mark) = self.copies.begin(&self.device, &set.lists.each_ref())?;
        set.copied = Some(mark);
        Ok(Fetched { device: Arc::clone(&self.device), copying, copies: Arc::clone(&self.copies) })
    }

    /// Parameters, first and second moments.
    pub(super) fn store(&mut self, lists: [&[f32]; 3]) -> Result<(), DeviceError> {
        self.device.bind()?;
        let other = 1 - self.current;
        self.release(other)?;
        for (buffer, list) in self.sets[other].lists.iter().zip(lists) {
            let bytes: Vec<u8> = list.iter().flat_map(|value| value.to_ne_bytes()).collect();
            self.device.upload(buffer, 0, &bytes)?;
        }
        self.apply()
    }

    pub(super) fn weights_intact(&mut self) -> Result<bool, DeviceError> {
        self.device.bind()?;
        self.spread()?;
        // If it fails half-way, the copies may be zeroes.
        self.is_spread = false;
        let intact = self.net.intact(self.params())?;
        self.is_spread = true;
        Ok(intact)
    }

    pub(super) fn reload(&mut self, base: &Base) -> Result<(), DeviceError> {
        self.device.bind()?;
        self.is_spread = false;
        self.net.reload(base)?;
        self.spread()
    }

    /// Loss and gradient of one sample with these parameters. Waits.
    pub(super) fn pass_once(
        &mut self,
        params: &[f32],
        sample: Weighed<'_>,
    ) -> Result<(f32, Vec<f32>), DeviceError> {
        self.device.bind()?;
        self.is_spread = false;
        self.net.pass_once(params, &[sample], 1.0)
    }
}
