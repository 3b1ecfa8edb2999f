//! Our arithmetic against `transformers` and `peft`: `golden/make_golden.py` made the files.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be, and says what it skips"
)]

use std::path::{Path, PathBuf};

use target_trainer::device::TargetToken;
use target_trainer::model::{AdapterLayout, BaseModel, TokenizedSample, logits, sample_loss_and_gradient};
use target_trainer::store::decode;
use target_trainer::train::{NamedTensor, Recipe};

/// Largest difference, relative to the largest value.
fn distance(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    found.iter().zip(expected).fold(0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

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
        let base = BaseModel::read(&dir).unwrap();
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
        let targets =
            (learned_from..tokens.len()).map(|at| TargetToken { row: at - 1, token: tokens[at] }).collect();
        let tokens = TokenizedSample { tokens, targets, truncated: false };
        GoldenCase { dir, base, adapter, params, tokens, loss: expected["loss"].as_f64().unwrap() as f32 }
    }
}

fn tensors(path: &Path) -> Vec<NamedTensor> {
    decode(&std::fs::read(path).unwrap()).unwrap()
}

/// 1e-4 relative, as promised.
fn check(name: &str) {
    let golden = GoldenCase::read(name);
    let found = logits(&golden.base, &golden.adapter, &golden.params, &golden.tokens.tokens);
    let error = distance(&found, &tensors(&golden.dir.join("logits.safetensors"))[0].data);
    assert!(error < 1e-4, "logits: {error}");
    let learned = golden.tokens.targets.len() as f32;
    let (loss, gradient) = sample_loss_and_gradient(
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
    for found in golden.adapter.named_tensors(&gradient, "") {
        let expected = expected.iter().find(|tensor| tensor.name == found.name).unwrap();
        assert_eq!(found.shape, expected.shape);
        let error = distance(&found.data, &expected.data);
        assert!(error < 1e-4, "gradient of {}: {error}", found.name);
    }
}

#[test]
fn untied_model_matches_transformers_and_peft() {
    check("untied");
}

#[test]
fn tied_model_matches_transformers_and_peft() {
    check("tied");
}
