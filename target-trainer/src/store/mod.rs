//! Checkpoints, adapters and the layout of a root: writes and reads them, and checks whether they are intact.

mod adapter;
mod checkpoint;
mod checkpoint_copy;
mod error;
mod finished_result;
mod manifest;
mod merged_model;
mod prune;
mod read_checkpoint;
mod record_format;
mod removed_adapter;
mod resume;
mod root_layout;
mod stored_damage;
mod tensors;

pub use adapter::{AdapterError, adapter_files, check_adapter, read_adapter};
pub use checkpoint::{CheckpointStore, SaveOptions, required_space, sync_policy};
pub use checkpoint_copy::CopiedCheckpoint;
pub use error::{CheckpointDamage, DamageKind, ResumeError, SaveError};
pub use finished_result::{FinishedResult, ResultFiles, ResultProblem, read_result, result_files};
pub use manifest::{FORMAT_VERSION, FileDigest, Manifest, ManifestError};
pub use merged_model::{MergeReport, MergedProblem, has_merge_report, merged_files, read_merged};
pub use record_format::{NewerFormat, RECORD_FORMAT, refuse_newer};
pub use removed_adapter::{has_adapter, remove_merged_adapter};
pub use resume::{ResumePoint, SkippedCheckpoint};
pub use root_layout::RootLayout;
pub use stored_damage::{damaged_checkpoints, damaged_merges, damaged_results, sorted_names, unlisted};
pub use tensors::{TensorError, decode, encode};
