//! Loss and gradient of whole samples on the card: against the CPU's, and against the golden files of `transformers` and
//! `peft`.

use std::num::NonZeroUsize;
use std::path::Path;

use target_trainer::device::{Precision, TargetToken};
use target_trainer::model::{
    AdapterLayout, BaseModel, CudaModel, ModelConfig, Preset, TokenizedSample, sample_loss_and_gradient,
};
use target_trainer::store::decode;
use target_trainer::train::{Projection, Recipe};

use crate::TestCase;
use crate::test_device::{TestRandom, device};

pub(crate) const TESTS: &[TestCase] = &[
    ("gradients_of_packed_samples_are_the_sum_of_the_cpus", packed),
    ("they_are_with_few_projections_and_odd_ranks_too", few_projections),
    ("they_are_whatever_is_in_one_micro_batch", micro_batches),
    ("loss_and_gradients_are_those_of_transformers_and_peft", golden),
    ("a_changed_weight_is_noticed_and_mended", weights),
];

/// Norm of the difference, relative.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
    };
    let apart = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    apart / norm(&mut expected.iter().copied()).max(1e-30)
}

fn sample(numbers: &mut TestRandom, length: usize) -> TokenizedSample {
    let tokens: Vec<u32> = (0..length).map(|_| numbers.below(258) as u32).collect();
    let from = length / 3;
    let targets = (from..length - 1).map(|row| TargetToken { row, token: tokens[row + 1] }).collect();
    TokenizedSample { tokens, targets, truncated: false }
}

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

/// 1e-4 for f32; 5e-2 for bf16, whose gradients go through a dozen roundings for each layer.
fn check(config: ModelConfig, recipe: &Recipe, lengths: &[usize]) {
    let mut numbers = TestRandom::new(30);
    let base = BaseModel::random(config, 3);
    let adapter = AdapterLayout::new(&base.config, recipe);
    // B not zero, so that every path has a gradient.
    let params: Vec<f32> = numbers.floats(adapter.param_count()).iter().map(|x| 0.2 * x).collect();
    let samples: Vec<TokenizedSample> = lengths.iter().map(|length| sample(&mut numbers, *length)).collect();
    let weighed: Vec<(&TokenizedSample, f32)> =
        samples.iter().zip([1.0, 0.5, 2.0].into_iter().cycle()).collect();
    let (mut loss, mut gradient) = (0.0, vec![0.0; adapter.param_count()]);
    for (tokens, weight) in &weighed {
        let (one, part) = sample_loss_and_gradient(&base, &adapter, &params, tokens, 0.1 * weight);
        loss += one * weight;
        gradient.iter_mut().zip(&part).for_each(|(sum, part)| *sum += part);
    }
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 5e-2)] {
        let net = CudaModel::new(device(), &base, &adapter, precision, 200).unwrap();
        let found = net.forward_backward_once(&params, &weighed, 0.1).unwrap();
        assert!(
            (found.0 - loss).abs() / loss < tolerance as f32,
            "{precision:?}: loss {} for {loss}",
            found.0
        );
        let apart = distance(&found.1, &gradient);
        assert!(apart < tolerance, "{precision:?}: gradients are {apart:e} apart");
    }
}

fn packed() {
    let recipe = Recipe { rank: 8, ..Recipe::default() };
    check(config(4, 2, 16, false), &recipe, &[5, 2, 71, 30]);
    check(config(3, 3, 10, true), &recipe, &[12, 7]);
}

fn few_projections() {
    let targets = vec![Projection::QProj, Projection::VProj, Projection::DownProj];
    check(config(4, 1, 32, false), &Recipe { rank: 3, targets, ..Recipe::default() }, &[9, 20]);
    let targets = vec![Projection::UpProj];
    check(config(4, 4, 8, true), &Recipe { rank: 11, targets, ..Recipe::default() }, &[9, 20]);
}

