//! What the simulated driver knows: contexts, streams, events, modules, memory; by handle. No unsafe. It runs nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use simgpu_plan::{Machine, Simulated};

use crate::kernels::Kernel;
use crate::memory::Memory;
use crate::rules::{Twist, world};

use super::work::Work;

pub(crate) type Handle = u64;

/// A stream's place: so many of its operations.
pub(crate) type Place = (Handle, u64);

pub(crate) struct Context {
    pub(crate) device: usize,
    /// Its NULL stream.
    pub(crate) legacy: Handle,
    pub(crate) flags: u32,
    /// Of the primary context.
    pub(crate) retained: u32,
    pub(crate) limits: HashMap<u32, usize>,
}

/// An operation that waits for its turn.
pub(crate) struct Operation {
    pub(crate) number: u64,
    /// What must be done before, in other streams.
    pub(crate) after: Vec<Place>,
    pub(crate) work: Work,
    pub(crate) twists: Vec<Twist>,
}

pub(crate) struct Stream {
    pub(crate) context: Handle,
    /// Ordered with the NULL stream.
    pub(crate) blocking: bool,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    pub(crate) queue: VecDeque<Operation>,
    pub(crate) issued: u64,
    pub(crate) done: u64,
    pub(crate) destroyed: bool,
}

#[derive(Default)]
pub(crate) struct Event {
    pub(crate) context: Handle,
    /// None: never recorded.
    pub(crate) recorded: Option<Place>,
    pub(crate) timed: bool,
    pub(crate) at: Option<Instant>,
}

pub(crate) struct Module {
    /// `.entry` names of PTX; none: a binary, whose names are not looked at.
    pub(crate) entries: Option<Vec<String>>,
}

pub(crate) struct Function {
    pub(crate) kernel: Kernel,
    pub(crate) name: std::ffi::CString,
    pub(crate) module: Handle,
    /// Dynamic shared bytes that were asked for; beyond 48 KiB a launch needs that.
    pub(crate) shared_most: usize,
}

/// Everything, behind one lock that is never held while work runs.
pub(crate) struct Gpu {
    pub(crate) machine: Simulated,
    pub(crate) initialised: bool,
    pub(crate) memory: Memory,
    /// Page-locked host memory: address, and length.
    pub(crate) pinned: BTreeMap<usize, Pinned>,
    pub(crate) contexts: HashMap<Handle, Context>,
    pub(crate) primary: Vec<Option<Handle>>,
    pub(crate) streams: BTreeMap<Handle, Stream>,
    pub(crate) events: HashMap<Handle, Event>,
    pub(crate) modules: HashMap<Handle, Module>,
    pub(crate) functions: HashMap<Handle, Function>,
    pub(crate) pools: HashMap<Handle, usize>,
    pub(crate) synchronised: u64,
    next: Handle,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Pinned {
    pub(crate) bytes: usize,
    /// Ours to unmap, and not only registered.
    pub(crate) mapped: bool,
}

/// Locks the state.
pub(crate) fn gpu() -> MutexGuard<'static, Gpu> {
    static GPU: OnceLock<Mutex<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| Mutex::new(Gpu::new()));
    gpu.lock().unwrap_or_else(|poison| poison.into_inner())
}

impl Gpu {
    fn new() -> Gpu {
        let machine = match &world().plan().plan.machine {
            Machine::Simulated(machine) => machine.clone(),
            Machine::Forwarded { .. } => Simulated::default(),
        };
        let devices = machine.devices as usize;
        Gpu {
            memory: Memory::new(devices, machine.memory_bytes),
            primary: vec![None; devices],
            machine,
            initialised: false,
            pinned: BTreeMap::new(),
            contexts: HashMap::new(),
            streams: BTreeMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            pools: HashMap::new(),
            synchronised: 0,
            next: 0x10_0000,
        }
    }

    /// A handle that no other object has or had.
    pub(crate) fn handle(&mut self) -> Handle {
        self.next += 0x10;
        self.next
    }

    pub(crate) fn add_stream(
        &mut self,
        context: Handle,
        blocking: bool,
        flags: u32,
        priority: i32,
    ) -> Handle {
        let handle = self.handle();
        let stream = Stream {
            context,
            blocking,
            flags,
            priority,
            queue: VecDeque::new(),
            issued: 0,
            done: 0,
            destroyed: false,
        };
        self.streams.insert(handle, stream);
        handle
    }

    pub(crate) fn add_context(&mut self, device: usize, flags: u32) -> Handle {
        let handle = self.handle();
        let legacy = self.add_stream(handle, true, 0, 0);
        let limits = HashMap::from([(0, 1024), (1, 1 << 20), (2, 8 << 20)]);
        self.contexts.insert(handle, Context { device, legacy, flags, retained: 0, limits });
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
            0..=2 => self.contexts.get(&context).map(|context| context.legacy),
            handle => self.streams.get(&handle).filter(|stream| !stream.destroyed).map(|_| handle),
        }
    }

    /// Queues an operation: its place.
    pub(crate) fn give_out(
        &mut self,
        stream: Handle,
        mut after: Vec<Place>,
        work: Work,
        twists: Vec<Twist>,
    ) -> Place {
        after.extend(self.implied(stream));
        let Some(queue) = self.streams.get_mut(&stream) else { return (stream, 0) };
        queue.issued += 1;
        let number = queue.issued;
        queue.queue.push_back(Operation { number, after, work, twists });
        (stream, number)
    }

    /// The NULL stream waits for all blocking streams of its context, and they wait for it.
    fn implied(&self, stream: Handle) -> Vec<Place> {
        let Some(this) = self.streams.get(&stream).filter(|stream| stream.blocking) else {
            return Vec::new();
        };
        let Some(context) = self.contexts.get(&this.context) else { return Vec::new() };
        let pending =
            |handle: Handle, other: &Stream| (other.done < other.issued).then_some((handle, other.issued));
        if context.legacy != stream {
            return self
                .streams
                .get(&context.legacy)
                .and_then(|legacy| pending(context.legacy, legacy))
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
    pub(crate) fn finish(&mut self, (handle, number): Place) {
        let Some(stream) = self.streams.get_mut(&handle) else { return };
        stream.done = number;
        if stream.destroyed && stream.done == stream.issued {
            self.streams.remove(&handle);
        }
    }

    pub(crate) fn is_done(&self, (stream, number): Place) -> bool {
        // A stream that is gone has nothing left to wait for.
        self.streams.get(&stream).is_none_or(|stream| stream.done >= number)
    }

    /// All that was given out in a context. Every other time the streams come in the other order: work that lacks a wait
    /// meets what it should have waited for both ways round.
    pub(crate) fn pending_in(&mut self, context: Option<Handle>) -> Vec<Place> {
        self.synchronised += 1;
        let of_context = |stream: &&Stream| context.is_none_or(|context| stream.context == context);
        let mut places: Vec<Place> = self
            .streams
            .iter()
            .filter(|(_, stream)| of_context(stream) && stream.done < stream.issued)
            .map(|(handle, stream)| (*handle, stream.issued))
            .collect();
        if self.synchronised.is_multiple_of(2) {
            places.reverse();
        }
        places
    }

    /// Whether these bytes lie in page-locked host memory.
    pub(crate) fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(start, pinned)| address + bytes <= start + pinned.bytes)
    }

    /// Whether a kernel or a copy may touch these bytes.
    pub(crate) fn is_device_side(&self, address: usize, bytes: usize) -> bool {
        self.memory.holds(address, bytes) || self.is_pinned(address, bytes)
    }
}
