//! Why a checkpoint can't be saved, read or resumed from.

use std::io::ErrorKind;

use nix::errno::Errno;

use super::manifest::{FileDigest, ManifestError};
use super::tensors::TensorError;
use crate::durable::{DeferReason, DiskError, DurableError};
use crate::file_error::{FileError, chain};

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
    /// The checkpoints can't be listed.
    #[error(transparent)]
    List(#[from] FileError),
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
            SaveError::Tensors(_) | SaveError::ReadBack(_) | SaveError::List(_) => false,
        }
    }
}

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointDamage {
    /// A file can't be read: it is missing, it is no file, the disk fails, or the machine does not allow it.
    #[error("{}{name}", if is_disk_error(.source) { "read error of the disk, the checkpoint stays: " } else { "" })]
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
    /// It is somewhere else.
    #[error("a symbolic link; links are not followed")]
    Link,
    /// It is a copy under the name of another one.
    #[error("the manifest has step {step}; this name belongs to another step")]
    OtherName { step: u64 },
    /// Files of two saves are mixed. Both are steps.
    #[error("{STATE} has step {state}, the manifest has step {manifest}")]
    Step { state: u64, manifest: u64 },
}

/// What follows from the damage of a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// Its content is wrong. An older checkpoint is used, and this one may be removed.
    Damaged,
    /// The disk can't read it, also after some attempts. An older checkpoint is used, and this one stays.
    ReadError,
    /// The machine does not allow to read it now: the checkpoint may be good.
    Machine,
    /// A newer version of the trainer has written it.
    NewerFormat,
}

impl CheckpointDamage {
    /// Whether a file is not there.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, CheckpointDamage::Unreadable { source, .. } if source.kind() == ErrorKind::NotFound)
    }

    /// What follows from it.
    pub fn kind(&self) -> DamageKind {
        match self {
            CheckpointDamage::Unreadable { source, .. } => match source.kind() {
                _ if is_disk_error(source) => DamageKind::ReadError,
                // The last two are those of a name that no file can have here.
                ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::InvalidData
                | ErrorKind::InvalidInput
                | ErrorKind::InvalidFilename => DamageKind::Damaged,
                _ => DamageKind::Machine,
            },
            CheckpointDamage::Manifest(ManifestError::TooNew { .. }) => DamageKind::NewerFormat,
            _ => DamageKind::Damaged,
        }
    }
}

/// Whether the disk or the file system has failed to read: `EIO`, or a checksum of its own is wrong.
fn is_disk_error(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EIO | Errno::EBADMSG | Errno::EUCLEAN))
}

fn short_digest(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

/// Why a run can't resume.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// Checkpoints exist, and all are damaged.
    #[error(
        "none of the {0} checkpoints is valid; nothing was deleted; restore one, or move all of them away and \
         submit the data again to start at step 0"
    )]
    NoneValid(usize),
    /// No checkpoint is valid, and the disk can't read some, which may be good.
    #[error(
        "none of the {count} checkpoints is valid, and the disk can't read {unreadable} of them; nothing was \
         deleted; repair the disk or restore a checkpoint"
    )]
    NoneReadable {
        count: usize,
        unreadable: usize,
        #[source]
        source: CheckpointDamage,
    },
    /// A checkpoint can't be read now, and may be good.
    #[error("checkpoint {name} can't be read now")]
    Machine { name: String, source: CheckpointDamage },
    /// The checkpoints can't be listed now.
    #[error(transparent)]
    List(#[from] FileError),
    /// A newer version has written a checkpoint. It is not passed over: it is newer work.
    #[error("checkpoint {name} is of a newer version; use that version, or move the checkpoint away")]
    NewerFormat { name: String, source: CheckpointDamage },
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

impl ResumeError {
    /// Whether another attempt may succeed.
    pub fn may_pass(&self) -> bool {
        matches!(self, ResumeError::Machine { .. } | ResumeError::List(_) | ResumeError::NoneReadable { .. })
    }
}
