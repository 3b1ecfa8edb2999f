//! A card through CUDA: a safe floor over the driver and cublasLt, and the kernels as operations. Knows no model.
//!
//! Libraries are loaded at run time, so that one binary runs with and without a driver. Unsafe code lies in the files named
//! `sys.rs`. An operation only queues work; what waits says so. An error may be that of earlier work.

mod cuda_device;
mod driver;
mod error;
mod matmul;
mod memory;
mod ops;
mod program;
mod sys;

use cuda_device::DRIVER_REQUIREMENT;
pub use cuda_device::{
    CopyCompletion, CudaDevice, PendingCopy, PinnedPool, StagingBuffer, cuda_device_count,
};
pub use error::DeviceError;
pub use matmul::{Factor, Orientation};
pub use memory::{BufferView, DeviceBuffer, ElementType};
pub use ops::{AdamWUpdate, MAX_BLOCKS, MatrixView, PackedSequences};
