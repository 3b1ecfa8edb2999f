//! The frozen base: a Hugging Face Llama folder, read and checked.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::config::ModelConfig;
use crate::train::Projection;

/// Why a folder is not a base.
#[derive(Debug, thiserror::Error)]
pub enum BaseModelError {
    #[error("base: could not read `{path}`: {error}", path = .path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("base: `{path}`: {message}", path = .path.display())]
    Invalid { path: PathBuf, message: String },
}

/// Weights of one layer, each `[out, in]`.
#[derive(Debug, Clone)]
pub(super) struct LayerWeights {
    pub(super) input_norm: Vec<f32>,
    pub(super) post_norm: Vec<f32>,
    projections: Vec<Vec<f32>>,
}

/// A model that is never changed.
#[derive(Debug, Clone)]
pub struct BaseModel {
    pub config: ModelConfig,
    pub(super) embedding: Vec<f32>,
    pub(super) layers: Vec<LayerWeights>,
    pub(super) norm: Vec<f32>,
    /// Empty where the embedding is the head too.
    head: Vec<f32>,
}

/// All projections of a layer, in the order in which they are applied.
pub(super) const PROJECTIONS: [Projection; 7] = [
    Projection::QProj,
    Projection::KProj,
    Projection::VProj,
    Projection::OProj,
    Projection::GateProj,
    Projection::UpProj,
    Projection::DownProj,
];

/// Name of a projection's module within a layer.
pub(super) fn module_name(projection: Projection) -> &'static str {
    match projection {
        Projection::QProj => "self_attn.q_proj",
        Projection::KProj => "self_attn.k_proj",
        Projection::VProj => "self_attn.v_proj",
        Projection::OProj => "self_attn.o_proj",
        Projection::GateProj => "mlp.gate_proj",
        Projection::UpProj => "mlp.up_proj",
        Projection::DownProj => "mlp.down_proj",
    }
}

impl ModelConfig {
    /// `[out, in]`.
    pub(super) fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let (heads, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::QProj => (heads, self.hidden),
            Projection::KProj | Projection::VProj => (kv, self.hidden),
            Projection::OProj => (self.hidden, heads),
            Projection::GateProj | Projection::UpProj => (self.intermediate, self.hidden),
            Projection::DownProj => (self.hidden, self.intermediate),
        }
    }

    /// Names and shapes of all tensors of a base.
    pub(super) fn tensor_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, self.hidden])];
        for layer in 0..self.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            all.push((name("input_layernorm"), vec![self.hidden]));
            all.push((name("post_attention_layernorm"), vec![self.hidden]));
            all.extend(PROJECTIONS.map(|projection| {
                (
                    name(module_name(projection)),
                    Vec::from(<[usize; 2]>::from(self.projection_shape(projection))),
                )
            }));
        }
        all.push(("model.norm.weight".to_owned(), vec![self.hidden]));
        if !self.tied_embeddings {
            all.push(("lm_head.weight".to_owned(), vec![self.vocabulary, self.hidden]));
        }
        all
    }
}

impl LayerWeights {
    pub(super) fn weight(&self, projection: Projection) -> &[f32] {
        PROJECTIONS
            .iter()
            .zip(&self.projections)
            .find(|(known, _)| **known == projection)
            .map_or(&[], |(_, weight)| weight)
    }
}

impl BaseModel {
    /// Reads `config.json` and `model.safetensors`.
    pub fn read(folder: &Path) -> Result<BaseModel, BaseModelError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path)
                .map_err(|error| BaseModelError::Read { path: path.clone(), error })
                .map(|bytes| (path, bytes))
        };
        let invalid = |path: PathBuf| move |message: String| BaseModelError::Invalid { path, message };
        let (path, bytes) = read("config.json")?;
        let config = ModelConfig::parse(&String::from_utf8_lossy(&bytes)).map_err(invalid(path))?;
        let (path, bytes) = read("model.safetensors")?;
        BaseModel::from_bytes(config, &bytes).map_err(invalid(path))
    }

    /// From a safetensors file's bytes.
    pub fn from_bytes(config: ModelConfig, bytes: &[u8]) -> Result<BaseModel, String> {
        let file =
            SafeTensors::deserialize(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
        let mut tensors = Vec::new();
        for (name, shape) in config.tensor_shapes() {
            let view = file.tensor(&name).map_err(|_| format!("tensor `{name}` is missing"))?;
            if view.shape() != shape {
                return Err(format!("tensor `{name}` has shape {:?}, expected {shape:?}", view.shape()));
            }
            tensors.push(to_f32(&name, &view)?);
        }
        Ok(BaseModel::from_tensors(config, tensors))
    }

    /// As [`preset`](super::preset) has it, without a file.
    pub fn random(config: ModelConfig, seed: u64) -> BaseModel {
        let tensors =
            super::preset::random_tensors(&config, seed).into_iter().map(|tensor| tensor.data).collect();
        BaseModel::from_tensors(config, tensors)
    }

    /// In the order of [`Config::tensors`].
    fn from_tensors(config: ModelConfig, tensors: Vec<Vec<f32>>) -> BaseModel {
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().unwrap_or_default();
        let embedding = next();
        let layer = |_| LayerWeights {
            input_norm: next(),
            post_norm: next(),
            projections: PROJECTIONS.iter().map(|_| next()).collect(),
        };
        let layers = (0..config.layers).map(layer).collect();
        BaseModel { embedding, layers, norm: next(), head: next(), config }
    }

    /// `[vocabulary, hidden]`.
    pub(super) fn head(&self) -> &[f32] {
        if self.config.tied_embeddings { &self.embedding } else { &self.head }
    }
}

/// As `f32`; the half types widen without loss.
fn to_f32(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let data = view.data();
    let pairs = || data.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    match view.dtype() {
        Dtype::F32 => Ok(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::BF16 => Ok(pairs().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()),
        Dtype::F16 => Ok(pairs().map(half_to_single).collect()),
        other => Err(format!("tensor `{name}` has type {other:?}; known are F32, BF16, F16")),
    }
}

/// IEEE 754 binary16 to binary32.
fn half_to_single(bits: u16) -> f32 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from((bits >> 10) & 0x1f), f32::from(bits & 0x3ff));
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        exponent => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn half_precision_widens_exactly() {
        for (bits, value) in [
            (0x3c00u16, 1.0f32),
            (0xc000, -2.0),
            (0x0001, 2f32.powi(-24)),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(super::half_to_single(bits), value);
        }
    }
}
