//! A card in use: its context, streams, kernels, memory and matrix products, and what it calls itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::error::DeviceError;
use super::matmul::Matmul;
use super::memory::{Buffer, Element, Pool};
use super::ops::Params;
use super::program::Program;
use super::sys::{Context, Event, Instance, Launch, Memory, Pinned, Stream};
use crate::device::Pulse;

/// The oldest that the committed PTX and our calls fit: CUDA 12.0, and cards from the A100 on.
pub(super) const NEEDED: &str = "a driver for CUDA 12.0 or later";
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: u32 = 100;
const LEAST_VERSION: i32 = 12_000;
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// Cards that CUDA sees. The error says why none can be used.
pub fn cuda_devices() -> Result<usize, DeviceError> {
    begin("cuda")?.count("cuda")
}

/// The driver's version is asked for first: an old one fails at things that have nothing to do with its age.
fn begin(device: &str) -> Result<Instance, DeviceError> {
    let instance = Instance::new(device)?;
    match instance.version < LEAST_VERSION {
        true => Err(DeviceError::Unfit {
            device: device.to_owned(),
            driver: instance.driver(),
            needed: NEEDED.to_owned(),
            code: None,
        }),
        false => Ok(instance),
    }
}

/// A card in use. Work queues up in one stream; copies that nobody waits for go through another one.
#[derive(Debug)]
pub struct Device {
    // Dropped in this order: the context last.
    matmul: Matmul,
    program: Program,
    pool: Arc<Pool>,
    pub(super) compute: Stream,
    copies: Stream,
    context: Arc<Context>,
    profile: Mutex<Option<Profile>>,
}

/// Time and launches of each kernel.
#[derive(Debug, Default)]
struct Profile {
    since: Option<Instant>,
    kernels: BTreeMap<String, (Duration, u64)>,
}

impl Device {
    pub fn new(number: usize, pulse: Arc<Pulse>) -> Result<Arc<Device>, DeviceError> {
        let name = format!("cuda:{number}");
        let instance = begin(&name)?;
        let count = instance.count(&name)?;
        if number >= count {
            let why = match count {
                0 => "there is no CUDA device".to_owned(),
                1 => "the only device there is is `cuda:0`".to_owned(),
                _ => format!("there are {count} devices, the last is `cuda:{}`", count - 1),
            };
            // No device at all may be one that has fallen off the bus; another number will not appear.
            let code = (count == 0).then_some(NO_DEVICE);
            return Err(DeviceError::Missing { device: name, why, code });
        }
        let context = Context::new(instance, number, pulse)?;
        if context.capability < LEAST_CAPABILITY {
            return Err(DeviceError::Unfit {
                device: name,
                driver: format!("{} of compute capability {}", context.card, dotted(context.capability)),
                needed: "a card of compute capability 8.0 or later".to_owned(),
                code: None,
            });
        }
        let pool = Pool::new(Arc::clone(&context));
        Ok(Arc::new(Device {
            matmul: Matmul::new(&context)?,
            program: Program::load(&context)?,
            compute: Stream::new(&context)?,
            copies: Stream::new(&context)?,
            pool,
            context,
            profile: Mutex::default(),
        }))
    }

    /// "cuda:0 (NVIDIA H100 80GB HBM3, compute capability 9.0, driver 12.8)".
    pub fn name(&self) -> String {
        let Context { device, card, capability, .. } = &*self.context;
        format!("{device} ({card}, compute capability {}, {})", dotted(*capability), self.context.driver())
    }

