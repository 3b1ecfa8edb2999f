//! Types that own the driver's handles within a context: streams, events, memory. The public interface is
//! safe: no use of these types can corrupt the host's memory. Knows no kernel and no model.

use std::ffi::c_void;
use std::sync::Arc;

use super::context::CudaContext;
use super::driver::*;
use super::error::DeviceError;
use super::kernel_library::CudaKernel;

/// `CU_STREAM_NON_BLOCKING` and `CU_EVENT_DISABLE_TIMING`.
const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;

/// A stream: a queue of work that is not ordered with other streams by itself.
#[derive(Debug)]
pub(super) struct CudaStream {
    context: Arc<CudaContext>,
    handle: usize,
}

impl CudaStream {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<CudaStream, DeviceError> {
        let mut handle = 0;
        // SAFETY: the out-pointer is valid for the duration of the call.
        context.check("cuStreamCreate", unsafe { cuStreamCreate(&raw mut handle, STREAM_NON_BLOCKING) })?;
        Ok(CudaStream { context: Arc::clone(context), handle })
    }

    /// The raw handle, for cublasLt.
    pub(super) fn handle(&self) -> usize {
        self.handle
    }

    /// Blocks until all work of the stream is complete.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: the stream is alive as long as `self`.
        self.context.check("cuStreamSynchronize", unsafe { cuStreamSynchronize(self.handle) })
    }

    /// Returns the error of failed work, if any. Does not block.
    pub(super) fn query(&self) -> Result<(), DeviceError> {
        const NOT_READY: u32 = 600;
        // SAFETY: the stream is alive as long as `self`.
        match unsafe { cuStreamQuery(self.handle) } {
            NOT_READY => Ok(()),
            code => self.context.check("cuStreamQuery", code),
        }
    }

    /// Makes later work of this stream wait for the event. Does not block the host.
    pub(super) fn wait_event(&self, event: &CudaEvent) -> Result<(), DeviceError> {
        // SAFETY: both handles are alive, because both values are borrowed.
        let code = unsafe { cuStreamWaitEvent(self.handle, event.handle, 0) };
        self.context.check("cuStreamWaitEvent", code)
    }

    /// Sets `len_bytes` bytes to `value`, starting at byte `offset` of `memory`.
    pub(super) fn fill(
        &self,
        memory: &DeviceMemory,
        offset: usize,
        len_bytes: usize,
        value: u8,
    ) -> Result<(), DeviceError> {
        let to = memory.checked_address(offset, len_bytes);
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: `checked_address` ensures that the range is within live device memory.
        let code = unsafe { cuMemsetD8Async(to, value, len_bytes, self.handle) };
        self.context.check("cuMemsetD8Async", code)
    }

    /// Copies from host memory that need not be pinned. Blocks until the copy is complete.
    pub(super) fn upload(
        &self,
        memory: &DeviceMemory,
        offset: usize,
        from: &[u8],
    ) -> Result<(), DeviceError> {
        let to = memory.checked_address(offset, from.len());
        {
            let _waiting = self.context.wait_tracker.begin_wait();
            // SAFETY: `checked_address` ensures that the range is within live device memory. The source is
            // borrowed until this function returns. If the call fails, no copy is queued; otherwise
            // `synchronize` below waits for it.
            let code = unsafe { cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), self.handle) };
            self.context.check("cuMemcpyHtoDAsync", code)?;
        }
        self.synchronize()
    }

    /// Copies to host memory that need not be pinned. Blocks until the copy is complete.
    pub(super) fn download(
        &self,
        memory: &DeviceMemory,
        offset: usize,
        to: &mut [u8],
    ) -> Result<(), DeviceError> {
        let from = memory.checked_address(offset, to.len());
        {
            let _waiting = self.context.wait_tracker.begin_wait();
            // SAFETY: `checked_address` ensures that the range is within live device memory. The destination
            // is borrowed mutably until this function returns. If the call fails, no copy is queued;
            // otherwise `synchronize` below waits for it.
            let code = unsafe { cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), self.handle) };
            self.context.check("cuMemcpyDtoHAsync", code)?;
        }
        self.synchronize()
    }

    /// Begins a copy of the first `len_bytes` bytes of pinned memory.
    pub(super) fn begin_upload(
        &self,
        memory: &DeviceMemory,
        offset: usize,
        from: &PinnedMemory,
        len_bytes: usize,
    ) -> Result<(), DeviceError> {
        let to = memory.checked_address(offset, len_bytes);
        assert!(len_bytes <= from.len_bytes, "a copy is not within its pinned memory");
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: both ranges are within live memory. The host does not read, write or free the pinned range
        // before `copy_done` has completed.
        let code = unsafe { cuMemcpyHtoDAsync_v2(to, from.address as *const c_void, len_bytes, self.handle) };
        self.context.check("cuMemcpyHtoDAsync", code)?;
        self.record_done(&from.copy_done)
    }

    /// Begins a copy to pinned memory, starting at byte `pinned_offset`.
    pub(super) fn begin_download(
        &self,
        memory: &DeviceMemory,
        offset: usize,
        to: &mut PinnedMemory,
        pinned_offset: usize,
        len_bytes: usize,
    ) -> Result<(), DeviceError> {
        let from = memory.checked_address(offset, len_bytes);
        assert!(
            pinned_offset.checked_add(len_bytes).is_some_and(|end| end <= to.len_bytes),
            "a copy is not within its pinned memory"
        );
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: both ranges are within live memory. The host does not read, write or free the pinned range
        // before `copy_done` has completed.
        let code = unsafe {
            cuMemcpyDtoHAsync_v2((to.address + pinned_offset) as *mut c_void, from, len_bytes, self.handle)
        };
        self.context.check("cuMemcpyDtoHAsync", code)?;
        self.record_done(&to.copy_done)
    }

    /// Records `done`. If that fails, blocks until the copy is complete.
    fn record_done(&self, done: &CudaEvent) -> Result<(), DeviceError> {
        done.record(self).inspect_err(|_| drop(self.synchronize()))
    }

    /// Queues a kernel. Parameters have at most 8 bytes each. A kernel with more parameters than `params`
    /// gets zeros for the rest.
    pub(super) fn launch(
        &self,
        kernel: &CudaKernel,
        config: LaunchConfig,
        params: &[u64],
    ) -> Result<(), DeviceError> {
        let mut values = [0_u64; MAX_PARAMS];
        values[..params.len()].copy_from_slice(params);
        let mut pointers = values.each_mut().map(|value| std::ptr::from_mut(value).cast::<c_void>());
        let [x, y, z] = config.grid;
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: the kernel keeps its module loaded. The driver reads as many parameters as the kernel has,
        // at most 8 bytes each, and `values` has `MAX_PARAMS` of them. The kernel itself touches device
        // memory only.
        let code = unsafe {
            cuLaunchKernel(
                kernel.handle,
                x,
                y,
                z,
                config.block_threads,
                1,
                1,
                config.shared_bytes,
                self.handle,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check("cuLaunchKernel", code)
    }
}

/// More than any kernel has; the largest has 19 parameters.
const MAX_PARAMS: usize = 32;

/// Launch configuration: number of blocks, threads of a block, dynamic shared memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LaunchConfig {
    pub(super) grid: [u32; 3],
    pub(super) block_threads: u32,
    pub(super) shared_bytes: u32,
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: the stream is destroyed exactly once. Queued work still completes.
            unsafe { cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// An event that can be recorded in a stream.
#[derive(Debug)]
pub(super) struct CudaEvent {
    context: Arc<CudaContext>,
    handle: usize,
}

impl CudaEvent {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<CudaEvent, DeviceError> {
        let mut handle = 0;
        // SAFETY: the out-pointer is valid for the duration of the call.
        context.check("cuEventCreate", unsafe { cuEventCreate(&raw mut handle, EVENT_DISABLE_TIMING) })?;
        Ok(CudaEvent { context: Arc::clone(context), handle })
    }

    /// Records the event: it completes after the work that is queued so far.
    pub(super) fn record(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        // SAFETY: both handles are alive, because both values are borrowed.
        self.context.check("cuEventRecord", unsafe { cuEventRecord(self.handle, stream.handle) })
    }

    /// Blocks until the event has completed. An event that was never recorded counts as completed.
    pub(super) fn synchronize(&self) -> Result<(), DeviceError> {
        let _waiting = self.context.wait_tracker.begin_wait();
        // SAFETY: the event is alive as long as `self`.
        self.context.check("cuEventSynchronize", unsafe { cuEventSynchronize(self.handle) })
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: the event is destroyed exactly once.
            unsafe { cuEventDestroy_v2(self.handle) };
        }
    }
}

/// An allocation of device memory.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    context: Arc<CudaContext>,
    address: u64,
    len_bytes: usize,
}

