//! Merges LoRA matrices into the weights of the base model, and measures what that changes. Reads and writes
//! no file.

use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::base::{BaseModel, WeightsError};
use super::cpu_pass::logits;
use super::lora::AdapterLayout;
use super::tokens::BOS;
use crate::device::{Accumulate, MatmulSize, matmul_nn};
use crate::state::{Projection, Recipe};

/// Sequences that the logits are compared on.
const PROBES: u32 = 3;
/// Tokens of a sequence.
const PROBE_TOKENS: usize = 48;

/// A merged model: its weights in f32, and as they are stored.
pub struct MergedModel {
    /// In f32.
    pub model: BaseModel,
    /// The bytes of `model.safetensors`. Each tensor has the type that it has in the base.
    pub weights: Vec<u8>,
}

/// Adds the product of the LoRA matrices to the weights. `base_bytes` are the bytes of the base's weights.
///
/// # Errors
/// If the bytes are no weights, or a merged weight is too large for the type of its tensor.
pub fn merge(
    base: &BaseModel,
    base_bytes: &[u8],
    adapter: &AdapterLayout,
    params: &[f32],
) -> Result<MergedModel, WeightsError> {
    let mut model = base.clone();
    let mut merged = HashMap::new();
    for layer in 0..base.config.layers {
        for projection in Projection::ALL {
            let Some(slot) = adapter.slot(layer, projection) else { continue };
            let (a, b) = adapter.matrices(slot, params);
            let size = MatmulSize { m: slot.outputs, n: slot.inputs, k: adapter.rank };
            let Some(weight) = model.weight_mut(layer, projection) else { continue };
            matmul_nn(weight, b, a, size, adapter.scale, Accumulate::Add);
            merged
                .insert(format!("model.layers.{layer}.{}.weight", projection.module_name()), weight.to_vec());
        }
    }
    let file = SafeTensors::deserialize(base_bytes)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = match merged.get(&name) {
            Some(weight) => stored(&name, weight, view.dtype())?,
            None => view.data().to_vec(),
        };
        tensors.insert(name, (view.dtype(), view.shape().to_vec(), data));
    }
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        TensorView::new(*dtype, shape.clone(), data).map(|view| (name.as_str(), view))
    });
    let views: Vec<(&str, TensorView<'_>)> = views.collect::<Result<_, _>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(MergedModel { weights: safetensors::serialize(views, Some(metadata))?, model })
}

/// The bytes of a weight in this type.
fn stored(name: &str, weight: &[f32], dtype: Dtype) -> Result<Vec<u8>, WeightsError> {
    let halves = |half: fn(f32) -> [u8; 2]| weight.iter().flat_map(|value| half(*value)).collect();
    let max = match dtype {
        Dtype::F16 => f32::from(f16::MAX),
        Dtype::BF16 => f32::from(bf16::MAX),
        _ => f32::MAX,
    };
    if !weight.iter().all(|value| value.abs() <= max) {
        return Err(WeightsError::NotFinite(name.to_owned()));
    }
    match dtype {
        Dtype::F32 => Ok(weight.iter().flat_map(|value| value.to_le_bytes()).collect()),
        Dtype::BF16 => Ok(halves(|value| bf16::from_f32(value).to_le_bytes())),
        Dtype::F16 => Ok(halves(|value| f16::from_f32(value).to_le_bytes())),
        dtype => Err(WeightsError::Type { name: name.to_owned(), dtype }),
    }
}

/// The logits of a model with an adapter on sequences that are always the same.
pub fn probe_logits(base: &BaseModel, adapter: &AdapterLayout, params: &[f32]) -> Vec<f32> {
    let probe = |seed: u32| {
        let byte = |index: usize| (seed + 1).wrapping_mul(2_654_435_761).rotate_left(index as u32 * 5) % 256;
        let tokens = (0..PROBE_TOKENS).map(|index| if index == 0 { BOS } else { byte(index) });
        let tokens: Vec<u32> = tokens.map(|token| token % base.config.vocabulary as u32).collect();
        logits(base, adapter, params, &tokens)
    };
    (0..PROBES).flat_map(probe).collect()
}

/// The same without an adapter.
pub fn probe_logits_of_base(base: &BaseModel) -> Vec<f32> {
    let none = Recipe { targets: Vec::new(), ..Recipe::default() };
    probe_logits(base, &AdapterLayout::new(&base.config, &none), &[])
}

