//! The state of the simulated driver, by handle: contexts, streams, events, modules and memory. No unsafe.
//! Runs no work. Must not know rules, except that a queued operation carries the corruptions that they
//! inject.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use simgpu_plan::{Backend, SimulatedMachine};

use crate::device_memory::DeviceMemory;
use crate::kernels::CompiledKernel;
use crate::rules::{Corruption, fault_state};

use super::work::StreamWork;

/// Identifies an object of the driver.
pub(crate) type Handle = u64;

/// A stream, and the number of one of its operations. The position is reached once that operation is done.
pub(crate) type StreamPosition = (Handle, u64);

/// A context.
pub(crate) struct SimContext {
    pub(crate) device: usize,
    /// The NULL stream of this context.
    pub(crate) null_stream: Handle,
    pub(crate) flags: u32,
    /// How often the primary context was retained.
    pub(crate) retain_count: u32,
    /// By `CUlimit`.
    pub(crate) limits: HashMap<u32, usize>,
}

/// An operation in the queue of a stream.
pub(crate) struct QueuedOperation {
    /// Number within the stream, from 1.
    pub(crate) number: u64,
    /// Positions in other streams that must be reached first.
    pub(crate) dependencies: Vec<StreamPosition>,
    pub(crate) work: StreamWork,
    /// What rules inject into this operation.
    pub(crate) corruptions: Vec<Corruption>,
}

/// A stream.
pub(crate) struct SimStream {
    pub(crate) context: Handle,
    /// Whether it is ordered with the NULL stream.
    pub(crate) blocking: bool,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) queue: VecDeque<QueuedOperation>,
    /// Number of the last operation that was queued.
    pub(crate) last_enqueued: u64,
    /// Number of the last operation that has run.
    pub(crate) last_done: u64,
    pub(crate) destroyed: bool,
}

/// An event.
#[derive(Default)]
pub(crate) struct SimEvent {
    pub(crate) context: Handle,
    /// Where it was recorded. `None` if it never was.
    pub(crate) position: Option<StreamPosition>,
    pub(crate) has_timing: bool,
    /// When the recorded operation ran.
    pub(crate) recorded_at: Option<Instant>,
}

/// A module or a library.
pub(crate) struct SimModule {
    /// The `.entry` names of PTX. `None` for a binary, whose names are not read.
    pub(crate) entry_names: Option<Vec<String>>,
}

/// A kernel of a module.
pub(crate) struct SimFunction {
    pub(crate) kernel: CompiledKernel,
    pub(crate) name: std::ffi::CString,
    pub(crate) module: Handle,
    /// Maximum dynamic shared memory of a launch. A program must set the attribute for more than 48 KiB.
    pub(crate) max_shared_bytes: usize,
}

/// The state of the simulated driver and all its devices. Its lock is never held while work runs.
pub(crate) struct SimGpu {
    pub(crate) machine: SimulatedMachine,
    pub(crate) initialised: bool,
    pub(crate) memory: DeviceMemory,
    /// Page-locked host memory, by address.
    pub(crate) pinned: BTreeMap<usize, PinnedRange>,
    pub(crate) contexts: HashMap<Handle, SimContext>,
    /// By device.
    pub(crate) primary_contexts: Vec<Option<Handle>>,
    pub(crate) streams: BTreeMap<Handle, SimStream>,
    pub(crate) events: HashMap<Handle, SimEvent>,
    pub(crate) modules: HashMap<Handle, SimModule>,
    pub(crate) functions: HashMap<Handle, SimFunction>,
    pub(crate) pools: HashMap<Handle, usize>,
    /// How often a caller has waited for several streams.
    pub(crate) sync_count: u64,
    next_handle: Handle,
}

/// A range of page-locked host memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PinnedRange {
    pub(crate) len_bytes: usize,
    /// Whether the driver allocated the range. Else the program did, and registered it.
    pub(crate) is_owned: bool,
}

