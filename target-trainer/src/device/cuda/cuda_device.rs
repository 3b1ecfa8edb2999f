//! A card in use: its context, streams, kernels, memory and matrix products, and what it calls itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::DeviceError;
use super::matmul::CublasLt;
use super::memory::{DeviceBuffer, ElementType, MemoryPool};
use super::ops::KernelParams;
use super::program::KernelLibrary;
use super::sys::{CudaContext, CudaDriver, CudaEvent, CudaStream, DeviceMemory, LaunchConfig, PinnedMemory};
use crate::device::WaitTracker;

/// The oldest that the committed PTX and our calls fit: CUDA 12.0, and cards from the A100 on.
pub(super) const DRIVER_REQUIREMENT: &str = "a driver for CUDA 12.0 or later";
/// `CUDA_ERROR_NO_DEVICE`.
const ERROR_NO_DEVICE: u32 = 100;
const MIN_DRIVER_VERSION: i32 = 12_000;
const MIN_COMPUTE_CAPABILITY: (i32, i32) = (8, 0);

/// Cards that CUDA sees. The error says why none can be used.
pub fn cuda_device_count() -> Result<usize, DeviceError> {
    open_driver("cuda")?.device_count("cuda")
}

/// The driver's version is asked for first: an old one fails at things that have nothing to do with its age.
fn open_driver(device: &str) -> Result<CudaDriver, DeviceError> {
    let instance = CudaDriver::new(device)?;
    match instance.version < MIN_DRIVER_VERSION {
        true => Err(DeviceError::Incompatible {
            device: device.to_owned(),
            driver: instance.describe(),
            needed: DRIVER_REQUIREMENT.to_owned(),
            code: None,
        }),
        false => Ok(instance),
    }
}

/// A card in use. Work queues up in one stream; copies that nobody waits for go through another one.
#[derive(Debug)]
pub struct CudaDevice {
    // Dropped in this order: the context last.
    cublaslt: CublasLt,
    kernels: KernelLibrary,
    pool: Arc<MemoryPool>,
    pub(super) compute_stream: CudaStream,
    copy_stream: CudaStream,
    context: Arc<CudaContext>,
    take_profile: Mutex<Option<KernelProfile>>,
}

/// Time and launches of each kernel.
#[derive(Debug, Default)]
struct KernelProfile {
    previous_end: Option<Instant>,
    kernels: BTreeMap<String, (Duration, u64)>,
}

impl CudaDevice {
    pub fn new(number: usize, pulse: Arc<WaitTracker>) -> Result<Arc<CudaDevice>, DeviceError> {
        let name = format!("cuda:{number}");
        let instance = open_driver(&name)?;
        let count = instance.device_count(&name)?;
        if number >= count {
            let why = match count {
                0 => "there is no CUDA device".to_owned(),
                1 => "the only device there is is `cuda:0`".to_owned(),
                _ => format!("there are {count} devices, the last is `cuda:{}`", count - 1),
            };
            // No device at all may be one that has fallen off the bus; another number will not appear.
            let code = (count == 0).then_some(ERROR_NO_DEVICE);
            return Err(DeviceError::Unavailable { device: name, why, code });
        }
        let context = CudaContext::new(instance, number, pulse)?;
        if context.compute_capability < MIN_COMPUTE_CAPABILITY {
            return Err(DeviceError::Incompatible {
                device: name,
                driver: format!(
                    "{} of compute capability {}",
                    context.gpu_name,
                    capability_text(context.compute_capability)
                ),
                needed: "a card of compute capability 8.0 or later".to_owned(),
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
            take_profile: Mutex::default(),
        }))
    }

    /// "cuda:0 (NVIDIA H100 80GB HBM3, compute capability 9.0, driver 12.8)".
    pub fn name(&self) -> String {
        let CudaContext { device_name: device, gpu_name: card, compute_capability: capability, .. } =
            &*self.context;
        format!(
            "{device} ({card}, compute capability {}, {})",
            capability_text(*capability),
            self.context.driver_text()
        )
    }

