//! Runs the blocks of a launch: threads one after another, each on a fiber of its own once it has to wait for others.
//! Unsafe: kernels are C++ and call back. It must not know streams, memory or faults.
//!
//! Blocks alternate between ascending and descending order of their threads, and the last thread to come to a barrier goes
//! on ahead of the others: a missing barrier shows in one order or the other.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::kernels::KernelFn;
use crate::stacks::StaggeredStack;
use crate::sys::{self, BadAccess, PAGE_BYTES};

/// Most dynamic shared memory that any card has.
pub(crate) const MAX_SHARED_BYTES: usize = 232_448;
/// What memory holds before anything is written: not a number, read as a float or a bf16.
pub(crate) const POISON: u8 = 0xFF;

#[repr(C)]
#[derive(Clone, Copy)]
struct Dim3 {
    x: u32,
    y: u32,
    z: u32,
}

/// As in `host/simgpu_host.h`.
#[repr(C)]
struct Warp {
    slots: [[u64; 32]; 2],
    phase: u32,
    size: u32,
    d: [*mut f32; 32],
    a: [[u32; 4]; 32],
    b: [[u32; 2]; 32],
}

// What a kernel sees. Plain variables: only one thread of the process runs kernels at a time (`run` asks for `&mut Fibers`).
#[unsafe(no_mangle)]
static mut simgpu_thread: Dim3 = Dim3 { x: 0, y: 0, z: 0 };
#[unsafe(no_mangle)]
static mut simgpu_block: Dim3 = Dim3 { x: 0, y: 0, z: 0 };
#[unsafe(no_mangle)]
static mut simgpu_block_dim: Dim3 = Dim3 { x: 1, y: 1, z: 1 };
#[unsafe(no_mangle)]
static mut simgpu_grid_dim: Dim3 = Dim3 { x: 1, y: 1, z: 1 };
#[unsafe(no_mangle)]
static mut simgpu_lane: u32 = 0;
#[unsafe(no_mangle)]
static mut simgpu_this_warp: *mut Warp = std::ptr::null_mut();
#[unsafe(no_mangle)]
static mut simgpu_shared_base: *mut c_void = std::ptr::null_mut();

/// The block that runs, for what kernels call.
static CURRENT_BLOCK: AtomicPtr<ThreadBlock> = AtomicPtr::new(std::ptr::null_mut());

/// What is to run.
pub(crate) struct GridLaunch {
    pub(crate) kernel: KernelFn,
    pub(crate) parameters: *mut *mut c_void,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: usize,
}

/// Why a launch did not come to its end, and in which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaunchFailure {
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
        finished: usize,
    },
    /// Something was written behind the dynamic shared memory.
    SharedOverrun {
        block: [u32; 3],
    },
    NoStack,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ThreadState {
    Unstarted,
    Ready,
    AtWarp,
    AtBlock,
    Finished,
}

enum YieldReason {
    Waiting,
    Idle,
    Faulted,
}

type Fiber = Coroutine<(), YieldReason, (), StaggeredStack>;

struct ThreadBlock {
    kernel: KernelFn,
    parameters: *mut *mut c_void,
    dims: [u32; 3],
    thread_count: usize,
    descending: bool,
    started: usize,
    finished: usize,
    at_block: usize,
    /// Lanes of one warp came to different collectives.
    has_mixed_collectives: bool,
    current_thread: usize,
    current_fiber: usize,
    states: Vec<ThreadState>,
    fiber_of: Vec<usize>,
    warps: Vec<Warp>,
    /// Lanes that have come to the warp's present collective, and its kind.
    arrived: Vec<(u32, u32)>,
    /// Boxes, as raw pointers: kernels reach the block while one of them is gone on with.
    fibers: Vec<*mut Fiber>,
    yielders: Vec<Option<NonNull<Yielder<(), YieldReason>>>>,
    free_fibers: Vec<usize>,
}

/// Fibers and shared memory, kept from launch to launch.
pub(crate) struct FiberPool {
    block: Box<ThreadBlock>,
    shared_address: usize,
    launches: u64,
}

