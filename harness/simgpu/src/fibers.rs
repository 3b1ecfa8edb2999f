//! Runs the blocks of a launch: threads one after another, each on a fiber of its own once it has to wait for others.
//! Unsafe: kernels are C++ and call back. It must not know streams, memory or faults.
//!
//! Blocks alternate between ascending and descending order of their threads, and the last thread to come to a barrier goes
//! on ahead of the others: a missing barrier shows in one order or the other.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::kernels::Run;
use crate::stacks::Coloured;
use crate::sys::{self, BadAccess, PAGE};

/// Most dynamic shared memory that any card has.
pub(crate) const SHARED_MOST: usize = 232_448;
/// What memory holds before anything is written: not a number, read as a float or a bf16.
pub(crate) const POISON: u8 = 0xFF;

#[repr(C)]
#[derive(Clone, Copy)]
struct Three {
    x: u32,
    y: u32,
    z: u32,
}

/// As in `host/simgpu_host.h`.
#[repr(C)]
struct Warp {
    slots: [[u64; 32]; 2],
    turn: u32,
    size: u32,
    d: [*mut f32; 32],
    a: [[u32; 4]; 32],
    b: [[u32; 2]; 32],
}

// What a kernel sees. Plain variables: only one thread of the process runs kernels at a time (`run` asks for `&mut Fibers`).
#[unsafe(no_mangle)]
static mut simgpu_thread: Three = Three { x: 0, y: 0, z: 0 };
#[unsafe(no_mangle)]
static mut simgpu_block: Three = Three { x: 0, y: 0, z: 0 };
#[unsafe(no_mangle)]
static mut simgpu_block_dim: Three = Three { x: 1, y: 1, z: 1 };
#[unsafe(no_mangle)]
static mut simgpu_grid_dim: Three = Three { x: 1, y: 1, z: 1 };
#[unsafe(no_mangle)]
static mut simgpu_lane: u32 = 0;
#[unsafe(no_mangle)]
static mut simgpu_this_warp: *mut Warp = std::ptr::null_mut();
#[unsafe(no_mangle)]
static mut simgpu_shared_base: *mut c_void = std::ptr::null_mut();

/// The block that runs, for what kernels call.
static NOW: AtomicPtr<Block> = AtomicPtr::new(std::ptr::null_mut());

/// What is to run.
pub(crate) struct Launch {
    pub(crate) run: Run,
    pub(crate) parameters: *mut *mut c_void,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: usize,
}

/// Why a launch did not come to its end, and in which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    BadAccess {
        access: BadAccess,
        block: [u32; 3],
        thread: usize,
    },
    /// Some wait for threads that have ended, or that wait elsewhere.
    Divergent {
        block: [u32; 3],
        at_block: usize,
        at_warp: usize,
        ended: usize,
    },
    /// Something was written behind the dynamic shared memory.
    SharedOverrun {
        block: [u32; 3],
    },
    NoStack,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Ready,
    AtWarp,
    AtBlock,
    Ended,
}

enum Pause {
    Waits,
    Idle,
    Faulted,
}

type Fiber = Coroutine<(), Pause, (), Coloured>;

struct Block {
    run: Run,
    parameters: *mut *mut c_void,
    block: [u32; 3],
    size: usize,
    descending: bool,
    started: usize,
    ended: usize,
    at_block: usize,
    /// Lanes of one warp came to different collectives.
    mixed: bool,
    thread: usize,
    fiber: usize,
    states: Vec<State>,
    fiber_of: Vec<usize>,
    warps: Vec<Warp>,
    /// Lanes that have come to the warp's present collective, and its kind.
    arrived: Vec<(u32, u32)>,
    /// Boxes, as raw pointers: kernels reach the block while one of them is gone on with.
    fibers: Vec<*mut Fiber>,
    yielders: Vec<Option<NonNull<Yielder<(), Pause>>>>,
    free: Vec<usize>,
}

