//! What the simulated driver knows: contexts, streams, events, modules, memory; by handle. No unsafe. It runs nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use simgpu_plan::{Backend, SimulatedMachine};

use crate::device_memory::DeviceMemory;
use crate::kernels::CompiledKernel;
use crate::rules::{Corruption, fault_state};

use super::work::StreamWork;

pub(crate) type Handle = u64;

/// A stream's place: so many of its operations.
pub(crate) type StreamPosition = (Handle, u64);

pub(crate) struct SimContext {
    pub(crate) device: usize,
    /// Its NULL stream.
    pub(crate) null_stream: Handle,
    pub(crate) flags: u32,
    /// Of the primary context.
    pub(crate) retain_count: u32,
    pub(crate) limits: HashMap<u32, usize>,
}

/// An operation that waits for its turn.
pub(crate) struct QueuedOperation {
    pub(crate) number: u64,
    /// What must be done before, in other streams.
    pub(crate) dependencies: Vec<StreamPosition>,
    pub(crate) work: StreamWork,
    pub(crate) corruptions: Vec<Corruption>,
}

pub(crate) struct SimStream {
    pub(crate) context: Handle,
    /// Ordered with the NULL stream.
    pub(crate) blocking: bool,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) queue: VecDeque<QueuedOperation>,
    pub(crate) last_enqueued: u64,
    pub(crate) last_done: u64,
    pub(crate) destroyed: bool,
}

#[derive(Default)]
pub(crate) struct SimEvent {
    pub(crate) context: Handle,
    /// None: never recorded.
    pub(crate) position: Option<StreamPosition>,
    pub(crate) has_timing: bool,
    pub(crate) recorded_at: Option<Instant>,
}

pub(crate) struct SimModule {
    /// `.entry` names of PTX; none: a binary, whose names are not looked at.
    pub(crate) entry_names: Option<Vec<String>>,
}

pub(crate) struct SimFunction {
    pub(crate) kernel: CompiledKernel,
    pub(crate) name: std::ffi::CString,
    pub(crate) module: Handle,
    /// Dynamic shared bytes that were asked for; beyond 48 KiB a launch needs that.
    pub(crate) max_shared_bytes: usize,
}

/// Everything, behind one lock that is never held while work runs.
pub(crate) struct SimGpu {
    pub(crate) machine: SimulatedMachine,
    pub(crate) initialised: bool,
    pub(crate) memory: DeviceMemory,
    /// Page-locked host memory: address, and length.
    pub(crate) pinned: BTreeMap<usize, PinnedRange>,
    pub(crate) contexts: HashMap<Handle, SimContext>,
    pub(crate) primary_contexts: Vec<Option<Handle>>,
    pub(crate) streams: BTreeMap<Handle, SimStream>,
    pub(crate) events: HashMap<Handle, SimEvent>,
    pub(crate) modules: HashMap<Handle, SimModule>,
    pub(crate) functions: HashMap<Handle, SimFunction>,
    pub(crate) pools: HashMap<Handle, usize>,
    pub(crate) sync_count: u64,
    next_handle: Handle,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct PinnedRange {
    pub(crate) len_bytes: usize,
    /// Ours to unmap, and not only registered.
    pub(crate) is_owned: bool,
}

/// Locks the state.
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

    /// A handle that no other object has or had.
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

    /// What was allocated in it stays until it is freed; its streams and events are gone.
    pub(crate) fn remove_context(&mut self, context: Handle) {
        self.contexts.remove(&context);
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
    }

    /// The stream that a handle of a caller means in a context: 0 and 1 are the NULL stream, 2 is taken for it.
    pub(crate) fn stream_of(&self, context: Handle, stream: Handle) -> Option<Handle> {
        match stream {
            0..=2 => self.contexts.get(&context).map(|context| context.null_stream),
            handle => self.streams.get(&handle).filter(|stream| !stream.destroyed).map(|_| handle),
        }
    }

    /// Queues an operation: its place.
    pub(crate) fn enqueue(
        &mut self,
        stream: Handle,
        mut after: Vec<StreamPosition>,
        work: StreamWork,
        twists: Vec<Corruption>,
    ) -> StreamPosition {
        after.extend(self.implicit_dependencies(stream));
        let Some(queue) = self.streams.get_mut(&stream) else { return (stream, 0) };
        queue.last_enqueued += 1;
        let number = queue.last_enqueued;
        queue.queue.push_back(QueuedOperation { number, dependencies: after, work, corruptions: twists });
        (stream, number)
    }

    /// The NULL stream waits for all blocking streams of its context, and they wait for it.
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

    /// An operation was done. A stream that was destroyed goes with its last one.
    pub(crate) fn finish(&mut self, (handle, number): StreamPosition) {
        let Some(stream) = self.streams.get_mut(&handle) else { return };
        stream.last_done = number;
        if stream.destroyed && stream.last_done == stream.last_enqueued {
            self.streams.remove(&handle);
        }
    }

    pub(crate) fn is_done(&self, (stream, number): StreamPosition) -> bool {
        // A stream that is gone has nothing left to wait for.
        self.streams.get(&stream).is_none_or(|stream| stream.last_done >= number)
    }

    /// All that was given out in a context. Every other time the streams come in the other order: work that lacks a wait
    /// meets what it should have waited for both ways round.
    pub(crate) fn pending_in(&mut self, context: Option<Handle>) -> Vec<StreamPosition> {
        self.sync_count += 1;
        let of_context = |stream: &&SimStream| context.is_none_or(|context| stream.context == context);
        let mut places: Vec<StreamPosition> = self
            .streams
            .iter()
            .filter(|(_, stream)| of_context(stream) && stream.last_done < stream.last_enqueued)
            .map(|(handle, stream)| (*handle, stream.last_enqueued))
            .collect();
        if self.sync_count.is_multiple_of(2) {
            places.reverse();
        }
        places
    }

    /// Whether these bytes lie in page-locked host memory.
    pub(crate) fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(start, pinned)| address + bytes <= start + pinned.len_bytes)
    }

    /// Whether a kernel or a copy may touch these bytes.
    pub(crate) fn is_device_side(&self, address: usize, bytes: usize) -> bool {
        self.memory.contains(address, bytes) || self.is_pinned(address, bytes)
    }
}
