//! An adapter in the format of Hugging Face's PEFT, which other tools can load.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::tensors::{TensorError, decode, encode};
use crate::bounded_read::read_regular;
use crate::file_error::{FileError, file_error};
use crate::state::{NamedTensor, Projection, Recipe};

/// The file with the weights.
pub(super) const ADAPTER_FILE: &str = "adapter_model.safetensors";
/// The file with PEFT's configuration.
pub(super) const ADAPTER_CONFIG_FILE: &str = "adapter_config.json";
/// Largest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Largest adapter that is read.
const MAX_ADAPTER_BYTES: u64 = 64 << 30;

/// The keys of PEFT's configuration that a merge needs.
#[derive(Deserialize)]
struct MergeConfig {
    r: usize,
    lora_alpha: f32,
    target_modules: Vec<Projection>,
}

/// Why an adapter is not valid.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file has no valid tensors.
    #[error("`{path}`", path = .path.display())]
    Tensors { path: PathBuf, source: TensorError },
    /// The configuration is not that of a LoRA adapter of this trainer.
    #[error("`{path}`", path = .path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    /// A value is NaN or infinite.
    #[error("`{path}`: tensor `{name}` has a value that is not finite", path = .path.display())]
    NonFinite { path: PathBuf, name: String },
}

/// The names and the bytes of `adapter_config.json` and `adapter_model.safetensors`.
///
/// # Errors
/// If a tensor's data does not fit its shape.
pub fn adapter_files(
    recipe: &Recipe,
    adapter: &[NamedTensor],
) -> Result<[(&'static str, Vec<u8>); 2], TensorError> {
    let config = serde_json::json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "../../base",
        "r": recipe.rank,
        "lora_alpha": recipe.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "target_modules": recipe.targets,
    });
    let mut config = serde_json::to_vec_pretty(&config).map_err(TensorError::Json)?;
    config.push(b'\n');
    Ok([(ADAPTER_CONFIG_FILE, config), (ADAPTER_FILE, encode(adapter)?)])
}

/// Reads the adapter in a directory and checks that all its values are finite.
///
/// # Errors
/// If the adapter can't be read, or a value is not finite.
pub fn check_adapter(dir: &Path) -> Result<(), AdapterError> {
    read_tensors(dir).map(drop)
}

/// Reads the adapter in a directory. The recipe has its rank, alpha and targets.
///
/// # Errors
/// As for [`check_adapter`], or if its configuration is not that of an adapter of this trainer.
pub fn read_adapter(dir: &Path) -> Result<(Recipe, Vec<NamedTensor>), AdapterError> {
    let path = dir.join(ADAPTER_CONFIG_FILE);
    let bytes = read_regular(&path, MAX_CONFIG_BYTES).map_err(file_error("read", &path))?;
    let config = serde_json::from_slice(&bytes);
    let MergeConfig { r, lora_alpha, target_modules } =
        config.map_err(|source| AdapterError::Config { path, source })?;
    let recipe = Recipe { rank: r, alpha: lora_alpha, targets: target_modules, ..Recipe::default() };
    Ok((recipe, read_tensors(dir)?))
}

fn read_tensors(dir: &Path) -> Result<Vec<NamedTensor>, AdapterError> {
    let path = dir.join(ADAPTER_FILE);
    let bytes = read_regular(&path, MAX_ADAPTER_BYTES).map_err(file_error("read", &path))?;
    let tensors = match decode(&bytes) {
        Ok(tensors) => tensors,
        Err(source) => return Err(AdapterError::Tensors { path, source }),
    };
    match tensors.iter().find(|tensor| tensor.data.iter().any(|value| !value.is_finite())) {
        Some(tensor) => Err(AdapterError::NonFinite { path, name: tensor.name.clone() }),
        None => Ok(tensors),
    }
}