/// Fibers and shared memory, kept from launch to launch.
pub(crate) struct Fibers {
    block: Box<Block>,
    shared: usize,
    launches: u64,
}

// SAFETY: whoever has the value is the only one who runs kernels; stacks may be gone on with by another thread, for kernels
// keep nothing in thread-local variables.
unsafe impl Send for Fibers {}

const SHARED_MAPPED: usize = SHARED_MOST.next_multiple_of(PAGE);

impl Fibers {
    pub(crate) fn new() -> Option<Fibers> {
        let block = Block {
            run: nothing,
            parameters: std::ptr::null_mut(),
            block: [1; 3],
            size: 0,
            descending: false,
            started: 0,
            ended: 0,
            at_block: 0,
            mixed: false,
            thread: 0,
            fiber: 0,
            states: Vec::new(),
            fiber_of: Vec::new(),
            warps: Vec::new(),
            arrived: Vec::new(),
            fibers: Vec::new(),
            yielders: Vec::new(),
            free: Vec::new(),
        };
        Some(Fibers { block: Box::new(block), shared: sys::map_guarded(SHARED_MAPPED)?, launches: 0 })
    }

    /// Runs all blocks, in order.
    ///
    /// # Safety
    /// The parameters are those of the kernel.
    pub(crate) unsafe fn run(&mut self, launch: &Launch) -> Result<(), Failed> {
        let guard = sys::guarded(landing);
        let block: *mut Block = &mut *self.block;
        NOW.store(block, Ordering::Release);
        // The end of shared memory lies before a page that can't be touched.
        let rounded = launch.shared_bytes.next_multiple_of(16);
        let shared = self.shared + SHARED_MAPPED - rounded;
        // SAFETY: nobody else runs kernels while `self` is borrowed.
        unsafe {
            (*block).prepare(launch);
            simgpu_block_dim = three(launch.block);
            simgpu_grid_dim = three(launch.grid);
            simgpu_shared_base = shared as *mut c_void;
        }
        self.launches += 1;
        let mut parity = self.launches;
        for z in 0..launch.grid[2] {
            for y in 0..launch.grid[1] {
                for x in 0..launch.grid[0] {
                    parity += 1;
                    // SAFETY: as above; the shared memory is mapped.
                    unsafe {
                        simgpu_block = Three { x, y, z };
                        sys::fill(shared, POISON, rounded);
                        run_block(block, parity % 2 == 1, [x, y, z])?;
                        let behind = sys::bytes(shared + launch.shared_bytes, rounded - launch.shared_bytes);
                        if behind.iter().any(|byte| *byte != POISON) {
                            return Err(Failed::SharedOverrun { block: [x, y, z] });
                        }
                    }
                }
            }
        }
        drop(guard);
        Ok(())
    }
}

unsafe extern "C" fn nothing(_: *mut *mut c_void) {}

fn three([x, y, z]: [u32; 3]) -> Three {
    Three { x, y, z }
}

