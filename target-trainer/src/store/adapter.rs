//! An adapter in PEFT's format: what others' tools load.

use std::path::Path;

use super::tensors::{TensorError, decode, encode};
use crate::train::{NamedTensor, Recipe};

/// Why an adapter is not sound.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("could not read `{path}`: {error}")]
    Read { path: String, error: std::io::Error },
    #[error("`{path}`: {error}")]
    Tensors { path: String, error: TensorError },
    #[error("`{path}`: tensor `{name}` holds a number that is not finite")]
    NonFinite { path: String, name: String },
}

/// `adapter_config.json` and `adapter_model.safetensors`.
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
    let mut config =
        serde_json::to_vec_pretty(&config).map_err(|error| TensorError::Format(error.to_string()))?;
    config.push(b'\n');
    Ok([("adapter_config.json", config), ("adapter_model.safetensors", encode(adapter)?)])
}

/// Reads a folder's adapter and looks at every number of it.
pub fn check_adapter(folder: &Path) -> Result<(), AdapterError> {
    let path = folder.join("adapter_model.safetensors");
    let shown = path.display().to_string();
    let bytes = std::fs::read(&path).map_err(|error| AdapterError::Read { path: shown.clone(), error })?;
    let tensors = decode(&bytes).map_err(|error| AdapterError::Tensors { path: shown.clone(), error })?;
    match tensors.iter().find(|tensor| tensor.data.iter().any(|value| !value.is_finite())) {
        Some(tensor) => Err(AdapterError::NonFinite { path: shown, name: tensor.name.clone() }),
        None => Ok(()),
    }
}