// SAFETY: whoever has the value is the only one who runs kernels; stacks may be gone on with by another thread, for kernels
// keep nothing in thread-local variables.
unsafe impl Send for FiberPool {}

const SHARED_MAPPED_BYTES: usize = MAX_SHARED_BYTES.next_multiple_of(PAGE_BYTES);

impl FiberPool {
    pub(crate) fn new() -> Option<FiberPool> {
        let block = ThreadBlock {
            kernel: empty_kernel,
            parameters: std::ptr::null_mut(),
            dims: [1; 3],
            thread_count: 0,
            descending: false,
            started: 0,
            finished: 0,
            at_block: 0,
            has_mixed_collectives: false,
            current_thread: 0,
            current_fiber: 0,
            states: Vec::new(),
            fiber_of: Vec::new(),
            warps: Vec::new(),
            arrived: Vec::new(),
            fibers: Vec::new(),
            yielders: Vec::new(),
            free_fibers: Vec::new(),
        };
        Some(FiberPool {
            block: Box::new(block),
            shared_address: sys::map_guarded(SHARED_MAPPED_BYTES)?,
            launches: 0,
        })
    }

    /// Runs all blocks, in order.
    ///
    /// # Safety
    /// The parameters are those of the kernel.
    pub(crate) unsafe fn run(&mut self, launch: &GridLaunch) -> Result<(), LaunchFailure> {
        let guard = sys::catch_faults(on_fault);
        let block: *mut ThreadBlock = &mut *self.block;
        CURRENT_BLOCK.store(block, Ordering::Release);
        // The end of shared memory lies before a page that can't be touched.
        let rounded = launch.shared_bytes.next_multiple_of(16);
        let shared = self.shared_address + SHARED_MAPPED_BYTES - rounded;
        // SAFETY: nobody else runs kernels while `self` is borrowed.
        unsafe {
            (*block).prepare(launch);
            simgpu_block_dim = dim3(launch.block);
            simgpu_grid_dim = dim3(launch.grid);
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
                        simgpu_block = Dim3 { x, y, z };
                        sys::fill(shared, POISON, rounded);
                        run_block(block, parity % 2 == 1, [x, y, z])?;
                        let behind = sys::bytes(shared + launch.shared_bytes, rounded - launch.shared_bytes);
                        if behind.iter().any(|byte| *byte != POISON) {
                            return Err(LaunchFailure::SharedOverrun { block: [x, y, z] });
                        }
                    }
                }
            }
        }
        drop(guard);
        Ok(())
    }
}

unsafe extern "C" fn empty_kernel(_: *mut *mut c_void) {}

fn dim3([x, y, z]: [u32; 3]) -> Dim3 {
    Dim3 { x, y, z }
}