impl Block {
    fn prepare(&mut self, launch: &Launch) {
        self.run = launch.run;
        self.parameters = launch.parameters;
        self.block = launch.block;
        self.size = launch.block.iter().map(|size| *size as usize).product();
        let warps = self.size.div_ceil(32);
        self.states.resize(self.size, State::Fresh);
        self.fiber_of.resize(self.size, 0);
        self.arrived.resize(warps, (0, 0));
        let (slots, a, b) = ([[0; 32]; 2], [[0; 4]; 32], [[0; 2]; 32]);
        self.warps.resize_with(warps, || Warp {
            slots,
            turn: 0,
            size: 0,
            d: [std::ptr::null_mut(); 32],
            a,
            b,
        });
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.size = (self.size - index * 32).min(32) as u32;
        }
    }

    fn begin(&mut self, descending: bool) {
        self.descending = descending;
        (self.started, self.ended, self.at_block, self.mixed) = (0, 0, 0, false);
        self.states.fill(State::Fresh);
        self.arrived.fill((0, 0));
    }

    fn has_fresh(&self) -> bool {
        self.started < self.size
    }

    fn has_unended(&self) -> bool {
        self.ended < self.size
    }

    fn in_order(&self, place: usize) -> usize {
        if self.descending { self.size - 1 - place } else { place }
    }

    /// Makes `thread` the one that runs.
    ///
    /// # Safety
    /// Only where kernels run.
    unsafe fn enter(&mut self, thread: usize) {
        self.thread = thread;
        let [width, height, _] = self.block.map(|size| size as usize);
        let place = match (width == self.size, width * height) {
            (true, _) => Three { x: thread as u32, y: 0, z: 0 },
            (false, plane) => Three {
                x: (thread % width) as u32,
                y: (thread / width % height) as u32,
                z: (thread / plane) as u32,
            },
        };
        // SAFETY: the caller's.
        unsafe {
            simgpu_thread = place;
            simgpu_lane = (thread % 32) as u32;
            simgpu_this_warp = &raw mut self.warps[thread / 32];
        }
    }

    fn divergent(&self, block: [u32; 3]) -> Failed {
        let count = |state| self.states.iter().filter(|is| **is == state).count();
        Failed::Divergent {
            block,
            at_block: count(State::AtBlock),
            at_warp: count(State::AtWarp),
            ended: count(State::Ended),
        }
    }
}

/// # Safety
/// `block` is prepared, and nobody else runs kernels.
unsafe fn run_block(block: *mut Block, descending: bool, at: [u32; 3]) -> Result<(), Failed> {
    // SAFETY: the caller's; no reference into the block is held while a fiber runs, for kernels reach it through `NOW`.
    unsafe {
        (*block).begin(descending);
        while (*block).has_fresh() {
            let Some(fiber) = free_fiber(block) else { return Err(Failed::NoStack) };
            resume(block, fiber, at)?;
        }
        while (*block).has_unended() {
            let mut moved = false;
            for place in 0..(*block).size {
                let thread = (*block).in_order(place);
                if (&(*block).states)[thread] == State::Ready {
                    moved = true;
                    (*block).enter(thread);
                    let fiber = (&(*block).fiber_of)[thread];
                    resume(block, fiber, at)?;
                }
            }
            if !moved {
                break;
            }
        }
        if (*block).has_unended() || (*block).mixed {
            let failed = (*block).divergent(at);
            abandon(block);
            return Err(failed);
        }
    }
    Ok(())
}

/// # Safety
/// As of [`run_block`]; the fiber waits or is idle.
unsafe fn resume(block: *mut Block, fiber: usize, at: [u32; 3]) -> Result<(), Failed> {
    // SAFETY: the caller's; the box lives until `abandon`, and nobody else has a reference to what it holds.
    unsafe {
        (*block).fiber = fiber;
        let coroutine = (&(*block).fibers)[fiber];
        match (*coroutine).resume(()) {
            CoroutineResult::Yield(Pause::Waits) => Ok(()),
            CoroutineResult::Yield(Pause::Idle) | CoroutineResult::Return(()) => {
                (*block).free.push(fiber);
                Ok(())
            }
            CoroutineResult::Yield(Pause::Faulted) => {
                let access =
                    sys::last_bad_access().unwrap_or(BadAccess { address: 0, write: false, division: false });
                let thread = (*block).thread;
                abandon(block);
                Err(Failed::BadAccess { access, block: at, thread })
            }
        }
    }
}

/// # Safety
/// As of [`run_block`].
unsafe fn free_fiber(block: *mut Block) -> Option<usize> {
    // SAFETY: the caller's.
    let block = unsafe { &mut *block };
    if let Some(fiber) = block.free.pop() {
        return Some(fiber);
    }
    let stack = Coloured::new(block.fibers.len())?;
    block.fibers.push(Box::into_raw(Box::new(coroutine(stack))));
    block.yielders.push(None);
    Some(block.fibers.len() - 1)
}

