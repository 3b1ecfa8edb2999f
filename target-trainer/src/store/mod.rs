//! Checkpoints, adapters and the layout of a root: writes and reads them, and checks whether they are intact.

mod adapter;
mod checkpoint;
mod manifest;
mod root_layout;
mod tensors;

pub use adapter::{AdapterError, adapter_files, check_adapter};
pub use checkpoint::{
    CheckpointStore, ResumeError, ResumePoint, SaveError, SaveOptions, SkippedCheckpoint, sync_policy,
};
pub use manifest::{FORMAT_VERSION, Manifest};
pub use root_layout::RootLayout;
pub use tensors::{TensorError, decode, encode};