    /// To be called on a thread before its first use of the device.
    pub fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind()
    }

    /// Bytes, free and in all.
    pub fn memory_info(&self) -> Result<(usize, usize), DeviceError> {
        self.context.memory_info()
    }

    /// Holds whatever was there before.
    pub fn buffer(&self, element: ElementType, len: usize) -> Result<DeviceBuffer, DeviceError> {
        self.pool.buffer(element, len)
    }

    pub fn zeros(&self, element: ElementType, len: usize) -> Result<DeviceBuffer, DeviceError> {
        let buffer = self.buffer(element, len)?;
        self.fill(&buffer, 0)?;
        Ok(buffer)
    }

    /// Every byte of it becomes `value`.
    pub fn fill(&self, buffer: &DeviceBuffer, value: u8) -> Result<(), DeviceError> {
        self.fill_range(buffer, 0, buffer.len(), value)
    }

    pub fn fill_range(
        &self,
        buffer: &DeviceBuffer,
        from: usize,
        len: usize,
        value: u8,
    ) -> Result<(), DeviceError> {
        let bytes = buffer.element().size_bytes();
        match len {
            0 => Ok(()),
            _ => self.compute_stream.fill(device_memory(buffer), from * bytes, len * bytes, value),
        }
    }

    /// Waits until it has arrived. `from` is as many bytes as fit the elements.
    pub fn upload(&self, buffer: &DeviceBuffer, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        match from.is_empty() {
            true => Ok(()),
            false => self.compute_stream.upload(
                device_memory(buffer),
                offset * buffer.element().size_bytes(),
                from,
            ),
        }
    }

    /// All of it.
    pub fn download(&self, buffer: &DeviceBuffer) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; buffer.len() * buffer.element().size_bytes()];
        if !bytes.is_empty() {
            self.compute_stream.download(device_memory(buffer), 0, &mut bytes)?;
        }
        Ok(bytes)
    }

    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.compute_stream.synchronize()
    }

    /// Work that is queued from now on waits for the copy to be over; the host does not.
    pub fn wait_for_copy(&self, mark: &CopyCompletion) -> Result<(), DeviceError> {
        self.compute_stream.wait_event(&mark.event)
    }

    /// Gives back memory that is only kept for later.
    pub fn release_caches(&self) {
        self.cublaslt.release_workspace();
        self.pool.release_free();
    }

    pub(super) fn cublaslt(&self) -> &CublasLt {
        &self.cublaslt
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn launch(
        &self,
        name: &str,
        launch: LaunchConfig,
        params: KernelParams,
    ) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let Some((known, kernel)) = self.kernels.kernel(name) else {
            let (device, name) = (self.context.device_name.clone(), format!("no kernel is named `{name}`"));
            return Err(DeviceError::CallFailed { device, call: "cuModuleGetFunction", name, code: None });
        };
        self.compute_stream.launch(kernel, launch, params.values())?;
        self.record_profile(known)
    }

    /// From here on every kernel is waited for and its time kept.
    pub fn start_profile(&self) {
        drop(self.synchronize());
        *self.take_profile.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(KernelProfile { previous_end: Some(Instant::now()), ..KernelProfile::default() });
    }

    /// Seconds and launches by kernel, the longest first; matrix products are `matmul`.
    pub fn take_profile(&self) -> Vec<(String, f64, u64)> {
        let profile =
            self.take_profile.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let mut rows: Vec<_> = profile
            .kernels
            .into_iter()
            .map(|(name, (time, launches))| (name, time.as_secs_f64(), launches))
            .collect();
        rows.sort_by(|a, b| b.1.total_cmp(&a.1));
        rows
    }

    pub(super) fn record_profile(&self, name: &str) -> Result<(), DeviceError> {
        let mut profile = self.take_profile.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(profile) = profile.as_mut() else { return Ok(()) };
        self.compute_stream.synchronize()?;
        let now = Instant::now();
        let time = profile.previous_end.replace(now).map_or(Duration::ZERO, |since| now - since);
        let entry = profile.kernels.entry(name.to_owned()).or_default();
        *entry = (entry.0 + time, entry.1 + 1);
        Ok(())
    }
}

