//! LoRA matrices (Hu et al. 2021): all parameters of an adapter in one flat list, so that sums, norms and updates are
//! single passes.

use super::base::{PROJECTIONS, module};
use super::config::Config;
use crate::random::Random;
use crate::train::{NamedTensor, Projection, Recipe};

/// Where one projection's matrices lie in the flat list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    layer: usize,
    projection: Projection,
    /// `[rank, in]` from here, then `[out, rank]`.
    pub(super) at: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// The layout of an adapter.
#[derive(Debug, Clone)]
pub struct Adapter {
    pub(super) rank: usize,
    pub(super) scale: f32,
    slots: Vec<Slot>,
    count: usize,
}

impl Adapter {
    pub fn new(config: &Config, recipe: &Recipe) -> Adapter {
        let mut adapter = Adapter {
            rank: recipe.rank,
            scale: recipe.alpha / recipe.rank as f32,
            slots: Vec::new(),
            count: 0,
        };
        for layer in 0..config.layers {
            for projection in PROJECTIONS.into_iter().filter(|projection| recipe.targets.contains(projection))
            {
                let (outputs, inputs) = config.shape(projection);
                adapter.slots.push(Slot { layer, projection, at: adapter.count, inputs, outputs });
                adapter.count += adapter.rank * (inputs + outputs);
            }
        }
        adapter
    }

    /// Number of parameters.
    pub fn count(&self) -> usize {
        self.count
    }

    /// As PEFT begins: A uniform as `kaiming_uniform(a = sqrt(5))` draws it, B zero.
    pub fn fresh(&self, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed ^ 0x10AA);
        let mut params = vec![0.0; self.count];
        for slot in &self.slots {
            let bound = 1.0 / (slot.inputs as f32).sqrt();
            params[slot.at..][..self.rank * slot.inputs]
                .iter_mut()
                .for_each(|a| *a = (2.0 * random.unit() - 1.0) * bound);
        }
        params
    }

    pub(super) fn slot(&self, layer: usize, projection: Projection) -> Option<Slot> {
        self.slots.iter().find(|slot| slot.layer == layer && slot.projection == projection).copied()
    }

    /// `(A[rank, in], B[out, rank])`.
    pub(super) fn matrices<'a>(&self, slot: Slot, params: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        params[slot.at..][..self.rank * (slot.inputs + slot.outputs)].split_at(self.rank * slot.inputs)
    }

    pub(super) fn matrices_mut<'a>(
        &self,
        slot: Slot,
        params: &'a mut [f32],
    ) -> (&'a mut [f32], &'a mut [f32]) {
        params[slot.at..][..self.rank * (slot.inputs + slot.outputs)].split_at_mut(self.rank * slot.inputs)
    }

    /// Under PEFT's names; `prefix` is put before each.
    pub fn named(&self, params: &[f32], prefix: &str) -> Vec<NamedTensor> {
        let tensors = |slot: &Slot| {
            let (a, b) = self.matrices(*slot, params);
            let name = |which: &str| {
                format!(
                    "{prefix}base_model.model.model.layers.{}.{}.lora_{which}.weight",
                    slot.layer,
                    module(slot.projection)
                )
            };
            [
                NamedTensor { name: name("A"), shape: vec![self.rank, slot.inputs], data: a.to_vec() },
                NamedTensor { name: name("B"), shape: vec![slot.outputs, self.rank], data: b.to_vec() },
            ]
        };
        self.slots.iter().flat_map(tensors).collect()
    }

    /// The flat list from tensors that must be just those of [`Adapter::named`].
    pub fn flat(&self, tensors: &[NamedTensor], prefix: &str) -> Result<Vec<f32>, String> {
        let mut params = Vec::with_capacity(self.count);
        for expected in self.named(&vec![0.0; self.count], prefix) {
            let found = tensors
                .iter()
                .find(|tensor| tensor.name == expected.name)
                .ok_or_else(|| format!("tensor `{}` is missing", expected.name))?;
            if found.shape != expected.shape || found.data.len() != expected.data.len() {
                return Err(format!(
                    "tensor `{}` has shape {:?}, expected {:?}",
                    found.name, found.shape, expected.shape
                ));
            }
            params.extend_from_slice(&found.data);
        }
        Ok(params)
    }
}
