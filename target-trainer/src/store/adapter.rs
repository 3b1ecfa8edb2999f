//! An adapter in the format of Hugging Face's PEFT, which other tools can load.

use std::path::Path;

use super::tensors::{TensorError, decode, encode};
use crate::state::{NamedTensor, Recipe};

/// Why an adapter is not valid.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The file can't be read.
    #[error("could not read `{path}`: {error}")]
    Read { path: String, error: std::io::Error },
    /// The file has no valid tensors.
    #[error("`{path}`: {error}")]
    Tensors { path: String, error: TensorError },
    /// A value is NaN or infinite.
    #[error("`{path}`: tensor `{name}` has a value that is not finite")]
    NonFinite { path: String, name: String },
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
    let mut config =
        serde_json::to_vec_pretty(&config).map_err(|error| TensorError::Format(error.to_string()))?;
    config.push(b'\n');
    Ok([("adapter_config.json", config), ("adapter_model.safetensors", encode(adapter)?)])
}

/// Reads the adapter in a directory and checks that all its values are finite.
///
/// # Errors
/// If the adapter can't be read, or a value is not finite.
pub fn check_adapter(dir: &Path) -> Result<(), AdapterError> {
    let path = dir.join("adapter_model.safetensors");
    let display_path = path.display().to_string();
    let bytes =
        std::fs::read(&path).map_err(|error| AdapterError::Read { path: display_path.clone(), error })?;
    let tensors =
        decode(&bytes).map_err(|error| AdapterError::Tensors { path: display_path.clone(), error })?;
    match tensors.iter().find(|tensor| tensor.data.iter().any(|value| !value.is_finite())) {
        Some(tensor) => Err(AdapterError::NonFinite { path: display_path, name: tensor.name.clone() }),
        None => Ok(()),
    }
}
