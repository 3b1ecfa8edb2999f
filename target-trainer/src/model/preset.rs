//! Random base models of fixed sizes. The same seed gives the same model.

use super::config::ModelConfig;
use super::tokens::VOCABULARY_SIZE;
use crate::random::Random;
use crate::state::NamedTensor;
use crate::store::{TensorError, encode};

/// Size of a random base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// For scenarios: a step takes a few milliseconds.
    Tiny,
    /// For benchmarks: tens of millions of parameters.
    Small,
    /// For benchmarks on a GPU: about 124 million parameters.
    #[value(name = "llama124m")]
    Llama124m,
    /// For benchmarks on a GPU: about 1.1 billion parameters.
    #[value(name = "llama1b")]
    Llama1b,
}

impl Preset {
    /// Sizes and constants of the preset.
    pub fn config(self) -> ModelConfig {
        let tiny = ModelConfig {
            vocabulary: VOCABULARY_SIZE,
            hidden: 64,
            intermediate: 128,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            norm_eps: 1e-5,
            rope_theta: 10_000.0,
            tied_embeddings: false,
        };
        match self {
            Preset::Tiny => tiny,
            Preset::Small => ModelConfig {
                hidden: 512,
                intermediate: 1536,
                layers: 10,
                heads: 8,
                kv_heads: 4,
                head_dim: 64,
                ..tiny
            },
            Preset::Llama124m => ModelConfig {
                vocabulary: 32_000,
                hidden: 768,
                intermediate: 2560,
                layers: 12,
                heads: 12,
                kv_heads: 12,
                head_dim: 64,
                tied_embeddings: true,
                ..tiny
            },
            Preset::Llama1b => ModelConfig {
                vocabulary: 32_000,
                hidden: 2048,
                intermediate: 5632,
                layers: 22,
                heads: 32,
                kv_heads: 4,
                head_dim: 64,
                ..tiny
            },
        }
    }
}

/// Returns the contents of `config.json` and `model.safetensors` of a random base model.
///
/// # Errors
///
/// If the tensors can't be encoded.
pub fn preset_files(preset: Preset, seed: u64) -> Result<(String, Vec<u8>), TensorError> {
    let config = preset.config();
    Ok((config.to_json(), encode(&random_tensors(&config, seed))?))
}

/// Random tensors in the order of [`ModelConfig::tensor_shapes`].
pub(super) fn random_tensors(config: &ModelConfig, seed: u64) -> Vec<NamedTensor> {
    let mut random = Random::new(seed ^ 0xBA5E);
    config.tensor_shapes().into_iter().map(|(name, shape)| random_tensor(name, shape, &mut random)).collect()
}

/// Norms are 1. Embeddings have variance 1. All other weights preserve the variance of their input.
fn random_tensor(name: String, shape: Vec<usize>, random: &mut Random) -> NamedTensor {
    let count = shape.iter().product();
    let data = match shape.as_slice() {
        [_] => vec![1.0; count],
        _ if name.contains("embed_tokens") => (0..count).map(|_| random.normal()).collect(),
        [_, inputs] => (0..count).map(|_| random.normal() / (*inputs as f32).sqrt()).collect(),
        _ => vec![0.0; count],
    };
    NamedTensor { name, shape, data }
}