impl ThreadBlock {
    fn prepare(&mut self, launch: &GridLaunch) {
        self.kernel = launch.kernel;
        self.parameters = launch.parameters;
        self.dims = launch.block;
        self.thread_count = launch.block.iter().map(|size| *size as usize).product();
        let warps = self.thread_count.div_ceil(32);
        self.states.resize(self.thread_count, ThreadState::Unstarted);
        self.fiber_of.resize(self.thread_count, 0);
        self.arrived.resize(warps, (0, 0));
        let (slots, a, b) = ([[0; 32]; 2], [[0; 4]; 32], [[0; 2]; 32]);
        self.warps.resize_with(warps, || Warp {
            slots,
            phase: 0,
            size: 0,
            d: [std::ptr::null_mut(); 32],
            a,
            b,
        });
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.size = (self.thread_count - index * 32).min(32) as u32;
        }
    }

    fn begin(&mut self, descending: bool) {
        self.descending = descending;
        (self.started, self.finished, self.at_block, self.has_mixed_collectives) = (0, 0, 0, false);
        self.states.fill(ThreadState::Unstarted);
        self.arrived.fill((0, 0));
    }

    fn has_unstarted(&self) -> bool {
        self.started < self.thread_count
    }

    fn has_unfinished(&self) -> bool {
        self.finished < self.thread_count
    }

    fn thread_at(&self, place: usize) -> usize {
        if self.descending { self.thread_count - 1 - place } else { place }
    }

    /// Makes `thread` the one that runs.
    ///
    /// # Safety
    /// Only where kernels run.
    unsafe fn switch_to(&mut self, thread: usize) {
        self.current_thread = thread;
        let [width, height, _] = self.dims.map(|size| size as usize);
        let place = match (width == self.thread_count, width * height) {
            (true, _) => Dim3 { x: thread as u32, y: 0, z: 0 },
            (false, plane) => Dim3 {
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

    fn divergent(&self, block: [u32; 3]) -> LaunchFailure {
        let count = |state| self.states.iter().filter(|is| **is == state).count();
        LaunchFailure::Divergent {
            block,
            at_block: count(ThreadState::AtBlock),
            at_warp: count(ThreadState::AtWarp),
            finished: count(ThreadState::Finished),
        }
    }
}

/// # Safety
/// `block` is prepared, and nobody else runs kernels.
unsafe fn run_block(block: *mut ThreadBlock, descending: bool, at: [u32; 3]) -> Result<(), LaunchFailure> {
    // SAFETY: the caller's; no reference into the block is held while a fiber runs, for kernels reach it through `NOW`.
    unsafe {
        (*block).begin(descending);
        while (*block).has_unstarted() {
            let Some(fiber) = take_fiber(block) else { return Err(LaunchFailure::NoStack) };
            resume(block, fiber, at)?;
        }
        while (*block).has_unfinished() {
            let mut moved = false;
            for place in 0..(*block).thread_count {
                let thread = (*block).thread_at(place);
                if (&(*block).states)[thread] == ThreadState::Ready {
                    moved = true;
                    (*block).switch_to(thread);
                    let fiber = (&(*block).fiber_of)[thread];
                    resume(block, fiber, at)?;
                }
            }
            if !moved {
                break;
            }
        }
        if (*block).has_unfinished() || (*block).has_mixed_collectives {
            let failed = (*block).divergent(at);
            discard_fibers(block);
            return Err(failed);
        }
    }
    Ok(())
}

/// # Safety
/// As of [`run_block`]; the fiber waits or is idle.
unsafe fn resume(block: *mut ThreadBlock, fiber: usize, at: [u32; 3]) -> Result<(), LaunchFailure> {
    // SAFETY: the caller's; the box lives until `abandon`, and nobody else has a reference to what it holds.
    unsafe {
        (*block).current_fiber = fiber;
        let coroutine = (&(*block).fibers)[fiber];
        match (*coroutine).resume(()) {
            CoroutineResult::Yield(YieldReason::Waiting) => Ok(()),
            CoroutineResult::Yield(YieldReason::Idle) | CoroutineResult::Return(()) => {
                (*block).free_fibers.push(fiber);
                Ok(())
            }
            CoroutineResult::Yield(YieldReason::Faulted) => {
                let access = sys::last_bad_access().unwrap_or(BadAccess {
                    address: 0,
                    is_write: false,
                    is_division: false,
                });
                let thread = (*block).current_thread;
                discard_fibers(block);
                Err(LaunchFailure::BadAccess { access, block: at, thread })
            }
        }
    }
}

/// # Safety
/// As of [`run_block`].
unsafe fn take_fiber(block: *mut ThreadBlock) -> Option<usize> {
    // SAFETY: the caller's.
    let block = unsafe { &mut *block };
    if let Some(fiber) = block.free_fibers.pop() {
        return Some(fiber);
    }
    let stack = StaggeredStack::new(block.fibers.len())?;
    block.fibers.push(Box::into_raw(Box::new(coroutine(stack))));
    block.yielders.push(None);
    Some(block.fibers.len() - 1)
}

fn coroutine(stack: StaggeredStack) -> Fiber {
    Coroutine::with_stack(stack, |yielder, ()| {
        let block = CURRENT_BLOCK.load(Ordering::Acquire);
        // SAFETY: only `resume` gets here, with the block that it runs.
        unsafe {
            let fiber = (*block).current_fiber;
            (&mut (*block).yielders)[fiber] = Some(NonNull::from(yielder));
        }
        loop {
            // SAFETY: as above; parameters are those of the kernel.
            unsafe { run_threads(CURRENT_BLOCK.load(Ordering::Acquire)) };
            yielder.suspend(YieldReason::Idle);
        }
    })
}

/// Runs fresh threads one after another until none is left, or until one has to wait.
///
/// # Safety
/// As of [`run_block`], on a fiber.
unsafe fn run_threads(block: *mut ThreadBlock) {
    // SAFETY: the caller's.
    unsafe {
        while (*block).has_unstarted() {
            let thread = (*block).thread_at((*block).started);
            (*block).started += 1;
            let fiber = (*block).current_fiber;
            (&mut (*block).fiber_of)[thread] = fiber;
            (*block).switch_to(thread);
            ((*block).kernel)((*block).parameters);
            // It may have waited: another thread of the block is not what ended here.
            let thread = (*block).current_thread;
            (&mut (*block).states)[thread] = ThreadState::Finished;
            (*block).finished += 1;
        }
    }
}

/// Forgets all that waits, and its stacks' contents.
///
/// # Safety
/// As of [`run_block`], not on a fiber.
unsafe fn discard_fibers(block: *mut ThreadBlock) {
    // SAFETY: the caller's.
    let block = unsafe { &mut *block };
    block.free_fibers.clear();
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
unsafe fn yield_fiber(block: *mut ThreadBlock, pause: YieldReason) {
    // SAFETY: set when the fiber began; it lives on the fiber's own stack.
    unsafe {
        let fiber = (*block).current_fiber;
        if let Some(yielder) = (&(*block).yielders)[fiber] {
            yielder.as_ref().suspend(pause);
        }
    }
}

/// Where a bad access goes on.
extern "C" fn on_fault() -> ! {
    loop {
        // SAFETY: bad accesses land here only while a kernel runs, and then on its fiber.
        unsafe { yield_fiber(CURRENT_BLOCK.load(Ordering::Acquire), YieldReason::Faulted) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_wait_block() {
    let now = CURRENT_BLOCK.load(Ordering::Acquire);
    // SAFETY: kernels call this on their fiber; the reference ends before the fiber is left.
    unsafe {
        let block = &mut *now;
        block.at_block += 1;
        if block.at_block == block.thread_count {
            block.at_block = 0;
            block.states.fill(ThreadState::Ready);
            return;
        }
        let thread = block.current_thread;
        block.states[thread] = ThreadState::AtBlock;
        yield_fiber(now, YieldReason::Waiting);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_is_last_of_warp(kind: u32) -> bool {
    // SAFETY: as above.
    let block = unsafe { &mut *CURRENT_BLOCK.load(Ordering::Acquire) };
    let index = block.current_thread / 32;
    let (arrived, of_kind) = block.arrived[index];
    arrived + 1 == block.warps[index].size && of_kind == kind
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_wait_warp(kind: u32) {
    let now = CURRENT_BLOCK.load(Ordering::Acquire);
    // SAFETY: as above.
    unsafe {
        let block = &mut *now;
        let (thread, index) = (block.current_thread, block.current_thread / 32);
        let size = block.warps[index].size;
        let (arrived, of_kind) = &mut block.arrived[index];
        block.has_mixed_collectives |= *arrived > 0 && *of_kind != kind;
        *of_kind = kind;
        *arrived += 1;
        if *arrived == size {
            *arrived = 0;
            block.warps[index].phase += 1;
            block.states[index * 32..index * 32 + size as usize].fill(ThreadState::Ready);
            return;
        }
        block.states[thread] = ThreadState::AtWarp;
        yield_fiber(now, YieldReason::Waiting);
    }
}
