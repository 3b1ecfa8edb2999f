//! A CUDA device: context, streams, kernels, memory, matrix products and profile. Knows no kernel's
//! parameters and no model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::context::{ComputeCapability, CudaContext, CudaDriver, DeviceMemoryInfo};
use super::error::{DRIVER_REQUIREMENT, DeviceError};
use super::kernel_library::KernelLibrary;
use super::launch::KernelParams;
use super::matmul::CublasLt;
use super::memory::{DeviceBuffer, ElementType, MemoryPool};
use super::sys::{CudaEvent, CudaStream, DeviceMemory, LaunchConfig, PinnedMemory};
use crate::device::wait_tracker::WaitTracker;
use crate::locks::LockExt;

/// `CUDA_ERROR_NO_DEVICE`.
const ERROR_NO_DEVICE: u32 = 100;
/// In CUDA's encoding: 12000 is 12.0.
const MIN_DRIVER_VERSION: i32 = 12_000;
/// The compute capability of the committed PTX, that of the A100.
const MIN_COMPUTE_CAPABILITY: ComputeCapability = ComputeCapability { major: 8, minor: 0 };

/// Returns the number of CUDA devices.
///
/// # Errors
///
/// Returns the reason if no driver is installed, or if it can't be used.
pub fn cuda_device_count() -> Result<usize, DeviceError> {
    open_driver("cuda")?.device_count("cuda")
}

/// Initialises the driver and checks its version first, because calls fail with misleading errors on an old
/// driver.
fn open_driver(device: &str) -> Result<CudaDriver, DeviceError> {
    let cuda_driver = CudaDriver::new(device)?;
    if cuda_driver.version < MIN_DRIVER_VERSION {
        return Err(DeviceError::Incompatible {
            device: device.to_owned(),
            found: cuda_driver.describe(),
            required: DRIVER_REQUIREMENT.to_owned(),
            code: None,
        });
    }
    Ok(cuda_driver)
}

/// A CUDA device in use. Work is queued in one stream; background copies to the host use a second stream.
#[derive(Debug)]
pub struct CudaDevice {
    // Fields are dropped in this order. The context must be last.
    cublaslt: CublasLt,
    kernels: KernelLibrary,
    pool: Arc<MemoryPool>,
    pub(super) compute_stream: CudaStream,
    copy_stream: CudaStream,
    context: Arc<CudaContext>,
    profile: Mutex<Option<KernelProfile>>,
}

/// Time and number of launches of each kernel.
#[derive(Debug, Default)]
struct KernelProfile {
    previous_end: Option<Instant>,
    kernels: BTreeMap<String, KernelTime>,
}

/// Time and launches of one kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelTime {
    /// Time of all launches together.
    pub total: Duration,
    /// Number of launches.
    pub launches: u64,
}

impl CudaDevice {
    /// Opens the CUDA device with this ordinal and loads the kernels. `wait_tracker` records every call that
    /// may block.
    ///
    /// # Errors
    ///
    /// Returns the reason if the device or its driver can't be used.
    pub fn new(ordinal: usize, wait_tracker: Arc<WaitTracker>) -> Result<Arc<CudaDevice>, DeviceError> {
        let name = format!("cuda:{ordinal}");
        let cuda_driver = open_driver(&name)?;
        let count = cuda_driver.device_count(&name)?;
        if ordinal >= count {
            let reason = match count {
                0 => "there is no CUDA device".to_owned(),
                1 => "the only device is `cuda:0`".to_owned(),
                _ => format!("there are {count} devices, the last one is `cuda:{}`", count - 1),
            };
            // If there is no device at all, one may have fallen off the bus and may come back. A higher
            // ordinal will not appear later.
            let code = (count == 0).then_some(ERROR_NO_DEVICE);
            return Err(DeviceError::Unavailable { device: name, reason, code });
        }
        let context = CudaContext::new(cuda_driver, ordinal, wait_tracker)?;
        if context.compute_capability < MIN_COMPUTE_CAPABILITY {
            return Err(DeviceError::Incompatible {
                device: name,
                found: format!("{} of compute capability {}", context.gpu_name, context.compute_capability),
                required: "a GPU of compute capability 8.0 or later".to_owned(),
                code: None,
            });
        }
        let pool = MemoryPool::new(Arc::clone(&context));
        Ok(Arc::new(CudaDevice {
            cublaslt: CublasLt::new(&context)?,
            kernels: KernelLibrary::load(&context)?,
            compute_stream: CudaStream::new(&context)?,
            copy_stream: CudaStream::new(&context)?,
            pool,
            context,
            profile: Mutex::default(),
        }))
    }

