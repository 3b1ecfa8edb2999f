//! Compares loss and gradient of whole samples on the device with the CPU, and with the golden files of
//! `transformers` and `peft`.

use std::num::NonZeroUsize;
use std::path::Path;

use target_trainer::device::{Precision, TargetToken};
use target_trainer::model::{
    AdapterLayout, BaseCheck, BaseModel, CudaModel, LossAndGradient, ModelConfig, Preset, TokenizedSample,
    WeightedSample, sample_loss_and_gradient,
};
use target_trainer::state::{Projection, Recipe};
use target_trainer::store::decode;

use crate::test_device::{TestRandom, device};
use libtest_mimic::Trial;

/// The trials of this file. `missing` is why this machine cannot run them.
pub(crate) fn trials(missing: Option<String>) -> Vec<Trial> {
    trials![
        missing;
        gradients_of_packed_samples_match_the_cpu,
        gradients_match_with_few_projections_and_odd_ranks,
        gradients_do_not_depend_on_the_micro_batch,
        loss_and_gradients_match_transformers_and_peft,
        a_changed_weight_is_detected_and_repaired,
    ]
}

/// Norm of the difference, relative to the norm of the expected values.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
    };
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    difference / norm(&mut expected.iter().copied()).max(1e-30)
}

/// A random sample whose last two thirds are learned.
fn sample(random: &mut TestRandom, length: usize) -> TokenizedSample {
    let tokens: Vec<u32> = (0..length).map(|_| random.below(258) as u32).collect();
    let from = length / 3;
    let targets = (from..length - 1).map(|row| TargetToken { row, token: tokens[row + 1] }).collect();
    TokenizedSample { tokens, targets, truncated: false }
}

/// A small model with three layers.
fn config(heads: usize, kv_heads: usize, head_dim: usize, tied: bool) -> ModelConfig {
    ModelConfig {
        hidden: 40,
        intermediate: 56,
        layers: 3,
        heads,
        kv_heads,
        head_dim,
        tied_embeddings: tied,
        ..Preset::Tiny.config()
    }
}

/// Compares the packed samples with the sum over the samples on the CPU. The tolerance is 1e-4 for f32. It is
/// 5e-2 for bf16, because gradients are rounded a dozen times in each layer.
fn check(config: ModelConfig, recipe: &Recipe, lengths: &[usize]) {
    let mut random = TestRandom::new(30);
    let base = BaseModel::random(config, 3);
    let adapter = AdapterLayout::new(&base.config, recipe);
    // B is not zero, so that every path has a gradient.
    let params: Vec<f32> = random.floats(adapter.param_count()).iter().map(|x| 0.2 * x).collect();
    let samples: Vec<TokenizedSample> = lengths.iter().map(|length| sample(&mut random, *length)).collect();
    let weights = [1.0, 0.5, 2.0].into_iter().cycle();
    let weighted_samples: Vec<WeightedSample<'_>> =
        samples.iter().zip(weights).map(|(sample, weight)| WeightedSample { sample, weight }).collect();
    let (mut loss, mut gradient) = (0.0, vec![0.0; adapter.param_count()]);
    for WeightedSample { sample, weight } in &weighted_samples {
        let pass = sample_loss_and_gradient(&base, &adapter, &params, sample, 0.1 * weight);
        loss += pass.loss * weight;
        gradient.iter_mut().zip(&pass.gradient).for_each(|(sum, value)| *sum += value);
    }
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 5e-2)] {
        let model = CudaModel::new(device(), &base, &adapter, precision, 200).unwrap();
        let found = model.forward_backward_once(&params, &weighted_samples, 0.1).unwrap();
        assert!(
            (found.loss - loss).abs() / loss < tolerance as f32,
            "{precision:?}: loss {}, expected {loss}",
            found.loss
        );
        let difference = distance(&found.gradient, &gradient);
        assert!(difference < tolerance, "{precision:?}: the distance of the gradients is {difference:e}");
    }
}

fn gradients_of_packed_samples_match_the_cpu() {
    let recipe = Recipe { rank: 8, ..Recipe::default() };
    check(config(4, 2, 16, false), &recipe, &[5, 2, 71, 30]);
    check(config(3, 3, 10, true), &recipe, &[12, 7]);
}

fn gradients_match_with_few_projections_and_odd_ranks() {
    let targets = vec![Projection::QProj, Projection::VProj, Projection::DownProj];
    check(config(4, 1, 32, false), &Recipe { rank: 3, targets, ..Recipe::default() }, &[9, 20]);
    let targets = vec![Projection::UpProj];
    check(config(4, 4, 8, true), &Recipe { rank: 11, targets, ..Recipe::default() }, &[9, 20]);
}

