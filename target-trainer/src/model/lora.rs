//! LoRA matrices (Hu et al. 2021): all parameters of an adapter in one flat list, so that sums, norms and updates are
//! single passes.

use super::base::{PROJECTIONS, module_name};
use super::config::ModelConfig;
use crate::random::Random;
use crate::train::{NamedTensor, Projection, Recipe};

/// Where one projection's matrices lie in the flat list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoraSlot {
    layer: usize,
    projection: Projection,
    /// `[rank, in]` from here, then `[out, rank]`.
    pub(super) offset: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// The layout of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterLayout {
    pub(super) rank: usize,
    pub(super) scale: f32,
    slots: Vec<LoraSlot>,
    param_count: usize,
}

impl AdapterLayout {
    pub fn new(config: &ModelConfig, recipe: &Recipe) -> AdapterLayout {
        let mut adapter = AdapterLayout {
            rank: recipe.rank,
            scale: recipe.alpha / recipe.rank as f32,
            slots: Vec::new(),
            param_count: 0,
        };
        for layer in 0..config.layers {
            for projection in PROJECTIONS.into_iter().filter(|projection| recipe.targets.contains(projection))
            {
                let (outputs, inputs) = config.projection_shape(projection);
                adapter.slots.push(LoraSlot {
                    layer,
                    projection,
                    offset: adapter.param_count,
                    inputs,
                    outputs,
                });
                adapter.param_count += adapter.rank * (inputs + outputs);
            }
        }
        adapter
    }

    /// Number of parameters.
    pub fn param_count(&self) -> usize {
        self.param_count
    }

    /// As PEFT begins: A uniform as `kaiming_uniform(a = sqrt(5))` draws it, B zero.
    pub fn initial_params(&self, seed: u64) -> Vec<f32> {
        let mut random = Random::new(seed ^ 0x10AA);
        let mut params = vec![0.0; self.param_count];
        for slot in &self.slots {
            let bound = 1.0 / (slot.inputs as f32).sqrt();
            params[slot.offset..][..self.rank * slot.inputs]
                .iter_mut()
                .for_each(|a| *a = (2.0 * random.uniform() - 1.0) * bound);
        }
        params
    }

    pub(super) fn slot(&self, layer: usize, projection: Projection) -> Option<LoraSlot> {
        self.slots.iter().find(|slot| slot.layer == layer && slot.projection == projection).copied()
    }

    /// `(A[rank, in], B[out, rank])`.
    pub(super) fn matrices<'a>(&self, slot: LoraSlot, params: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        params[slot.offset..][..self.rank * (slot.inputs + slot.outputs)].split_at(self.rank * slot.inputs)
    }

    pub(super) fn matrices_mut<'a>(
        &self,
        slot: LoraSlot,
        params: &'a mut [f32],
    ) -> (&'a mut [f32], &'a mut [f32]) {
        params[slot.offset..][..self.rank * (slot.inputs + slot.outputs)]
            .split_at_mut(self.rank * slot.inputs)
    }

    /// Under PEFT's names; `prefix` is put before each.
    pub fn named_tensors(&self, params: &[f32], prefix: &str) -> Vec<NamedTensor> {
        let tensors = |slot: &LoraSlot| {
            let (a, b) = self.matrices(*slot, params);
            let name = |which: &str| {
                format!(
                    "{prefix}base_model.model.model.layers.{}.{}.lora_{which}.weight",
                    slot.layer,
                    module_name(slot.projection)
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
    pub fn flat_params(&self, tensors: &[NamedTensor], prefix: &str) -> Result<Vec<f32>, String> {
        let mut params = Vec::with_capacity(self.param_count);
        for expected in self.named_tensors(&vec![0.0; self.param_count], prefix) {
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