fn micro_batches() {
    use target_trainer::device::cuda::ElementType;
    use target_trainer::model::PackedBatch;
    let mut numbers = TestRandom::new(31);
    let base = BaseModel::random(config(4, 2, 16, false), 3);
    let adapter = AdapterLayout::new(&base.config, &Recipe::default());
    let params: Vec<f32> = numbers.floats(adapter.param_count()).iter().map(|x| 0.2 * x).collect();
    let mut samples: Vec<TokenizedSample> = (3..9).map(|length| sample(&mut numbers, length)).collect();
    samples[2].targets.clear();
    let device = device();
    let net = CudaModel::new(device.clone(), &base, &adapter, Precision::F32, 10).unwrap();
    let weighed: Vec<(&TokenizedSample, f32)> = samples.iter().map(|tokens| (tokens, 1.0)).collect();
    let whole = net.forward_backward_once(&params, &weighed, 1.0).unwrap();
    for micro_batch in [1, 2, 4, 100] {
        let batch = PackedBatch::new(weighed.iter().copied(), NonZeroUsize::new(micro_batch).unwrap(), 1.0);
        let words = device.buffer(ElementType::Bits32, batch.words().len()).unwrap();
        let bytes: Vec<u8> = batch.words().iter().flat_map(|word| word.to_ne_bytes()).collect();
        device.upload(&words, 0, &bytes).unwrap();
        let gradient = device.zeros(ElementType::F32, adapter.param_count()).unwrap();
        let loss = device.zeros(ElementType::F32, 1).unwrap();
        net.forward_backward(&batch, &words, &gradient, loss.view()).unwrap();
        let found = device.download(&gradient).unwrap();
        let found: Vec<f32> = found.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect();
        assert!(distance(&found, &whole.1) < 1e-5);
    }
}

fn golden() {
    ["tied", "untied"].into_iter().for_each(golden_of);
}

/// 1e-4 relative to the largest value for f32, as on the CPU.
fn golden_of(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let base = BaseModel::read(&folder).unwrap();
    let adapter = AdapterLayout::new(&base.config, &Recipe { rank: 4, alpha: 8.0, ..Recipe::default() });
    let tensors = |name: &str| decode(&read(name)).unwrap();
    let params = adapter.flat_params(&tensors("adapter/adapter_model.safetensors"), "").unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&read("expected.json")).unwrap();
    let numbers = |value: &serde_json::Value| value.as_u64().unwrap() as u32;
    let tokens: Vec<u32> = expected["tokens"].as_array().unwrap().iter().map(numbers).collect();
    let learned_from = numbers(&expected["learned_from"]) as usize;
    let targets: Vec<TargetToken> =
        (learned_from..tokens.len()).map(|at| TargetToken { row: at - 1, token: tokens[at] }).collect();
    let (learned, loss) = (targets.len() as f32, expected["loss"].as_f64().unwrap() as f32);
    let tokens = TokenizedSample { tokens, targets, truncated: false };
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 5e-2)] {
        let net = CudaModel::new(device(), &base, &adapter, precision, 1024).unwrap();
        let (found, gradient) = net.forward_backward_once(&params, &[(&tokens, 1.0)], 1.0 / learned).unwrap();
        assert!((found / learned - loss).abs() / loss < tolerance, "{name}, {precision:?}: loss {found}");
        let expected = tensors("gradients.safetensors");
        for found in adapter.named_tensors(&gradient, "") {
            let expected = expected.iter().find(|tensor| tensor.name == found.name).unwrap();
            let largest = expected.data.iter().fold(0f32, |most, value| most.max(value.abs()));
            let apart = found.data.iter().zip(&expected.data).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(
                apart / largest < tolerance,
                "{name}, {precision:?}: {} is {}",
                found.name,
                apart / largest
            );
        }
    }
}

fn weights() {
    use target_trainer::device::cuda::ElementType;
    let base = BaseModel::random(config(4, 2, 16, false), 3);
    let adapter = AdapterLayout::new(&base.config, &Recipe::default());
    let device = device();
    for precision in [Precision::F32, Precision::Bf16] {
        let net = CudaModel::new(device.clone(), &base, &adapter, precision, 10).unwrap();
        let params = device.buffer(ElementType::F32, adapter.param_count()).unwrap();
        let values = TestRandom::new(32).floats(adapter.param_count());
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        device.upload(&params, 0, &bytes).unwrap();
        net.refresh_adapter_copies(params.view()).unwrap();
        assert!(net.weights_intact(params.view()).unwrap());
        assert!(net.weights_intact(params.view()).unwrap(), "looking changes nothing");
        // Another base is what a card with other bits has.
        net.reload_weights(&BaseModel::random(config(4, 2, 16, false), 4)).unwrap();
        net.refresh_adapter_copies(params.view()).unwrap();
        assert!(!net.weights_intact(params.view()).unwrap());
        net.reload_weights(&base).unwrap();
        assert!(!net.weights_intact(params.view()).unwrap(), "copies of the adapter are covered too");
        net.reload_weights(&base).unwrap();
        net.refresh_adapter_copies(params.view()).unwrap();
        assert!(net.weights_intact(params.view()).unwrap());
    }
}
