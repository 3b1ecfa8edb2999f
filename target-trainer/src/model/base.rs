//! The frozen base model: reads and checks a Hugging Face Llama directory. Knows no LoRA.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::config::ModelConfig;
use crate::state::Projection;

/// Why a directory can't be used as a base model.
#[derive(Debug, thiserror::Error)]
pub enum BaseModelError {
    /// A file can't be read.
    #[error("base: could not read `{path}`: {error}", path = .path.display())]
    Read { path: PathBuf, error: std::io::Error },
    /// A file is not valid.
    #[error("base: `{path}`: {message}", path = .path.display())]
    Invalid { path: PathBuf, message: String },
}

/// Weights of one layer. Projections are `[out, in]`.
#[derive(Debug, Clone)]
pub(super) struct LayerWeights {
    /// Weight of the norm before attention, `[hidden]`.
    pub(super) input_norm: Vec<f32>,
    /// Weight of the norm before the MLP, `[hidden]`.
    pub(super) post_norm: Vec<f32>,
    /// In the order of [`Projection::ALL`].
    projections: Vec<Vec<f32>>,
}

/// The frozen weights of a model, as f32.
#[derive(Debug, Clone)]
pub struct BaseModel {
    /// Sizes and constants.
    pub config: ModelConfig,
    /// `[vocabulary, hidden]`.
    pub(super) embedding: Vec<f32>,
    pub(super) layers: Vec<LayerWeights>,
    /// Weight of the final norm, `[hidden]`.
    pub(super) norm: Vec<f32>,
    /// Empty if the embedding is also the output head.
    head: Vec<f32>,
}

impl LayerWeights {
    /// Weight of a projection, `[out, in]`.
    pub(super) fn weight(&self, projection: Projection) -> &[f32] {
        Projection::ALL
            .iter()
            .zip(&self.projections)
            .find(|(known, _)| **known == projection)
            .map_or(&[], |(_, weight)| weight)
    }
}

impl BaseModel {
    /// Reads `config.json` and `model.safetensors` from `dir`.
    ///
    /// # Errors
    ///
    /// If a file can't be read, or if its content is not a supported Llama model.
    pub fn read(dir: &Path) -> Result<BaseModel, BaseModelError> {
        let read = |name: &str| {
            let path = dir.join(name);
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

    /// Creates a base model from the bytes of a safetensors file.
    ///
    /// # Errors
    ///
    /// If the bytes are not a safetensors file, or if a tensor is missing or has the wrong shape or type.
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

    /// Creates a random base model, the same as [`preset_files`](super::preset_files) writes for this seed.
    pub fn random(config: ModelConfig, seed: u64) -> BaseModel {
        let tensors =
            super::preset::random_tensors(&config, seed).into_iter().map(|tensor| tensor.data).collect();
        BaseModel::from_tensors(config, tensors)
    }

    /// `tensors` must be in the order of [`ModelConfig::tensor_shapes`].
    fn from_tensors(config: ModelConfig, tensors: Vec<Vec<f32>>) -> BaseModel {
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().unwrap_or_default();
        let embedding = next();
        let layer = |_| LayerWeights {
            input_norm: next(),
            post_norm: next(),
            projections: Projection::ALL.iter().map(|_| next()).collect(),
        };
        let layers = (0..config.layers).map(layer).collect();
        BaseModel { embedding, layers, norm: next(), head: next(), config }
    }

    /// Weight of the output head, `[vocabulary, hidden]`.
    pub(super) fn head(&self) -> &[f32] {
        if self.config.tied_embeddings { &self.embedding } else { &self.head }
    }
}

/// Converts a tensor to f32. The half-precision types convert without loss.
fn to_f32(name: &str, view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let data = view.data();
    let pairs = || data.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
    match view.dtype() {
        Dtype::F32 => Ok(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::BF16 => Ok(pairs().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()),
        Dtype::F16 => Ok(pairs().map(half_to_single).collect()),
        other => Err(format!("tensor `{name}` has type {other:?}; supported are F32, BF16 and F16")),
    }
}

/// Converts IEEE 754 binary16 to binary32.
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
