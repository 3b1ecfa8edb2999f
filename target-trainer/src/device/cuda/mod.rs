//! CUDA: safe wrappers of the driver and cublasLt, and the kernels as operations. Knows no model.
//!
//! Libraries are loaded at run time, so that one binary runs with and without a driver. Unsafe code is in the
//! files named `sys.rs`. Operations only queue work; the documentation of a function states if it blocks. An
//! operation may return the error of work that was queued earlier.

mod context;
mod cuda_device;
mod driver;
mod error;
mod kernel_library;
mod launch;
mod matmul;
mod matrix_view;
mod memory;
mod ops;
mod packed_sequences;
mod sys;

pub use context::DeviceMemoryInfo;
pub use cuda_device::{
    CopyCompletion, CudaDevice, KernelTime, PendingCopy, PinnedPool, StagingBuffer, cuda_device_count,
};
pub use error::DeviceError;
pub use launch::MAX_BLOCKS;
pub use matmul::{Factor, GemmScales, Orientation};
pub use matrix_view::MatrixView;
pub use memory::{BufferView, DeviceBuffer, ElementType};
pub use ops::{AdamWUpdate, AttentionSums, RopeShape, StepChecks};
pub use packed_sequences::PackedSequences;
