//! The driver and a device's context. The public interface is safe. Knows no stream and no memory.

use std::ffi::{CStr, c_char};
use std::sync::{Arc, OnceLock};

use crate::device::cuda::driver::*;
use crate::device::cuda::error::DeviceError;
use crate::device::wait_tracker::WaitTracker;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const COMPUTE_CAPABILITY_MAJOR: i32 = 75;
const COMPUTE_CAPABILITY_MINOR: i32 = 76;

/// The driver's name of an error code.
fn error_name(code: u32) -> String {
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: the out-pointer is valid. The driver sets it to null or to a static string.
    let known = unsafe { cuGetErrorName(code, &raw mut name) } == 0 && !name.is_null();
    if !known {
        return "an error unknown to the driver".to_owned();
    }
    // SAFETY: the pointer is not null, and the driver guarantees a static string that ends with a NUL.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// The initialised driver.
#[derive(Debug, Clone, Copy)]
pub(in crate::device::cuda) struct CudaDriver {
    /// In CUDA's encoding: 12080 is 12.8.
    pub(in crate::device::cuda) version: i32,
}

impl CudaDriver {
    /// Loads and initialises the driver. Errors name `device`.
    pub(in crate::device::cuda) fn new(device: &str) -> Result<CudaDriver, DeviceError> {
        // SAFETY: loads libcuda by its public names; its initialisers have no preconditions.
        let is_present = *DRIVER_PRESENT.get_or_init(|| unsafe { cudarc::driver::sys::is_culib_present() });
        if !is_present {
            let reason = "no NVIDIA driver was found: the loader does not find `libcuda.so`".to_owned();
            return Err(DeviceError::Unavailable { device: device.to_owned(), reason, code: None });
        }
        let mut version = 0;
        // SAFETY: the out-pointer is valid. This call is allowed before `cuInit`.
        let status = unsafe { cuDriverGetVersion(&raw mut version) };
        let driver = CudaDriver { version: if status == 0 { version } else { 0 } };
        // SAFETY: the flags are 0, as required.
        driver.check(device, "cuInit", unsafe { cuInit(0) })?;
        Ok(driver)
    }

    /// For error texts: "a driver for CUDA 12.8".
    pub(in crate::device::cuda) fn describe(self) -> String {
        format!("a driver for CUDA {}.{}", self.version / 1000, self.version % 1000 / 10)
    }

    /// Turns a result code of `call` into a result.
    pub(in crate::device::cuda) fn check(
        self,
        device: &str,
        call: &'static str,
        code: u32,
    ) -> Result<(), DeviceError> {
        match code {
            0 => Ok(()),
            _ => Err(DeviceError::from_driver(device, call, code, error_name(code), &self.describe())),
        }
    }

    /// Number of devices.
    pub(in crate::device::cuda) fn device_count(self, device: &str) -> Result<usize, DeviceError> {
        let mut count = 0;
        // SAFETY: the out-pointer is valid for the duration of the call.
        self.check(device, "cuDeviceGetCount", unsafe { cuDeviceGetCount(&raw mut count) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

/// Returns whether the loader finds NVRTC.
pub(in crate::device::cuda) fn nvrtc_is_present() -> bool {
    // SAFETY: loads libnvrtc by its public names; its initialisers have no preconditions.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

/// Whether the driver's library was found. Looked up once.
static DRIVER_PRESENT: OnceLock<bool> = OnceLock::new();

/// The features of a GPU, as CUDA counts them. 9.0 is the H100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::device::cuda) struct ComputeCapability {
    pub(in crate::device::cuda) major: i32,
    pub(in crate::device::cuda) minor: i32,
}

impl std::fmt::Display for ComputeCapability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemoryInfo {
    /// Bytes that no process uses.
    pub free_bytes: usize,
    /// All bytes.
    pub total_bytes: usize,
}

/// A device's primary context. It is retained until this value is dropped.
#[derive(Debug)]
pub(in crate::device::cuda) struct CudaContext {
    cuda_driver: CudaDriver,
    ordinal: i32,
    handle: usize,
    /// The device as users name it: `cuda:0`.
    pub(in crate::device::cuda) device_name: String,
    /// The GPU's product name.
    pub(in crate::device::cuda) gpu_name: String,
    pub(in crate::device::cuda) compute_capability: ComputeCapability,
    /// Records every call that may block.
    pub(in crate::device::cuda) wait_tracker: Arc<WaitTracker>,
}

impl CudaContext {
    pub(in crate::device::cuda) fn new(
        cuda_driver: CudaDriver,
        index: usize,
        wait_tracker: Arc<WaitTracker>,
    ) -> Result<Arc<CudaContext>, DeviceError> {
        let device_name = format!("cuda:{index}");
        let mut ordinal = 0;
        let waiting = wait_tracker.begin_wait();
        // SAFETY: the out-pointer is valid for the duration of the call.
        let code = unsafe { cuDeviceGet(&raw mut ordinal, i32::try_from(index).unwrap_or(i32::MAX)) };
        cuda_driver.check(&device_name, "cuDeviceGet", code)?;
        let mut name = [0_u8; 256];
        // SAFETY: the buffer is valid for 255 bytes. The driver ends the name with a NUL within this length.
        let code = unsafe { cuDeviceGetName(name.as_mut_ptr().cast(), 255, ordinal) };
        cuda_driver.check(&device_name, "cuDeviceGetName", code)?;
        let gpu_name =
            CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().trim().to_owned();
        let query = |attribute| {
            let mut value = 0;
            // SAFETY: the out-pointer is valid for the duration of the call.
            let code = unsafe { cuDeviceGetAttribute(&raw mut value, attribute, ordinal) };
            cuda_driver.check(&device_name, "cuDeviceGetAttribute", code).map(|()| value)
        };
        let compute_capability = ComputeCapability {
            major: query(COMPUTE_CAPABILITY_MAJOR)?,
            minor: query(COMPUTE_CAPABILITY_MINOR)?,
        };
        let mut handle = 0;
        // SAFETY: the out-pointer is valid for the duration of the call. `drop` releases the context.
        let code = unsafe { cuDevicePrimaryCtxRetain(&raw mut handle, ordinal) };
        cuda_driver.check(&device_name, "cuDevicePrimaryCtxRetain", code)?;
        drop(waiting);
        let context = Arc::new(CudaContext {
            cuda_driver,
            ordinal,
            handle,
            device_name,
            gpu_name,
            compute_capability,
            wait_tracker,
        });
        context.bind()?;
        Ok(context)
    }

    /// For the device's name: "driver 12.8".
    pub(in crate::device::cuda) fn driver_text(&self) -> String {
        let version = self.cuda_driver.version;
        format!("driver {}.{}", version / 1000, version % 1000 / 10)
    }

    /// Turns a result code of `call` into a result.
    pub(in crate::device::cuda) fn check(&self, call: &'static str, code: u32) -> Result<(), DeviceError> {
        self.cuda_driver.check(&self.device_name, call, code)
    }

    /// Makes the context current on the calling thread. Every thread must do so before any other call.
    pub(in crate::device::cuda) fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained as long as `self` is alive.
        self.check("cuCtxSetCurrent", unsafe { cuCtxSetCurrent(self.handle) })
    }

    /// Free and total memory.
    pub(in crate::device::cuda) fn memory_info(&self) -> Result<DeviceMemoryInfo, DeviceError> {
        let (mut free_bytes, mut total_bytes) = (0, 0);
        // SAFETY: both out-pointers are valid for the duration of the call.
        let code = unsafe { cuMemGetInfo_v2(&raw mut free_bytes, &raw mut total_bytes) };
        self.check("cuMemGetInfo", code)?;
        Ok(DeviceMemoryInfo { free_bytes, total_bytes })
    }
}

impl Drop for CudaContext {
    fn drop(&mut self) {
        // SAFETY: the context is released exactly once. Everything that uses it holds an `Arc` of it, so
        // nothing outlives it. The result is ignored: it may repeat an error that was reported before.
        unsafe { cuDevicePrimaryCtxRelease_v2(self.ordinal) };
    }
}