fn gradients_do_not_depend_on_the_micro_batch() {
    use target_trainer::device::cuda::ElementType;
    use target_trainer::model::PackedBatch;
    let mut random = TestRandom::new(31);
    let base = BaseModel::random(config(4, 2, 16, false), 3);
    let adapter = AdapterLayout::new(&base.config, &Recipe::default());
    let params: Vec<f32> = random.floats(adapter.param_count()).iter().map(|x| 0.2 * x).collect();
    let mut samples: Vec<TokenizedSample> = (3..9).map(|length| sample(&mut random, length)).collect();
    samples[2].targets.clear();
    let device = device();
    let model = CudaModel::new(device.clone(), &base, &adapter, Precision::F32, 10).unwrap();
    let weighted_samples: Vec<WeightedSample<'_>> =
        samples.iter().map(|sample| WeightedSample { sample, weight: 1.0 }).collect();
    let expected = model.forward_backward_once(&params, &weighted_samples, 1.0).unwrap();
    for micro_batch in [1, 2, 4, 100] {
        let batch =
            PackedBatch::new(weighted_samples.iter().copied(), NonZeroUsize::new(micro_batch).unwrap(), 1.0);
        let words = device.buffer(ElementType::Bits32, batch.words().len()).unwrap();
        let bytes: Vec<u8> = batch.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        device.upload(&words, 0, &bytes).unwrap();
        let gradient = device.zeros(ElementType::F32, adapter.param_count()).unwrap();
        let loss = device.zeros(ElementType::F32, 1).unwrap();
        model.forward_backward(&batch, &words, &gradient, loss.view()).unwrap();
        let found = device.download(&gradient).unwrap();
        let found: Vec<f32> = found.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect();
        assert!(distance(&found, &expected.gradient) < 1e-5);
    }
}

fn loss_and_gradients_match_transformers_and_peft() {
    ["tied", "untied"].into_iter().for_each(golden_of);
}

/// The tolerance for f32 is 1e-4 relative to the largest value, as on the CPU.
fn golden_of(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    let base = BaseModel::read(&dir, BaseCheck::Full).unwrap();
    let adapter = AdapterLayout::new(&base.config, &Recipe { rank: 4, alpha: 8.0, ..Recipe::default() });
    let tensors = |name: &str| decode(&read(name)).unwrap();
    let params = adapter.flat_params(&tensors("adapter/adapter_model.safetensors"), "").unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&read("expected.json")).unwrap();
    let as_u32 = |value: &serde_json::Value| value.as_u64().unwrap() as u32;
    let tokens: Vec<u32> = expected["tokens"].as_array().unwrap().iter().map(as_u32).collect();
    let learned_from = as_u32(&expected["learned_from"]) as usize;
    let targets: Vec<TargetToken> = (learned_from..tokens.len())
        .map(|index| TargetToken { row: index - 1, token: tokens[index] })
        .collect();
    let (learned, loss) = (targets.len() as f32, expected["loss"].as_f64().unwrap() as f32);
    let tokens = TokenizedSample { tokens, targets, truncated: false };
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 5e-2)] {
        let model = CudaModel::new(device(), &base, &adapter, precision, 1024).unwrap();
        let LossAndGradient { loss: found, gradient } = model
            .forward_backward_once(&params, &[WeightedSample { sample: &tokens, weight: 1.0 }], 1.0 / learned)
            .unwrap();
        assert!((found / learned - loss).abs() / loss < tolerance, "{name}, {precision:?}: loss {found}");
        let expected = tensors("gradients.safetensors");
        let found = adapter.named_tensors(&gradient, "");
        assert_eq!(found.len(), expected.len());
        for found in found {
            let expected = expected.iter().find(|tensor| tensor.name == found.name).unwrap();
            let largest = expected.data.iter().fold(0f32, |max, value| max.max(value.abs()));
            // Unlike `f32::max`, the total order does not pass over NaN.
            let differences = found.data.iter().zip(&expected.data).map(|(a, b)| (a - b).abs());
            let difference = differences.max_by(f32::total_cmp).unwrap();
            assert!(
                difference / largest < tolerance,
                "{name}, {precision:?}: {} is {}",
                found.name,
                difference / largest
            );
        }
    }
}

fn a_changed_weight_is_detected_and_repaired() {
    use target_trainer::device::cuda::ElementType;
    let base = BaseModel::random(config(4, 2, 16, false), 3);
    let adapter = AdapterLayout::new(&base.config, &Recipe::default());
    let device = device();
    for precision in [Precision::F32, Precision::Bf16] {
        let model = CudaModel::new(device.clone(), &base, &adapter, precision, 10).unwrap();
        let params = device.buffer(ElementType::F32, adapter.param_count()).unwrap();
        let values = TestRandom::new(32).floats(adapter.param_count());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        device.upload(&params, 0, &bytes).unwrap();
        model.refresh_adapter_copies(params.view()).unwrap();
        assert!(model.weights_intact(params.view()).unwrap());
        assert!(model.weights_intact(params.view()).unwrap(), "the check changes nothing");
        // Loading another base model simulates changed bits on the device.
        model.reload_weights(&BaseModel::random(config(4, 2, 16, false), 4)).unwrap();
        model.refresh_adapter_copies(params.view()).unwrap();
        assert!(!model.weights_intact(params.view()).unwrap());
        model.reload_weights(&base).unwrap();
        assert!(!model.weights_intact(params.view()).unwrap(), "the check covers the copies of the adapter");
        model.reload_weights(&base).unwrap();
        model.refresh_adapter_copies(params.view()).unwrap();
        assert!(model.weights_intact(params.view()).unwrap());
    }
}
