//! The driver and a device's context.

mod sys;

pub use sys::DeviceMemoryInfo;
pub(super) use sys::{ComputeCapability, CudaContext, CudaDriver, nvrtc_is_present};