impl DeviceMemory {
    pub(super) fn new(context: &Arc<CudaContext>, len_bytes: usize) -> Result<DeviceMemory, DeviceError> {
        let mut address = 0;
        let _waiting = context.wait_tracker.begin_wait();
        // SAFETY: the out-pointer is valid for the duration of the call.
        context.check("cuMemAlloc", unsafe { cuMemAlloc_v2(&raw mut address, len_bytes) })?;
        Ok(DeviceMemory { context: Arc::clone(context), address, len_bytes })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Returns the address of a range. Panics if the range is not within this memory.
    fn checked_address(&self, offset: usize, len_bytes: usize) -> u64 {
        assert!(
            offset.checked_add(len_bytes).is_some_and(|end| end <= self.len_bytes),
            "{len_bytes} bytes from byte {offset} are not within {} bytes of device memory",
            self.len_bytes
        );
        self.address + offset as u64
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            let _waiting = self.context.wait_tracker.begin_wait();
            // SAFETY: the memory is freed exactly once. The driver waits for work that uses it.
            unsafe { cuMemFree_v2(self.address) };
        }
    }
}

/// Pinned host memory, which the device can copy asynchronously. Every access of the host first waits for the
/// last copy.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    context: Arc<CudaContext>,
    address: usize,
    len_bytes: usize,
    copy_done: CudaEvent,
}

