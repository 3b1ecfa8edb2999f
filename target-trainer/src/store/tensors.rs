//! Converts named tensors to safetensors bytes and back. Equal tensors give equal bytes.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};

use crate::state::NamedTensor;

/// Why tensors can't be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The bytes or the tensors do not fit the format.
    #[error("not a safetensors file")]
    Format(#[source] SafeTensorError),
    /// A file beside the tensors can't be written as JSON.
    #[error("not serializable as JSON")]
    Json(#[source] serde_json::Error),
    /// A tensor is not `f32`.
    #[error("tensor `{name}` has type {dtype:?}, expected F32")]
    Type { name: String, dtype: Dtype },
}

/// Encodes tensors, sorted by name.
///
/// # Errors
/// If a tensor's data does not fit its shape.
pub fn encode(tensors: &[NamedTensor]) -> Result<Vec<u8>, TensorError> {
    let bytes: BTreeMap<&str, Vec<u8>> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), f32_bytes(&tensor.data))).collect();
    let view = |tensor: &NamedTensor| {
        let data = &bytes[tensor.name.as_str()];
        TensorView::new(Dtype::F32, tensor.shape.clone(), data).map(|view| (tensor.name.clone(), view))
    };
    let views: Result<BTreeMap<String, TensorView<'_>>, _> = tensors.iter().map(view).collect();
    let views = views.map_err(TensorError::Format)?;
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(TensorError::Format)
}

/// Decodes tensors, sorted by name.
///
/// # Errors
/// If the bytes are not in the format, or a tensor is not `f32`.
pub fn decode(bytes: &[u8]) -> Result<Vec<NamedTensor>, TensorError> {
    let file = SafeTensors::deserialize(bytes).map_err(TensorError::Format)?;
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(TensorError::Type { name, dtype: view.dtype() });
        }
        let data = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        tensors.push(NamedTensor { name, shape: view.shape().to_vec(), data });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}

fn f32_bytes(data: &[f32]) -> Vec<u8> {
    data.iter().flat_map(|value| value.to_le_bytes()).collect()
}
