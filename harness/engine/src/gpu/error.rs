//! Why a target can't be provided with a GPU.

use simgpu_plan::PlanError;

use crate::file_error::FileError;

/// Why a target can't be provided with a GPU.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The files shared with the shim can't be used.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An operation on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
}
