//! Owners of what the driver hands out: contexts, streams, events, memory. Unsafe inside, safe
//! outside: whatever a caller does with these types, the host's memory stays whole. Knows no kernel and no model.

use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, OnceLock};

use super::driver::*;
use super::error::DeviceError;
use super::program::CudaKernel;
use crate::device::WaitTracker;

/// `CU_STREAM_NON_BLOCKING`, `CU_EVENT_DISABLE_TIMING`.
const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`, and `_MINOR`.
const COMPUTE_CAPABILITY_MAJOR: i32 = 75;
const COMPUTE_CAPABILITY_MINOR: i32 = 76;

/// The driver's name for a code.
fn error_name(code: u32) -> String {
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: a place for the answer, which is null or a string that is never freed.
    let known = unsafe { cuGetErrorName(code, &raw mut name) } == 0 && !name.is_null();
    match known {
        // SAFETY: as above.
        true => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
        false => "an error unknown to the driver".to_owned(),
    }
}

/// The driver, begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct CudaDriver {
    /// As CUDA counts: 12080 is 12.8.
    pub(super) version: i32,
}

impl CudaDriver {
    /// The error's device is `device`.
    pub(super) fn new(device: &str) -> Result<CudaDriver, DeviceError> {
        // SAFETY: loads a library by its public names; its start-up code asks for nothing.
        let present = *DRIVER_PRESENT.get_or_init(|| unsafe { cudarc::driver::sys::is_culib_present() });
        if !present {
            let why = "no NVIDIA driver was found: the loader knows no `libcuda.so`".to_owned();
            return Err(DeviceError::Unavailable { device: device.to_owned(), why, code: None });
        }
        let mut version = 0;
        // SAFETY: a place for the answer; this call is allowed before the next one.
        let asked = unsafe { cuDriverGetVersion(&raw mut version) };
        let instance = CudaDriver { version: if asked == 0 { version } else { 0 } };
        // SAFETY: the flags must be 0, and are.
        instance.check(device, "cuInit", unsafe { cuInit(0) })?;
        Ok(instance)
    }

    pub(super) fn describe(self) -> String {
        format!("a driver for CUDA {}.{}", self.version / 1000, self.version % 1000 / 10)
    }

    pub(super) fn check(self, device: &str, call: &'static str, code: u32) -> Result<(), DeviceError> {
        match code {
            0 => Ok(()),
            _ => Err(DeviceError::from_driver(device, call, code, error_name(code), &self.describe())),
        }
    }

    pub(super) fn device_count(self, device: &str) -> Result<usize, DeviceError> {
        let mut count = 0;
        // SAFETY: a place for the answer.
        self.check(device, "cuDeviceGetCount", unsafe { cuDeviceGetCount(&raw mut count) })?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

/// Whether the loader finds NVRTC.
pub(super) fn nvrtc_is_present() -> bool {
    // SAFETY: as of the driver.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

static DRIVER_PRESENT: OnceLock<bool> = OnceLock::new();

/// A device's primary context, retained.
#[derive(Debug)]
pub(super) struct CudaContext {
    cuda_driver: CudaDriver,
    ordinal: i32,
    handle: usize,
    /// As users name it: `cuda:0`.
    pub(super) device_name: String,
    /// The card's name, and its compute capability.
    pub(super) gpu_name: String,
    pub(super) compute_capability: (i32, i32),
    pub(super) wait_tracker: Arc<WaitTracker>,
}

impl CudaContext {
    pub(super) fn new(
        instance: CudaDriver,
        number: usize,
        pulse: Arc<WaitTracker>,
    ) -> Result<Arc<CudaContext>, DeviceError> {
        let device = format!("cuda:{number}");
        let mut ordinal = 0;
        let _waiting = pulse.begin_wait();
        // SAFETY: places for the answers, here and below; the name is ended by a NUL within its length.
        let code = unsafe { cuDeviceGet(&raw mut ordinal, i32::try_from(number).unwrap_or(i32::MAX)) };
        instance.check(&device, "cuDeviceGet", code)?;
        let mut name = [0_u8; 256];
        // SAFETY: as above.
        let code = unsafe { cuDeviceGetName(name.as_mut_ptr().cast(), 255, ordinal) };
        instance.check(&device, "cuDeviceGetName", code)?;
        let card = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().trim().to_owned();
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: as above.
            let code = unsafe { cuDeviceGetAttribute(&raw mut value, which, ordinal) };
            instance.check(&device, "cuDeviceGetAttribute", code).map(|()| value)
        };
        let capability = (attribute(COMPUTE_CAPABILITY_MAJOR)?, attribute(COMPUTE_CAPABILITY_MINOR)?);
        let mut handle = 0;
        // SAFETY: as above.
        let code = unsafe { cuDevicePrimaryCtxRetain(&raw mut handle, ordinal) };
        instance.check(&device, "cuDevicePrimaryCtxRetain", code)?;
        drop(_waiting);
        let context = Arc::new(CudaContext {
            cuda_driver: instance,
            ordinal,
            handle,
            device_name: device,
            gpu_name: card,
            compute_capability: capability,
            wait_tracker: pulse,
        });
        context.bind()?;
        Ok(context)
    }

    pub(super) fn driver_text(&self) -> String {
        let version = self.cuda_driver.version;
        format!("driver {}.{}", version / 1000, version % 1000 / 10)
    }

    pub(super) fn check(&self, call: &'static str, code: u32) -> Result<(), DeviceError> {
        self.cuda_driver.check(&self.device_name, call, code)
    }

    /// Makes it the calling thread's own. Must be done on each thread before anything else.
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained for as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { cuCtxSetCurrent(self.handle) })
    }

    /// Bytes, free and in all.
    pub(super) fn memory_info(&self) -> Result<(usize, usize), DeviceError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: places for the answers.
        self.check("cuMemGetInfo", unsafe { cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }
}

impl Drop for CudaContext {
    fn drop(&mut self) {
        // An error of earlier work comes out here once more, and was told then.
        // SAFETY: retained once, released once; everything that lives in it holds an `Arc` of it.
        unsafe { cuDevicePrimaryCtxRelease_v2(self.ordinal) };
    }
}

/// A queue of work, which waits for no other one by itself.
#[derive(Debug)]
pub(super) struct CudaStream {
    context: Arc<CudaContext>,
    handle: usize,
}

impl CudaStream {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<CudaStream, DeviceError> {
        let mut handle = 0;
        // SAFETY: a place for the answer.
        context.check("cuStreamCreate", unsafe { cuStreamCreate(&raw mut handle, STREAM_NON_BLOCKING) })?;
        Ok(CudaStream { context: Arc::clone(context), handle })
    }

    /// Handles go to cublasLt.
    pub(super) fn handle(&self) -> usize {
        self.handle
    }

    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: the stream lives.
        self.context.check("cuStreamSynchronize", unsafe { cuStreamSynchronize(self.handle) })
    }

    /// Whether work has failed, without waiting.
    pub(super) fn query(&self) -> Result<(), DeviceError> {
        const NOT_READY: u32 = 600;
        // SAFETY: the stream lives.
        match unsafe { cuStreamQuery(self.handle) } {
            NOT_READY => Ok(()),
            code => self.context.check("cuStreamQuery", code),
        }
    }

    /// What comes later in this stream waits for the event. Does not wait itself.
    pub(super) fn wait_event(&self, event: &CudaEvent) -> Result<(), DeviceError> {
        // SAFETY: both live.
        let code = unsafe { cuStreamWaitEvent(self.handle, event.handle, 0) };
        self.context.check("cuStreamWaitEvent", code)
    }

    pub(super) fn fill(
        &self,
        memory: &DeviceMemory,
        at: usize,
        bytes: usize,
        value: u8,
    ) -> Result<(), DeviceError> {
        let to = memory.checked_address(at, bytes);
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: `reach` has shown that the bytes lie within live device memory.
        let code = unsafe { cuMemsetD8Async(to, value, bytes, self.handle) };
        self.context.check("cuMemsetD8Async", code)
    }

    /// From memory that need not be pinned; waits until it has arrived.
    pub(super) fn upload(&self, memory: &DeviceMemory, at: usize, from: &[u8]) -> Result<(), DeviceError> {
        let to = memory.checked_address(at, from.len());
        {
            let _waiting = self.context.wait_tracker.begin_wait();
            // SAFETY: as of `fill`; the source outlives the wait below, which is done even after an error.
            let code = unsafe { cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.handle) };
            self.context.check("cuMemcpyHtoDAsync", code)?;
        }
        self.synchronize()
    }

    /// To memory that need not be pinned; waits until it has arrived.
    pub(super) fn download(
        &self,
        memory: &DeviceMemory,
        at: usize,
        to: &mut [u8],
    ) -> Result<(), DeviceError> {
        let from = memory.checked_address(at, to.len());
        {
            let _waiting = self.context.wait_tracker.begin_wait();
            // SAFETY: as of `upload`.
            let code = unsafe { cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.handle) };
            self.context.check("cuMemcpyDtoHAsync", code)?;
        }
        self.synchronize()
    }

    /// Begins a copy of pinned memory's first bytes.
    pub(super) fn begin_upload(
        &self,
        memory: &DeviceMemory,
        at: usize,
        from: &PinnedMemory,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let to = memory.checked_address(at, bytes);
        assert!(bytes <= from.len_bytes, "a copy reaches beyond its pinned memory");
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: both ranges lie within live memory, and the pinned one is neither read nor written nor freed by the host
        // before `done` has come.
        let code = unsafe { cuMemcpyHtoDAsync_v2(to, from.address as *const c_void, bytes, self.handle) };
        self.context.check("cuMemcpyHtoDAsync", code)?;
        self.record_done(&from.copy_done)
    }

    /// Begins a copy to pinned memory, from `offset` on.
    pub(super) fn begin_download(
        &self,
        memory: &DeviceMemory,
        at: usize,
        to: &mut PinnedMemory,
        offset: usize,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        let from = memory.checked_address(at, bytes);
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= to.len_bytes),
            "a copy reaches beyond its pinned memory"
        );
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: as of `begin_upload`.
        let code =
            unsafe { cuMemcpyDtoHAsync_v2((to.address + offset) as *mut c_void, from, bytes, self.handle) };
        self.context.check("cuMemcpyDtoHAsync", code)?;
        self.record_done(&to.copy_done)
    }

    /// Where a copy can't be marked, it is waited for.
    fn record_done(&self, done: &CudaEvent) -> Result<(), DeviceError> {
        done.record(self).inspect_err(|_| drop(self.synchronize()))
    }

    /// Puts a kernel into the queue. Parameters are at most 8 bytes each; a kernel that takes more of them than it is given
    /// gets zeros.
    pub(super) fn launch(
        &self,
        kernel: &CudaKernel,
        launch: LaunchConfig,
        params: &[u64],
    ) -> Result<(), DeviceError> {
        let mut values = [0_u64; MAX_PARAMS];
        values[..params.len()].copy_from_slice(params);
        let mut places = values.each_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        let [x, y, z] = launch.grid;
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: the kernel's module lives as long as the kernel. The driver reads as many parameters as the kernel has, of
        // at most 8 bytes each: there is a readable place for each. What the kernel does happens on the device.
        let code = unsafe {
            cuLaunchKernel(
                kernel.handle,
                x,
                y,
                z,
                launch.block_threads,
                1,
                1,
                launch.shared_bytes,
                self.handle,
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check("cuLaunchKernel", code)
    }
}

/// Our kernels have at most 19 parameters.
const MAX_PARAMS: usize = 32;

/// How a kernel is launched: blocks, threads of a block, dynamic shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaunchConfig {
    pub(super) grid: [u32; 3],
    pub(super) block_threads: u32,
    pub(super) shared_bytes: u32,
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created once, destroyed once; work in it goes on.
            unsafe { cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(super) struct CudaEvent {
    context: Arc<CudaContext>,
    handle: usize,
}

impl CudaEvent {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<CudaEvent, DeviceError> {
        let mut handle = 0;
        // SAFETY: a place for the answer.
        context.check("cuEventCreate", unsafe { cuEventCreate(&raw mut handle, EVENT_DISABLE_TIMING) })?;
        Ok(CudaEvent { context: Arc::clone(context), handle })
    }

    pub(super) fn record(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        // SAFETY: both live.
        self.context.check("cuEventRecord", unsafe { cuEventRecord(self.handle, stream.handle) })
    }

    /// Never recorded is done.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: the event lives.
        self.context.check("cuEventSynchronize", unsafe { cuEventSynchronize(self.handle) })
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: created once, destroyed once.
            unsafe { cuEventDestroy_v2(self.handle) };
        }
    }
}

/// Memory of the device.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: Arc<CudaContext>,
    address: u64,
    len_bytes: usize,
}

impl DeviceMemory {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        let mut at = 0;
        let _waiting = context.wait_tracker.begin_wait();
        // SAFETY: a place for the answer.
        context.check("cuMemAlloc", unsafe { cuMemAlloc_v2(&raw mut at, bytes) })?;
        Ok(DeviceMemory { context: Arc::clone(context), address: at, len_bytes: bytes })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The address of a range, which must lie inside.
    fn checked_address(&self, at: usize, bytes: usize) -> u64 {
        assert!(
            at.checked_add(bytes).is_some_and(|end| end <= self.len_bytes),
            "{bytes} bytes from {at} on do not lie within {} bytes of device memory",
            self.len_bytes
        );
        self.address + at as u64
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            let _waiting = self.context.wait_tracker.begin_wait();
            // SAFETY: allocated once, freed once; the driver waits for work that uses it.
            unsafe { cuMemFree_v2(self.address) };
        }
    }
}

/// Memory of the host that the device copies from and to by itself. Before the host touches it, the last copy is waited for.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    context: Arc<CudaContext>,
    address: usize,
    len_bytes: usize,
    copy_done: CudaEvent,
}

impl PinnedMemory {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<PinnedMemory, DeviceError> {
        let done = CudaEvent::new(context)?;
        let mut at = std::ptr::null_mut();
        let bytes = bytes.max(8).next_multiple_of(8);
        let _waiting = context.wait_tracker.begin_wait();
        // SAFETY: a place for the answer; all flags off. Zeroes make it initialised.
        let code = unsafe { cuMemHostAlloc(&raw mut at, bytes, 0) };
        context.check("cuMemHostAlloc", code)?;
        // SAFETY: as above.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        Ok(PinnedMemory {
            context: Arc::clone(context),
            address: at.expose_provenance(),
            len_bytes: bytes,
            copy_done: done,
        })
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    pub(super) fn as_words(&self) -> Result<&[u32], DeviceError> {
        self.context.bind()?;
        self.copy_done.synchronize()?;
        // SAFETY: allocated, initialised and aligned (a page). No copy to it is under way, and none can begin while the answer
        // is borrowed: `Stream::begin_download` borrows mutably.
        Ok(unsafe { std::slice::from_raw_parts(self.address as *const u32, self.len_bytes / 4) })
    }

    pub(super) fn as_words_mut(&mut self) -> Result<&mut [u32], DeviceError> {
        self.context.bind()?;
        self.copy_done.synchronize()?;
        // SAFETY: as of `read`, and borrowed mutably.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address as *mut u32, self.len_bytes / 4) })
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() && self.copy_done.synchronize().is_ok() {
            // SAFETY: allocated once, freed once, and no copy is under way. Where that can't be known, it stays allocated.
            unsafe { cuMemFreeHost(self.address as *mut c_void) };
        }
    }
}