    /// To be called on a thread before its first use of the device.
    pub fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind()
    }

    /// Bytes, free and in all.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.context.memory()
    }

    /// Holds whatever was there before.
    pub fn buffer(&self, element: Element, len: usize) -> Result<Buffer, DeviceError> {
        self.pool.buffer(element, len)
    }

    pub fn zeros(&self, element: Element, len: usize) -> Result<Buffer, DeviceError> {
        let buffer = self.buffer(element, len)?;
        self.fill(&buffer, 0)?;
        Ok(buffer)
    }

    /// Every byte of it becomes `value`.
    pub fn fill(&self, buffer: &Buffer, value: u8) -> Result<(), DeviceError> {
        self.fill_part(buffer, 0, buffer.len(), value)
    }

    pub fn fill_part(&self, buffer: &Buffer, from: usize, len: usize, value: u8) -> Result<(), DeviceError> {
        let bytes = buffer.element().bytes();
        match len {
            0 => Ok(()),
            _ => self.compute.fill(memory(buffer), from * bytes, len * bytes, value),
        }
    }

    /// Waits until it has arrived. `from` is as many bytes as fit the elements.
    pub fn upload(&self, buffer: &Buffer, offset: usize, from: &[u8]) -> Result<(), DeviceError> {
        match from.is_empty() {
            true => Ok(()),
            false => self.compute.upload(memory(buffer), offset * buffer.element().bytes(), from),
        }
    }

    /// All of it.
    pub fn download(&self, buffer: &Buffer) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; buffer.len() * buffer.element().bytes()];
        if !bytes.is_empty() {
            self.compute.download(memory(buffer), 0, &mut bytes)?;
        }
        Ok(bytes)
    }

    pub fn wait(&self) -> Result<(), DeviceError> {
        self.compute.wait()
    }

    /// Work that is queued from now on waits for the copy to be over; the host does not.
    pub fn hold(&self, mark: &Mark) -> Result<(), DeviceError> {
        self.compute.heed(&mark.over)
    }

    /// Gives back memory that is only kept for later.
    pub fn release_caches(&self) {
        self.matmul.release();
        self.pool.release();
    }

    pub(super) fn matmul(&self) -> &Matmul {
        &self.matmul
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn launch(&self, name: &str, launch: Launch, params: Params) -> Result<(), DeviceError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let Some((known, kernel)) = self.program.kernel(name) else {
            let (device, name) = (self.context.device.clone(), format!("no kernel is named `{name}`"));
            return Err(DeviceError::Refused { device, call: "cuModuleGetFunction", name, code: None });
        };
        self.compute.launch(kernel, launch, params.values())?;
        self.profiled(known)
    }

    /// From here on every kernel is waited for and its time kept.
    pub fn start_profile(&self) {
        drop(self.wait());
        *self.profile.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Profile { since: Some(Instant::now()), ..Profile::default() });
    }

    /// Seconds and launches by kernel, the longest first; matrix products are `matmul`.
    pub fn profile(&self) -> Vec<(String, f64, u64)> {
        let profile = self.profile.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let mut rows: Vec<_> = profile
            .kernels
            .into_iter()
            .map(|(name, (time, launches))| (name, time.as_secs_f64(), launches))
            .collect();
        rows.sort_by(|a, b| b.1.total_cmp(&a.1));
        rows
    }

    pub(super) fn profiled(&self, name: &str) -> Result<(), DeviceError> {
        let mut profile = self.profile.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(profile) = profile.as_mut() else { return Ok(()) };
        self.compute.wait()?;
        let now = Instant::now();
        let time = profile.since.replace(now).map_or(Duration::ZERO, |since| now - since);
        let entry = profile.kernels.entry(name.to_owned()).or_default();
        *entry = (entry.0 + time, entry.1 + 1);
        Ok(())
    }
}

fn memory(buffer: &Buffer) -> &Memory {
    buffer.memory()
}

fn dotted((major, minor): (i32, i32)) -> String {
    format!("{major}.{minor}")
}

/// Words of the host that the device copies by itself.
#[derive(Debug)]
pub struct Staging {
    pinned: Pinned,
}

impl Staging {
    pub fn new(device: &Device, words: usize) -> Result<Staging, DeviceError> {
        Ok(Staging { pinned: Pinned::new(device.context(), words * 4)? })
    }

    /// How many words it has room for.
    pub fn room(&self) -> usize {
        self.pinned.bytes() / 4
    }

    /// Begins a copy of these words; waits for the one before, of the same staging.
    pub fn send(&mut self, device: &Device, to: &Buffer, words: &[u32]) -> Result<(), DeviceError> {
        self.pinned.words()?[..words.len()].copy_from_slice(words);
        match words.is_empty() {
            true => Ok(()),
            false => device.compute.begin_upload(memory(to), 0, &self.pinned, words.len() * 4),
        }
    }

    /// Begins a copy of all of a buffer.
    pub fn fetch(&mut self, device: &Device, from: &Buffer) -> Result<(), DeviceError> {
        let bytes = from.len() * from.element().bytes();
        device.compute.begin_download(memory(from), 0, &mut self.pinned, 0, bytes)
    }

    /// Waits for what was begun.
    pub fn words(&self) -> Result<&[u32], DeviceError> {
        self.pinned.read()
    }
}

/// A copy of buffers that goes on beside the work, through a stream of its own.
#[derive(Debug)]
pub struct Copying {
    pinned: Pinned,
    words: usize,
}

/// Where such a copy is over.
#[derive(Debug)]
pub struct Mark {
    over: Event,
}

/// Memory for such copies, kept for the next one: to pin memory takes longer than to copy it.
#[derive(Debug, Default)]
pub struct Copies {
    kept: Mutex<Vec<Pinned>>,
}

impl Copies {
    /// Begins when the work that is queued now is done, and returns at once. The buffers must live and stay as they are until
    /// work has been made to wait for the mark by [`Device::hold`].
    pub fn begin(&self, device: &Device, from: &[&Buffer]) -> Result<(Copying, Mark), DeviceError> {
        let bytes: usize = from.iter().map(|buffer| buffer.len() * buffer.element().bytes()).sum();
        let kept = self.kept().pop().filter(|pinned| pinned.bytes() >= bytes);
        let mut pinned = match kept {
            Some(pinned) => pinned,
            None => Pinned::new(device.context(), bytes)?,
        };
        let now = Event::new(device.context())?;
        now.record(&device.compute)?;
        device.copies.heed(&now)?;
        let mut at = 0;
        for buffer in from {
            let bytes = buffer.len() * buffer.element().bytes();
            device.copies.begin_download(memory(buffer), 0, &mut pinned, at, bytes)?;
            at += bytes;
        }
        let over = Event::new(device.context())?;
        over.record(&device.copies)?;
        Ok((Copying { pinned, words: bytes / 4 }, Mark { over }))
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Pinned>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Copying {
    /// Waits, and hands the words over; the memory goes back to where it is from.
    pub fn finish(self, copies: &Copies) -> Result<Vec<u32>, DeviceError> {
        let words = self.pinned.read()?[..self.words].to_vec();
        copies.kept().push(self.pinned);
        Ok(words)
    }
}
