//! Checkpoints, adapters and the layout of a root: what is kept, and whether it is sound.

mod adapter;
mod checkpoint;
mod layout;
mod manifest;
mod tensors;

pub use adapter::{AdapterError, adapter_files, check_adapter};
pub use checkpoint::{Checkpoints, LoadError, PassedOver, Resume, SaveError, SaveRules, care};
pub use layout::Layout;
pub use manifest::{FORMAT, Manifest};
pub use tensors::{TensorError, decode, encode};
