//! Layout of an adapter's LoRA matrices (Hu et al. 2021). All parameters are in one flat list, so that sums,
//! norms and updates are single passes. Holds no parameters itself.

use super::config::ModelConfig;
use crate::random::Random;
use crate::state::{NamedTensor, Projection, Recipe};

/// The position of one projection's matrices in the flat list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LoraSlot {
    layer: usize,
    projection: Projection,
    /// Index of the first element of A `[rank, in]`; B `[out, rank]` follows it.
    pub(super) offset: usize,
    /// Elements of an input row.
    pub(super) inputs: usize,
    /// Elements of an output row.
    pub(super) outputs: usize,
}

/// Why tensors do not fit a layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterMismatch {
    /// A tensor of the layout is missing.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A tensor has another shape than in the layout.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
}

/// Positions and shapes of all LoRA matrices of an adapter.
#[derive(Debug, Clone)]
pub struct AdapterLayout {
    /// Rank of the matrices.
    pub(super) rank: usize,
    /// Factor of the LoRA part of a projection, `alpha / rank`.
    pub(super) scale: f32,
    slots: Vec<LoraSlot>,
    param_count: usize,
}

impl AdapterLayout {
    /// The layout for a model, with LoRA matrices on the projections that the recipe names.
    pub fn new(config: &ModelConfig, recipe: &Recipe) -> AdapterLayout {
        let mut layout = AdapterLayout {
            rank: recipe.rank,
            scale: recipe.alpha / recipe.rank as f32,
            slots: Vec::new(),
            param_count: 0,
        };
        for layer in 0..config.layers {
            for projection in
                Projection::ALL.into_iter().filter(|projection| recipe.targets.contains(projection))
            {
                let (outputs, inputs) = config.projection_shape(projection);
                layout.slots.push(LoraSlot {
                    layer,
                    projection,
                    offset: layout.param_count,
                    inputs,
                    outputs,
                });
                layout.param_count += layout.rank * (inputs + outputs);
            }
        }
        layout
    }

    /// Returns the number of parameters.
    pub fn param_count(&self) -> usize {
        self.param_count
    }

    /// Returns initial parameters as in PEFT: A is uniform as by `kaiming_uniform(a = sqrt(5))`, B is zero.
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

    /// Returns the position of a projection's matrices, or `None` if it has none.
    pub(super) fn slot(&self, layer: usize, projection: Projection) -> Option<LoraSlot> {
        self.slots.iter().find(|slot| slot.layer == layer && slot.projection == projection).copied()
    }

    /// Returns `(A[rank, in], B[out, rank])` of one projection.
    pub(super) fn matrices<'a>(&self, slot: LoraSlot, params: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        params[slot.offset..][..self.rank * (slot.inputs + slot.outputs)].split_at(self.rank * slot.inputs)
    }

    /// As [`AdapterLayout::matrices`], mutable.
    pub(super) fn matrices_mut<'a>(
        &self,
        slot: LoraSlot,
        params: &'a mut [f32],
    ) -> (&'a mut [f32], &'a mut [f32]) {
        params[slot.offset..][..self.rank * (slot.inputs + slot.outputs)]
            .split_at_mut(self.rank * slot.inputs)
    }

    /// Splits a flat list into tensors with PEFT's names, each preceded by `prefix`.
    pub fn named_tensors(&self, params: &[f32], prefix: &str) -> Vec<NamedTensor> {
        let slot_tensors = |slot: &LoraSlot| {
            let (a, b) = self.matrices(*slot, params);
            let name = |matrix: &str| {
                format!(
                    "{prefix}base_model.model.model.layers.{}.{}.lora_{matrix}.weight",
                    slot.layer,
                    slot.projection.module_name()
                )
            };
            [
                NamedTensor { name: name("A"), shape: vec![self.rank, slot.inputs], data: a.to_vec() },
                NamedTensor { name: name("B"), shape: vec![slot.outputs, self.rank], data: b.to_vec() },
            ]
        };
        self.slots.iter().flat_map(slot_tensors).collect()
    }

    /// Joins tensors into a flat list: the inverse of [`AdapterLayout::named_tensors`].
    ///
    /// # Errors
    ///
    /// If a tensor is missing or has the wrong shape.
    pub fn flat_params(&self, tensors: &[NamedTensor], prefix: &str) -> Result<Vec<f32>, AdapterMismatch> {
        let mut params = Vec::with_capacity(self.param_count);
        for expected in self.named_tensors(&vec![0.0; self.param_count], prefix) {
            let found = tensors
                .iter()
                .find(|tensor| tensor.name == expected.name)
                .ok_or_else(|| AdapterMismatch::Missing(expected.name.clone()))?;
            if found.shape != expected.shape || found.data.len() != expected.data.len() {
                let (found, name) = (found.shape.clone(), expected.name);
                return Err(AdapterMismatch::Shape { name, found, expected: expected.shape });
            }
            params.extend_from_slice(&found.data);
        }
        Ok(params)
    }
}