fn device_memory(buffer: &DeviceBuffer) -> &DeviceMemory {
    buffer.memory()
}

fn capability_text((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

/// Words of the host that the device copies by itself.
#[derive(Debug)]
pub struct StagingBuffer {
    pinned: PinnedMemory,
}

impl StagingBuffer {
    pub fn new(device: &CudaDevice, words: usize) -> Result<StagingBuffer, DeviceError> {
        Ok(StagingBuffer { pinned: PinnedMemory::new(device.context(), words * 4)? })
    }

    /// How many words it has room for.
    pub fn capacity_words(&self) -> usize {
        self.pinned.len_bytes() / 4
    }

    /// Begins a copy of these words; waits for the one before, of the same staging.
    pub fn begin_upload(
        &mut self,
        device: &CudaDevice,
        to: &DeviceBuffer,
        words: &[u32],
    ) -> Result<(), DeviceError> {
        self.pinned.as_words_mut()?[..words.len()].copy_from_slice(words);
        match words.is_empty() {
            true => Ok(()),
            false => device.compute_stream.begin_upload(device_memory(to), 0, &self.pinned, words.len() * 4),
        }
    }

    /// Begins a copy of all of a buffer.
    pub fn begin_download(&mut self, device: &CudaDevice, from: &DeviceBuffer) -> Result<(), DeviceError> {
        let bytes = from.len() * from.element().size_bytes();
        device.compute_stream.begin_download(device_memory(from), 0, &mut self.pinned, 0, bytes)
    }

    /// Waits for what was begun.
    pub fn wait_for_words(&self) -> Result<&[u32], DeviceError> {
        self.pinned.as_words()
    }
}

/// A copy of buffers that goes on beside the work, through a stream of its own.
#[derive(Debug)]
pub struct PendingCopy {
    pinned: PinnedMemory,
    len_words: usize,
}

/// Where such a copy is over.
#[derive(Debug)]
pub struct CopyCompletion {
    event: CudaEvent,
}

/// Memory for such copies, kept for the next one: to pin memory takes longer than to copy it.
#[derive(Debug, Default)]
pub struct PinnedPool {
    free: Mutex<Vec<PinnedMemory>>,
}

impl PinnedPool {
    /// Begins when the work that is queued now is done, and returns at once. The buffers must live and stay as they are until
    /// work has been made to wait for the mark by [`Device::hold`].
    pub fn begin_copy(
        &self,
        device: &CudaDevice,
        from: &[&DeviceBuffer],
    ) -> Result<(PendingCopy, CopyCompletion), DeviceError> {
        let bytes: usize = from.iter().map(|buffer| buffer.len() * buffer.element().size_bytes()).sum();
        let kept = self.free().pop().filter(|pinned| pinned.len_bytes() >= bytes);
        let mut pinned = match kept {
            Some(pinned) => pinned,
            None => PinnedMemory::new(device.context(), bytes)?,
        };
        let now = CudaEvent::new(device.context())?;
        now.record(&device.compute_stream)?;
        device.copy_stream.wait_event(&now)?;
        let mut at = 0;
        for buffer in from {
            let bytes = buffer.len() * buffer.element().size_bytes();
            device.copy_stream.begin_download(device_memory(buffer), 0, &mut pinned, at, bytes)?;
            at += bytes;
        }
        let over = CudaEvent::new(device.context())?;
        over.record(&device.copy_stream)?;
        Ok((PendingCopy { pinned, len_words: bytes / 4 }, CopyCompletion { event: over }))
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<PinnedMemory>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PendingCopy {
    /// Waits, and hands the words over; the memory goes back to where it is from.
    pub fn finish(self, copies: &PinnedPool) -> Result<Vec<u32>, DeviceError> {
        let words = self.pinned.as_words()?[..self.len_words].to_vec();
        copies.free().push(self.pinned);
        Ok(words)
    }
}