    /// Returns the device's name for people: "cuda:0 (NVIDIA H100 80GB HBM3, compute capability 9.0, driver
    /// 12.8)".
    pub fn name(&self) -> String {
        let CudaContext { device_name, gpu_name, compute_capability, .. } = &*self.context;
        format!(
            "{device_name} ({gpu_name}, compute capability {compute_capability}, {})",
            self.context.driver_text()
        )
    }

    /// Makes the context current on the calling thread. Call it on each thread before the first use of the
    /// device.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind()
    }

    /// Returns free and total device memory.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn memory_info(&self) -> Result<DeviceMemoryInfo, DeviceError> {
        self.context.memory_info()
    }

    /// Allocates a buffer of `len` elements. Its content is undefined.
    ///
    /// # Errors
    ///
    /// Returns the driver's error, [`DeviceError::OutOfMemory`] among others.
    pub fn buffer(&self, element: ElementType, len: usize) -> Result<DeviceBuffer, DeviceError> {
        self.pool.buffer(element, len)
    }

    /// Allocates a buffer of `len` elements and fills it with zeros.
    ///
    /// # Errors
    ///
    /// Returns the driver's error, [`DeviceError::OutOfMemory`] among others.
    pub fn zeros(&self, element: ElementType, len: usize) -> Result<DeviceBuffer, DeviceError> {
        let buffer = self.buffer(element, len)?;
        self.fill(&buffer, 0)?;
        Ok(buffer)
    }

    /// Sets every byte of the buffer to `value`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn fill(&self, buffer: &DeviceBuffer, value: u8) -> Result<(), DeviceError> {
        self.fill_range(buffer, 0, buffer.len(), value)
    }

    /// Sets every byte of the elements `from` to `from + len` to `value`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn fill_range(
        &self,
        buffer: &DeviceBuffer,
        from: usize,
        len: usize,
        value: u8,
    ) -> Result<(), DeviceError> {
        let element_bytes = buffer.element().size_bytes();
        if len == 0 {
            return Ok(());
        }
        self.compute_stream.fill(device_memory(buffer), from * element_bytes, len * element_bytes, value)
    }

    /// Copies `from` to the buffer, starting at element `offset`. Blocks until the copy is complete.
    ///
    /// The length of `from` must be a multiple of the element size.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn upload(&self, buffer: &DeviceBuffer, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        if from.is_empty() {
            return Ok(());
        }
        self.compute_stream.upload(device_memory(buffer), offset * buffer.element().size_bytes(), from)
    }

    /// Copies the whole buffer to the host. Blocks until the copy is complete.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn download(&self, buffer: &DeviceBuffer) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; buffer.len() * buffer.element().size_bytes()];
        if !bytes.is_empty() {
            self.compute_stream.download(device_memory(buffer), 0, &mut bytes)?;
        }
        Ok(bytes)
    }

    /// Blocks until all queued work is complete.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.compute_stream.synchronize()
    }

    /// Makes work that is queued from now on wait for a background copy. Does not block the host.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn wait_for_copy(&self, completion: &CopyCompletion) -> Result<(), DeviceError> {
        self.compute_stream.wait_event(&completion.event)
    }

    /// Returns cached memory to the driver.
    pub fn release_caches(&self) {
        self.cublaslt.release_workspace();
        self.pool.release_free();
    }

    pub(super) fn cublaslt(&self) -> &CublasLt {
        &self.cublaslt
    }

    pub(super) fn pool(&self) -> &Arc<MemoryPool> {
        &self.pool
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Queues a kernel. Does nothing if the grid is empty.
    pub(super) fn launch(
        &self,
        name: &str,
        config: LaunchConfig,
        params: KernelParams,
    ) -> Result<(), DeviceError> {
        if config.grid.contains(&0) {
            return Ok(());
        }
        let Some((known_name, kernel)) = self.kernels.kernel(name) else {
            let (device, detail) = (self.context.device_name.clone(), format!("no kernel is named `{name}`"));
            return Err(DeviceError::CallFailed { device, call: "cuModuleGetFunction", detail, code: None });
        };
        self.compute_stream.launch(kernel, config, params.values())?;
        self.record_profile(known_name)
    }

    /// Starts to measure kernels. Until [`CudaDevice::take_profile`], every launch blocks until the kernel
    /// has ended.
    pub fn start_profile(&self) {
        drop(self.synchronize());
        *self.profile.locked() =
            Some(KernelProfile { previous_end: Some(Instant::now()), ..KernelProfile::default() });
    }

    /// Stops measuring. Returns the name and the time of each kernel, the longest total time first. Matrix
    /// products are listed as `matmul`.
    pub fn take_profile(&self) -> Vec<(String, KernelTime)> {
        let profile = self.profile.locked().take().unwrap_or_default();
        let mut kernels: Vec<(String, KernelTime)> = profile.kernels.into_iter().collect();
        kernels.sort_by_key(|(_, time)| std::cmp::Reverse(time.total));
        kernels
    }

    /// Adds a launch to the profile, if one is being measured. Blocks until the kernel has ended.
    pub(super) fn record_profile(&self, name: &str) -> Result<(), DeviceError> {
        let mut profile = self.profile.locked();
        let Some(profile) = profile.as_mut() else { return Ok(()) };
        self.compute_stream.synchronize()?;
        let now = Instant::now();
        let time = profile.previous_end.replace(now).map_or(Duration::ZERO, |previous| now - previous);
        let entry = profile.kernels.entry(name.to_owned()).or_default();
        entry.total += time;
        entry.launches += 1;
        Ok(())
    }
}