/// Locks the state of the simulated driver.
pub(crate) fn gpu() -> MutexGuard<'static, SimGpu> {
    static GPU: OnceLock<Mutex<SimGpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Mutex::new(SimGpu::new()));
    gpu.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl SimGpu {
    fn new() -> SimGpu {
        let machine = match &fault_state().current_plan().plan.backend {
            Backend::Simulated(machine) => machine.clone(),
            Backend::Forwarded { .. } => SimulatedMachine::default(),
        };
        let devices = machine.devices as usize;
        SimGpu {
            memory: DeviceMemory::new(devices, machine.memory_bytes),
            primary_contexts: vec![None; devices],
            machine,
            initialised: false,
            pinned: BTreeMap::new(),
            contexts: HashMap::new(),
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            pools: HashMap::new(),
            sync_count: 0,
            next_handle: 0x10_0000,
        }
    }

    /// Returns a handle that was never used before.
    pub(crate) fn new_handle(&mut self) -> Handle {
        self.next_handle += 0x10;
        self.next_handle
    }

    pub(crate) fn add_stream(
        &mut self,
        context: Handle,
        blocking: bool,
        flags: u32,
        priority: i32,
    ) -> Handle {
        let handle = self.new_handle();
        let stream = SimStream {
            context,
            blocking,
            flags,
            priority,
            queue: VecDeque::new(),
            last_enqueued: 0,
            last_done: 0,
            destroyed: false,
        };
        self.streams.insert(handle, stream);
        handle
    }

    pub(crate) fn add_context(&mut self, device: usize, flags: u32) -> Handle {
        let handle = self.new_handle();
        let legacy = self.add_stream(handle, true, 0, 0);
        let limits = HashMap::from([(0, 1024), (1, 1 << 20), (2, 8 << 20)]);
        self.contexts
            .insert(handle, SimContext { device, null_stream: legacy, flags, retain_count: 0, limits });
        handle
    }

    /// Removes a context with its streams and events. Its allocations stay until they are freed.
    pub(crate) fn remove_context(&mut self, context: Handle) {
        self.contexts.remove(&context);
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
    }

    /// Returns the stream that a caller's handle denotes in a context. 0 and 1 are the NULL stream. 2, the
    /// per-thread stream, is treated as the NULL stream too.
    pub(crate) fn stream_of(&self, context: Handle, stream: Handle) -> Option<Handle> {
        match stream {
            0..=2 => self.contexts.get(&context).map(|context| context.null_stream),
            handle => self.streams.get(&handle).filter(|stream| !stream.destroyed).map(|_| handle),
        }
    }

    /// Queues an operation and returns its position.
    pub(crate) fn enqueue(
        &mut self,
        stream: Handle,
        mut dependencies: Vec<StreamPosition>,
        work: StreamWork,
        corruptions: Vec<Corruption>,
    ) -> StreamPosition {
        dependencies.extend(self.implicit_dependencies(stream));
        let Some(queue) = self.streams.get_mut(&stream) else { return (stream, 0) };
        queue.last_enqueued += 1;
        let number = queue.last_enqueued;
        queue.queue.push_back(QueuedOperation { number, dependencies, work, corruptions });
        (stream, number)
    }

    /// Returns the implicit dependencies of a new operation: the NULL stream waits for all blocking streams
    /// of its context, and they wait for it.
    fn implicit_dependencies(&self, stream: Handle) -> Vec<StreamPosition> {
        let Some(this) = self.streams.get(&stream).filter(|stream| stream.blocking) else {
            return Vec::new();
        };
        let Some(context) = self.contexts.get(&this.context) else { return Vec::new() };
        let pending = |handle: Handle, other: &SimStream| {
            (other.last_done < other.last_enqueued).then_some((handle, other.last_enqueued))
        };
        if context.null_stream != stream {
            return self
                .streams
                .get(&context.null_stream)
                .and_then(|legacy| pending(context.null_stream, legacy))
                .into_iter()
                .collect();
        }
        let others = self
            .streams
            .iter()
            .filter(|(handle, other)| **handle != stream && other.blocking && other.context == this.context);
        others.filter_map(|(handle, other)| pending(*handle, other)).collect()
    }

    /// Marks an operation as done. Removes a destroyed stream after its last operation.
    pub(crate) fn finish(&mut self, (handle, number): StreamPosition) {
        let Some(stream) = self.streams.get_mut(&handle) else { return };
        stream.last_done = number;
        if stream.destroyed && stream.last_done == stream.last_enqueued {
            self.streams.remove(&handle);
        }
    }

    pub(crate) fn is_done(&self, (stream, number): StreamPosition) -> bool {
        // A removed stream has no queued operations.
        self.streams.get(&stream).is_none_or(|stream| stream.last_done >= number)
    }

    /// Returns the end positions of all streams with queued work, of one context or of all. Every second call
    /// returns them in reverse order, so that a missing wait between two streams shows in one of the two
    /// orders.
    pub(crate) fn pending_in(&mut self, context: Option<Handle>) -> Vec<StreamPosition> {
        self.sync_count += 1;
        let of_context = |stream: &&SimStream| context.is_none_or(|context| stream.context == context);
        let mut positions: Vec<StreamPosition> = self
            .streams
            .iter()
            .filter(|(_, stream)| of_context(stream) && stream.last_done < stream.last_enqueued)
            .map(|(handle, stream)| (*handle, stream.last_enqueued))
            .collect();
        if self.sync_count.is_multiple_of(2) {
            positions.reverse();
        }
        positions
    }

    /// Returns whether these bytes lie in page-locked host memory.
    pub(crate) fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        let preceding = self.pinned.range(..=address).next_back();
        preceding.is_some_and(|(start, pinned)| address + bytes <= start + pinned.len_bytes)
    }

    /// Returns whether the device may access these bytes.
    pub(crate) fn is_device_side(&self, address: usize, bytes: usize) -> bool {
        self.memory.contains(address, bytes) || self.is_pinned(address, bytes)
    }
}
