//! A card through CUDA: a safe floor over the driver and cublasLt, and the kernels as operations. Knows no model.
//!
//! Libraries are loaded at run time, so that one binary runs with and without a driver. Unsafe code lies in the files named
//! `sys.rs`. An operation only queues work; what waits says so. An error may be that of earlier work.

mod context;
mod driver;
mod error;
mod matmul;
mod memory;
mod ops;
mod program;
mod sys;

use context::NEEDED;
pub use context::{Copies, Copying, Device, Mark, Staging, cuda_devices};
pub use error::DeviceError;
pub use matmul::{Factor, Read};
pub use memory::{Buffer, Element, View};
pub use ops::{BLOCKS, Packed, Rows, Update};