/// The largest difference, relative to the largest expected value. Not finite if a value is not.
pub fn relative_difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = |values: &mut dyn Iterator<Item = f32>| values.max_by(f32::total_cmp).unwrap_or(f32::NAN);
    let difference = largest(&mut found.iter().zip(expected).map(|(a, b)| (a - b).abs()));
    if found.len() != expected.len() {
        f32::NAN
    } else {
        difference / largest(&mut expected.iter().map(|b| b.abs()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::preset::random_tensors;
    use crate::model::{BaseCheck, Preset};
    use crate::random::Random;
    use crate::store::encode;

    /// The weights of a tiny model, each in this type.
    fn weights(dtype: Dtype) -> Vec<u8> {
        let tensors = random_tensors(&Preset::Tiny.config(), 1);
        let data: Vec<Vec<u8>> = tensors.iter().map(|t| stored(&t.name, &t.data, dtype).unwrap()).collect();
        let views = tensors.iter().zip(&data);
        let views = views.map(|(t, data)| (&t.name, TensorView::new(dtype, t.shape.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    fn model(bytes: &[u8]) -> BaseModel {
        BaseModel::from_bytes(Preset::Tiny.config(), bytes, BaseCheck::Full).unwrap()
    }

    /// A sound adapter: like one that was trained, both matrices are random.
    fn adapter(base: &BaseModel, recipe: &Recipe, seed: u64) -> (AdapterLayout, Vec<f32>) {
        let layout = AdapterLayout::new(&base.config, recipe);
        let mut random = Random::new(seed);
        let params = (0..layout.param_count()).map(|_| 0.1 * random.normal()).collect();
        (layout, params)
    }

    #[test]
    fn a_merged_model_has_the_logits_of_base_and_adapter_in_f32_and_nearly_in_its_own_type() {
        for (dtype, max) in [(Dtype::F32, 1e-5), (Dtype::BF16, 0.05), (Dtype::F16, 0.01)] {
            let bytes = weights(dtype);
            let base = model(&bytes);
            let targets = [vec![Projection::QProj, Projection::DownProj], Projection::ALL.to_vec()];
            for (seed, targets) in targets.into_iter().enumerate() {
                let recipe = Recipe { rank: 3, alpha: 7.0, targets, ..Recipe::default() };
                let (layout, params) = adapter(&base, &recipe, seed as u64);
                let expected = probe_logits(&base, &layout, &params);
                let merged = merge(&base, &bytes, &layout, &params).unwrap();
                let in_f32 = relative_difference(&probe_logits_of_base(&merged.model), &expected);
                assert!(in_f32 <= 1e-5, "{dtype:?}: {in_f32}");
                let stored = relative_difference(&probe_logits_of_base(&model(&merged.weights)), &expected);
                assert!(stored <= max, "{dtype:?}: {stored}");
                assert!(
                    relative_difference(&probe_logits_of_base(&base), &expected) > 0.1,
                    "it changes them"
                );
                // Whatever the adapter does not touch is the same, bit by bit.
                let (old, new) = (SafeTensors::deserialize(&bytes).unwrap(), merged.weights.as_slice());
                let new = SafeTensors::deserialize(new).unwrap();
                assert_eq!(old.names().len(), new.names().len());
                for name in ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"] {
                    assert_eq!(old.tensor(name).unwrap(), new.tensor(name).unwrap());
                }
            }
        }
    }

    #[test]
    fn a_weight_that_its_type_can_not_hold_is_refused() {
        assert!(stored("a", &[1e5], Dtype::F16).is_err() && stored("a", &[1e5], Dtype::BF16).is_ok());
        assert!(stored("a", &[f32::NAN], Dtype::F32).is_err());
        let bytes = encode(&random_tensors(&Preset::Tiny.config(), 1)).unwrap();
        let base = model(&bytes);
        let (layout, params) = adapter(&base, &Recipe::default(), 1);
        let huge: Vec<f32> = params.iter().map(|value| value * 1e30).collect();
        assert!(matches!(merge(&base, &bytes, &layout, &huge), Err(WeightsError::NotFinite(_))));
    }

    #[test]
    fn no_difference_is_small_if_a_value_is_not_finite() {
        assert!(relative_difference(&[1.0, 3.0], &[1.0, 2.0]) == 0.5);
        assert!(relative_difference(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
        assert!(relative_difference(&[1.0], &[1.0, 2.0]).is_nan());
        assert!(relative_difference(&[0.0], &[0.0]).is_nan(), "all zeros say nothing");
    }
}
