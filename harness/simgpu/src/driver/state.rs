//! The state of the simulated driver, by handle: contexts, streams, events, modules and memory. Runs no work.
//! Must not know how an operation runs, or which call changes the state.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use simgpu_plan::SimulatedMachine;

use crate::device_memory::DeviceMemory;
use crate::faults::{Corruption, fault_state};
use crate::kernels::CompiledKernel;
use crate::locks::MutexExt;

use super::limits::ComputeCapability;
use super::operations::{Handle, QueuedOperation, StreamPosition, StreamWork};

/// The NULL stream, `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD` have the handles up to this one.
pub(crate) const LAST_RESERVED_STREAM: Handle = 2;

/// The priorities of streams. A lower number is a higher priority.
pub(crate) const LEAST_PRIORITY: i32 = 0;
pub(crate) const GREATEST_PRIORITY: i32 = -5;

/// `CUlimit`, with the values of a new context.
const LIMIT_STACK_SIZE: u32 = 0;
const LIMIT_PRINTF_FIFO_SIZE: u32 = 1;
const LIMIT_MALLOC_HEAP_SIZE: u32 = 2;
const DEFAULT_LIMITS: [(u32, usize); 3] =
    [(LIMIT_STACK_SIZE, 1024), (LIMIT_PRINTF_FIFO_SIZE, 1 << 20), (LIMIT_MALLOC_HEAP_SIZE, 8 << 20)];

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

impl SimStream {
    fn new(context: Handle, properties: StreamProperties) -> SimStream {
        SimStream {
            context,
            blocking: properties.blocking,
            flags: properties.flags,
            priority: properties.priority,
            queue: VecDeque::new(),
            last_enqueued: 0,
            last_done: 0,
            destroyed: false,
        }
    }

    fn has_pending_work(&self) -> bool {
        self.last_done < self.last_enqueued
    }
}

/// What a program chooses when it creates a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamProperties {
    /// Whether it is ordered with the NULL stream.
    pub(crate) blocking: bool,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
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
    GPU.get_or_init(|| Mutex::new(SimGpu::new(fault_state().simulated_machine()))).locked()
}

impl SimGpu {
    fn new(machine: SimulatedMachine) -> SimGpu {
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

    pub(crate) fn compute_capability(&self) -> ComputeCapability {
        let (major, minor) = self.machine.compute_capability;
        ComputeCapability { major, minor }
    }

    /// Returns a handle that was never used before.
    pub(crate) fn new_handle(&mut self) -> Handle {
        self.next_handle += 0x10;
        self.next_handle
    }

    pub(crate) fn add_stream(&mut self, context: Handle, properties: StreamProperties) -> Handle {
        let handle = self.new_handle();
        self.streams.insert(handle, SimStream::new(context, properties));
        handle
    }

    pub(crate) fn add_context(&mut self, device: usize, flags: u32) -> Handle {
        let handle = self.new_handle();
        let properties = StreamProperties { blocking: true, flags: 0, priority: 0 };
        let null_stream = self.add_stream(handle, properties);
        let limits = HashMap::from(DEFAULT_LIMITS);
        self.contexts.insert(handle, SimContext { device, null_stream, flags, retain_count: 0, limits });
        handle
    }

    /// Removes a context with its streams and events. Its allocations stay until they are freed.
    pub(crate) fn remove_context(&mut self, context: Handle) {
        self.contexts.remove(&context);
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
    }

    /// Returns the stream that a caller's handle denotes in a context. The per-thread stream is treated as the
    /// NULL stream.
    pub(crate) fn stream_of(&self, context: Handle, stream: Handle) -> Option<Handle> {
        match stream {
            0..=LAST_RESERVED_STREAM => self.contexts.get(&context).map(|context| context.null_stream),
            handle => self.streams.get(&handle).filter(|stream| !stream.destroyed).map(|_| handle),
        }
    }

    /// Queues work that depends on no other stream. Returns its position.
    pub(crate) fn enqueue(&mut self, stream: Handle, work: StreamWork) -> StreamPosition {
        self.enqueue_operation(stream, work, Vec::new(), Vec::new())
    }

    /// Queues a launch, with the corruptions that rules inject into it.
    pub(crate) fn enqueue_launch(&mut self, stream: Handle, work: StreamWork, corruptions: Vec<Corruption>) {
        self.enqueue_operation(stream, work, Vec::new(), corruptions);
    }

    /// Makes all later work of a stream wait for a position.
    pub(crate) fn enqueue_dependency(&mut self, stream: Handle, position: StreamPosition) {
        self.enqueue_operation(stream, StreamWork::Nothing, vec![position], Vec::new());
    }

    fn enqueue_operation(
        &mut self,
        stream: Handle,
        work: StreamWork,
        mut dependencies: Vec<StreamPosition>,
        corruptions: Vec<Corruption>,
    ) -> StreamPosition {
        dependencies.extend(self.implicit_dependencies(stream));
        let Some(queue) = self.streams.get_mut(&stream) else { return StreamPosition { stream, number: 0 } };
        queue.last_enqueued += 1;
        let number = queue.last_enqueued;
        queue.queue.push_back(QueuedOperation { number, dependencies, work, corruptions });
        StreamPosition { stream, number }
    }

    /// Returns the implicit dependencies of a new operation: the NULL stream waits for all blocking streams
    /// of its context, and they wait for it.
    fn implicit_dependencies(&self, stream: Handle) -> Vec<StreamPosition> {
        let Some(this) = self.streams.get(&stream).filter(|stream| stream.blocking) else {
            return Vec::new();
        };
        let Some(context) = self.contexts.get(&this.context) else { return Vec::new() };
        let pending = |stream: Handle, other: &SimStream| {
            let position = StreamPosition { stream, number: other.last_enqueued };
            other.has_pending_work().then_some(position)
        };
        if context.null_stream != stream {
            let null_stream = self.streams.get(&context.null_stream);
            let position = null_stream.and_then(|null_stream| pending(context.null_stream, null_stream));
            return position.into_iter().collect();
        }
        let others = self
            .streams
            .iter()
            .filter(|(handle, other)| **handle != stream && other.blocking && other.context == this.context);
        others.filter_map(|(handle, other)| pending(*handle, other)).collect()
    }

    /// Marks an operation as done. Removes a destroyed stream after its last operation.
    pub(crate) fn finish(&mut self, position: StreamPosition) {
        let Some(stream) = self.streams.get_mut(&position.stream) else { return };
        stream.last_done = position.number;
        if stream.destroyed && !stream.has_pending_work() {
            self.streams.remove(&position.stream);
        }
    }

    /// Destroys a stream. Its queued work still runs when a caller waits for its context.
    pub(crate) fn destroy_stream(&mut self, handle: Handle) {
        let Some(stream) = self.streams.get_mut(&handle) else { return };
        stream.destroyed = true;
        if !stream.has_pending_work() {
            self.streams.remove(&handle);
        }
    }

    /// Returns the position after all operations of a stream that are queued now.
    pub(crate) fn last_position(&self, stream: Handle) -> StreamPosition {
        StreamPosition { stream, number: self.streams.get(&stream).map_or(0, |stream| stream.last_enqueued) }
    }

    pub(crate) fn is_done(&self, position: StreamPosition) -> bool {
        // A removed stream has no queued operations.
        self.streams.get(&position.stream).is_none_or(|stream| stream.last_done >= position.number)
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
            .filter(|(_, stream)| of_context(stream) && stream.has_pending_work())
            .map(|(handle, stream)| StreamPosition { stream: *handle, number: stream.last_enqueued })
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