impl PinnedMemory {
    pub(super) fn new(context: &Arc<CudaContext>, len_bytes: usize) -> Result<PinnedMemory, DeviceError> {
        let copy_done = CudaEvent::new(context)?;
        let mut start = std::ptr::null_mut();
        let len_bytes = len_bytes.max(8).next_multiple_of(8);
        let _waiting = context.wait_tracker.begin_wait();
        // SAFETY: the out-pointer is valid; no flags are set.
        let code = unsafe { cuMemHostAlloc(&raw mut start, len_bytes, 0) };
        context.check("cuMemHostAlloc", code)?;
        // SAFETY: the driver has allocated `len_bytes` bytes there. Zeros make the memory initialised.
        unsafe { start.cast::<u8>().write_bytes(0, len_bytes) };
        Ok(PinnedMemory {
            context: Arc::clone(context),
            address: start.expose_provenance(),
            len_bytes,
            copy_done,
        })
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The memory as 32-bit words. Blocks until the last copy is complete.
    pub(super) fn as_words(&self) -> Result<&[u32], DeviceError> {
        self.context.bind()?;
        self.copy_done.synchronize()?;
        // SAFETY: the memory is allocated, zeroed at the start, and aligned to a page. No copy to it is in
        // progress, and none can begin while the slice is borrowed: `CudaStream::begin_download` borrows
        // mutably.
        Ok(unsafe { std::slice::from_raw_parts(self.address as *const u32, self.len_bytes / 4) })
    }

    /// The memory as mutable 32-bit words. Blocks until the last copy is complete.
    pub(super) fn as_words_mut(&mut self) -> Result<&mut [u32], DeviceError> {
        self.context.bind()?;
        self.copy_done.synchronize()?;
        // SAFETY: the memory is allocated, zeroed at the start, and aligned to a page. No copy is in
        // progress, and `self` is borrowed mutably, so the slice is unique.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.address as *mut u32, self.len_bytes / 4) })
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() && self.copy_done.synchronize().is_ok() {
            // SAFETY: the memory is freed exactly once and no copy is in progress. If that can't be verified,
            // the memory is leaked.
            unsafe { cuMemFreeHost(self.address as *mut c_void) };
        }
    }
}
