//! Compares logits, loss and gradients on the CPU with those of `transformers` and `peft`. The files are from
//! `golden/make_golden.py`.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::path::{Path, PathBuf};

use target_trainer::device::TargetToken;
use target_trainer::model::{
    AdapterLayout, BaseCheck, BaseModel, LossAndGradient, TokenizedSample, logits, sample_loss_and_gradient,
};
use target_trainer::state::{NamedTensor, Recipe};
use target_trainer::store::decode;

/// The largest difference, relative to the largest expected value. NaN if one of the values is NaN: unlike
/// `f32::max`, the total order does not pass over it.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().map(|value| value.abs()).max_by(f32::total_cmp).unwrap();
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap() / largest
}

/// The content of one directory of golden files.
struct GoldenCase {
    dir: PathBuf,
    base: BaseModel,
    adapter: AdapterLayout,
    params: Vec<f32>,
    tokens: TokenizedSample,
    loss: f32,
}

impl GoldenCase {
    fn read(name: &str) -> GoldenCase {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let base = BaseModel::read(&dir, BaseCheck::Full).unwrap();
        let recipe = Recipe { rank: 4, alpha: 8.0, ..Recipe::default() };
        let adapter = AdapterLayout::new(&base.config, &recipe);
        let params =
            adapter.flat_params(&tensors(&dir.join("adapter/adapter_model.safetensors")), "").unwrap();
        let expected: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        let tokens: Vec<u32> = expected["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token.as_u64().unwrap() as u32)
            .collect();
        let learned_from = expected["learned_from"].as_u64().unwrap() as usize;
        let targets = (learned_from..tokens.len())
            .map(|index| TargetToken { row: index - 1, token: tokens[index] })
            .collect();
        let tokens = TokenizedSample { tokens, targets, truncated: false };
        GoldenCase { dir, base, adapter, params, tokens, loss: expected["loss"].as_f64().unwrap() as f32 }
    }
}

/// Reads a safetensors file.
fn tensors(path: &Path) -> Vec<NamedTensor> {
    decode(&std::fs::read(path).unwrap()).unwrap()
}

/// The tolerance is 1e-4, as documented in `docs/trainer.md`.
fn check(name: &str) {
    let golden = GoldenCase::read(name);
    let found = logits(&golden.base, &golden.adapter, &golden.params, &golden.tokens.tokens);
    let error = distance(&found, &tensors(&golden.dir.join("logits.safetensors"))[0].data);
    assert!(error < 1e-4, "logits: {error}");
    let learned = golden.tokens.targets.len() as f32;
    let LossAndGradient { loss, gradient } = sample_loss_and_gradient(
        &golden.base,
        &golden.adapter,
        &golden.params,
        &golden.tokens,
        1.0 / learned,
    );
    assert!(
        (loss / learned - golden.loss).abs() / golden.loss < 1e-4,
        "loss {} instead of {}",
        loss / learned,
        golden.loss
    );
    let expected = tensors(&golden.dir.join("gradients.safetensors"));
    let found = golden.adapter.named_tensors(&gradient, "");
    assert_eq!(found.len(), expected.len());
    for found in found {
        let expected = expected.iter().find(|tensor| tensor.name == found.name).unwrap();
        assert_eq!(found.shape, expected.shape);
        let error = distance(&found.data, &expected.data);
        assert!(error < 1e-4, "gradient of {}: {error}", found.name);
    }
}

#[test]
fn a_nan_is_far_from_every_number() {
    assert!(distance(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
    assert!(distance(&[1.0, f32::INFINITY], &[1.0, 2.0]) > 1.0);
    assert!(distance(&[1.0, 3.0], &[1.0, 2.0]) == 0.5);
}

#[test]
fn untied_model_matches_transformers_and_peft() {
    check("untied");
}

#[test]
fn tied_model_matches_transformers_and_peft() {
    check("tied");
}
