//! CUDA: safe wrappers of the driver and cublasLt, and the kernels as operations. Knows no model.
//!
//! Libraries are loaded at run time, so that one binary runs with and without a driver. Unsafe code is in the
//! files named `sys.rs`. Operations only queue work; the documentation of a function states if it blocks. An
//! operation may return the error of work that was queued earlier.

mod cuda_device;
mod driver;
mod error;
mod kernel_library;
mod matmul;
mod memory;
mod ops;
mod sys;

use cuda_device::DRIVER_REQUIREMENT;
pub use cuda_device::{
    CopyCompletion, CudaDevice, PendingCopy, PinnedPool, StagingBuffer, cuda_device_count,
};
pub use error::DeviceError;
pub use matmul::{Factor, Orientation};
pub use memory::{BufferView, DeviceBuffer, ElementType};
pub use ops::{AdamWUpdate, MAX_BLOCKS, MatrixView, PackedSequences};
