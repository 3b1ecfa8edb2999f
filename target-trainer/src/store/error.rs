//! Why a checkpoint can't be saved, read or resumed from.

use super::manifest::{FileDigest, ManifestError};
use super::tensors::TensorError;
use crate::durable::{DeferReason, DiskError, DurableError};
use crate::file_error::chain;

/// Name of the file that holds the cursor.
pub(super) const STATE: &str = "state.json";

/// Why a save failed. The older checkpoints are unchanged.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// There is not enough space, or the file system is read-only. Nothing was written.
    #[error("{reason}")]
    Deferred {
        #[from]
        reason: DeferReason,
    },
    /// A write failed.
    #[error(transparent)]
    Disk(#[from] DurableError),
    /// The state can't be encoded.
    #[error(transparent)]
    Tensors(#[from] TensorError),
    /// The new checkpoint is damaged. No older one was removed.
    #[error("the new checkpoint could not be read back: {}; check the disk", chain(.0))]
    ReadBack(#[source] CheckpointDamage),
}

impl SaveError {
    /// Whether the file system is read-only, found by the space check or by a failed write.
    pub fn is_read_only(&self) -> bool {
        match self {
            SaveError::Disk(error) => matches!(error.source, DiskError::ReadOnly),
            SaveError::Deferred { reason } => matches!(reason, DeferReason::ReadOnly { .. }),
            SaveError::Tensors(_) | SaveError::ReadBack(_) => false,
        }
    }
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointDamage {
    /// A file can't be read.
    #[error("{name}")]
    Unreadable { name: String, source: std::io::Error },
    /// The manifest is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest does not list a file of the checkpoint.
    #[error("{name}: not in the manifest")]
    NotInManifest { name: String },
    /// A file has changed since it was saved.
    #[error(
        "{name}: its {len_bytes} bytes do not match the manifest ({} bytes, blake3 {}..)",
        .expected.bytes, short_digest(&.expected.blake3)
    )]
    Digest { name: String, len_bytes: usize, expected: FileDigest },
    /// A file has no valid tensors.
    #[error("{name}")]
    Tensors { name: String, source: TensorError },
    /// The cursor is not valid.
    #[error("{STATE}")]
    State(#[source] serde_json::Error),
    /// Files of two saves are mixed. Both are steps.
    #[error("{STATE} has step {state}, the manifest has step {manifest}")]
    Step { state: u64, manifest: u64 },
}

fn short_digest(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

/// Why a run can't resume.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// Checkpoints exist, and all are damaged.
    #[error(
        "none of the {0} checkpoints is valid; nothing was deleted; \
         restore one, or remove all to start at step 0"
    )]
    NoneValid(usize),
    /// The root's base model is not the one that the job was trained on. Both are digests.
    #[error(
        "the checkpoints were made with base {checkpoint_base}, \
         and this root's base is {root_base}; restore the original base model"
    )]
    OtherBase { root_base: String, checkpoint_base: String },
    /// The recipe in the settings has changed.
    #[error("the checkpoints were made with another recipe; restore it in the settings, or use a new root")]
    OtherRecipe,
}