fn coroutine(stack: Coloured) -> Fiber {
    Coroutine::with_stack(stack, |yielder, ()| {
        let block = NOW.load(Ordering::Acquire);
        // SAFETY: only `resume` gets here, with the block that it runs.
        unsafe {
            let fiber = (*block).fiber;
            (&mut (*block).yielders)[fiber] = Some(NonNull::from(yielder));
        }
        loop {
            // SAFETY: as above; parameters are those of the kernel.
            unsafe { run_threads(NOW.load(Ordering::Acquire)) };
            yielder.suspend(Pause::Idle);
        }
    })
}

/// Runs fresh threads one after another until none is left, or until one has to wait.
///
/// # Safety
/// As of [`run_block`], on a fiber.
unsafe fn run_threads(block: *mut Block) {
    // SAFETY: the caller's.
    unsafe {
        while (*block).has_fresh() {
            let thread = (*block).in_order((*block).started);
            (*block).started += 1;
            let fiber = (*block).fiber;
            (&mut (*block).fiber_of)[thread] = fiber;
            (*block).enter(thread);
            ((*block).run)((*block).parameters);
            // It may have waited: another thread of the block is not what ended here.
            let thread = (*block).thread;
            (&mut (*block).states)[thread] = State::Ended;
            (*block).ended += 1;
        }
    }
}

/// Forgets all that waits, and its stacks' contents.
///
/// # Safety
/// As of [`run_block`], not on a fiber.
unsafe fn abandon(block: *mut Block) {
    // SAFETY: the caller's.
    let block = unsafe { &mut *block };
    block.free.clear();
    block.yielders.clear();
    for fiber in block.fibers.drain(..) {
        // SAFETY: kernels are C++ without destructors: nothing on these stacks wants to be dropped. The box was made in
        // `free_fiber`.
        unsafe {
            let mut coroutine = Box::from_raw(fiber);
            coroutine.force_reset();
        }
    }
}

/// Leaves the fiber that runs.
///
/// # Safety
/// On a fiber.
unsafe fn pause(block: *mut Block, pause: Pause) {
    // SAFETY: set when the fiber began; it lives on the fiber's own stack.
    unsafe {
        let fiber = (*block).fiber;
        if let Some(yielder) = (&(*block).yielders)[fiber] {
            yielder.as_ref().suspend(pause);
        }
    }
}

/// Where a bad access goes on.
extern "C" fn landing() -> ! {
    loop {
        // SAFETY: bad accesses land here only while a kernel runs, and then on its fiber.
        unsafe { pause(NOW.load(Ordering::Acquire), Pause::Faulted) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_wait_block() {
    let now = NOW.load(Ordering::Acquire);
    // SAFETY: kernels call this on their fiber; the reference ends before the fiber is left.
    unsafe {
        let block = &mut *now;
        block.at_block += 1;
        if block.at_block == block.size {
            block.at_block = 0;
            block.states.fill(State::Ready);
            return;
        }
        let thread = block.thread;
        block.states[thread] = State::AtBlock;
        pause(now, Pause::Waits);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_is_last_of_warp(kind: u32) -> bool {
    // SAFETY: as above.
    let block = unsafe { &mut *NOW.load(Ordering::Acquire) };
    let index = block.thread / 32;
    let (arrived, of_kind) = block.arrived[index];
    arrived + 1 == block.warps[index].size && of_kind == kind
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_wait_warp(kind: u32) {
    let now = NOW.load(Ordering::Acquire);
    // SAFETY: as above.
    unsafe {
        let block = &mut *now;
        let (thread, index) = (block.thread, block.thread / 32);
        let size = block.warps[index].size;
        let (arrived, of_kind) = &mut block.arrived[index];
        block.mixed |= *arrived > 0 && *of_kind != kind;
        *of_kind = kind;
        *arrived += 1;
        if *arrived == size {
            *arrived = 0;
            block.warps[index].turn += 1;
            block.states[index * 32..index * 32 + size as usize].fill(State::Ready);
            return;
        }
        block.states[thread] = State::AtWarp;
        pause(now, Pause::Waits);
    }
}