fn device_memory(buffer: &DeviceBuffer) -> &DeviceMemory {
    buffer.memory()
}

/// A pinned host buffer of 32-bit words for asynchronous copies.
#[derive(Debug)]
pub struct StagingBuffer {
    pinned: PinnedMemory,
}

impl StagingBuffer {
    /// Allocates a buffer of `capacity_words` words, or a few more.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn new(device: &CudaDevice, capacity_words: usize) -> Result<StagingBuffer, DeviceError> {
        Ok(StagingBuffer { pinned: PinnedMemory::new(device.context(), capacity_words * 4)? })
    }

    /// Returns the capacity in words.
    pub fn capacity_words(&self) -> usize {
        self.pinned.len_bytes() / 4
    }

    /// Begins a copy of `words` to the device. First blocks until the previous copy through this buffer is
    /// complete.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn begin_upload(
        &mut self,
        device: &CudaDevice,
        to: &DeviceBuffer,
        words: &[u32],
    ) -> Result<(), DeviceError> {
        self.pinned.as_words_mut()?[..words.len()].copy_from_slice(words);
        if words.is_empty() {
            return Ok(());
        }
        device.compute_stream.begin_upload(device_memory(to), 0, &self.pinned, words.len() * 4)
    }

    /// Begins a copy of a whole device buffer to the host.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn begin_download(&mut self, device: &CudaDevice, from: &DeviceBuffer) -> Result<(), DeviceError> {
        let bytes = from.len() * from.element().size_bytes();
        device.compute_stream.begin_download(device_memory(from), 0, &mut self.pinned, 0, bytes)
    }

    /// Blocks until the copy that was begun last is complete, and returns the words.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn wait_for_words(&self) -> Result<&[u32], DeviceError> {
        self.pinned.as_words()
    }
}

/// A background copy of device buffers to the host. It runs in its own stream while other work continues.
#[derive(Debug)]
pub struct PendingCopy {
    pinned: PinnedMemory,
    len_words: usize,
}

/// The event that marks the end of a background copy.
#[derive(Debug)]
pub struct CopyCompletion {
    event: CudaEvent,
}

/// Pinned memory for background copies. Freed memory is kept, because pinning memory takes longer than
/// copying it.
#[derive(Debug, Default)]
pub struct PinnedPool {
    free: Mutex<Vec<PinnedMemory>>,
}

impl PinnedPool {
    /// Queues a copy of the buffers that starts after all work queued so far. Returns immediately.
    ///
    /// The caller must keep the buffers alive and unchanged until later work waits for the completion
    /// ([`CudaDevice::wait_for_copy`]).
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn begin_copy(
        &self,
        device: &CudaDevice,
        from: &[&DeviceBuffer],
    ) -> Result<(PendingCopy, CopyCompletion), DeviceError> {
        let bytes: usize = from.iter().map(|buffer| buffer.len() * buffer.element().size_bytes()).sum();
        let cached = self.free.locked().pop().filter(|pinned| pinned.len_bytes() >= bytes);
        let mut pinned = match cached {
            Some(pinned) => pinned,
            None => PinnedMemory::new(device.context(), bytes)?,
        };
        let queued_work = CudaEvent::new(device.context())?;
        queued_work.record(&device.compute_stream)?;
        device.copy_stream.wait_event(&queued_work)?;
        let mut offset_bytes = 0;
        for buffer in from {
            let bytes = buffer.len() * buffer.element().size_bytes();
            device.copy_stream.begin_download(device_memory(buffer), 0, &mut pinned, offset_bytes, bytes)?;
            offset_bytes += bytes;
        }
        let event = CudaEvent::new(device.context())?;
        event.record(&device.copy_stream)?;
        Ok((PendingCopy { pinned, len_words: bytes / 4 }, CopyCompletion { event }))
    }
}

impl PendingCopy {
    /// Blocks until the copy is complete and returns the words. The pinned memory goes back to `pool`.
    ///
    /// # Errors
    ///
    /// Returns the driver's error.
    pub fn finish(self, pool: &PinnedPool) -> Result<Vec<u32>, DeviceError> {
        let words = self.pinned.as_words()?[..self.len_words].to_vec();
        pool.free.locked().push(self.pinned);
        Ok(words)
    }
}
