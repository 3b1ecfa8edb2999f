//! Runs the blocks of a launch. Their threads run one after another. A thread that waits for others keeps its
//! own fiber. Unsafe: kernels are C++ and call back. Must not know streams, device memory or rules.
//!
//! Blocks alternate between ascending and descending thread order, and the last thread to reach a barrier
//! continues first, so that a missing barrier shows in one of the orders.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::kernels::KernelFn;
use crate::stacks::StaggeredStack;
use crate::sys::{self, BadAccess, PAGE_BYTES};

/// Largest dynamic shared memory of any GPU.
pub(crate) const MAX_SHARED_BYTES: usize = 232_448;
/// Value of each byte that was never written. Read as f32 or bf16, it is NaN.
pub(crate) const POISON: u8 = 0xFF;

/// `uint3` and `dim3`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Dim3 {
    x: u32,
    y: u32,
    z: u32,
}

/// `simgpu_warp` in `host/simgpu_host.h`.
#[repr(C)]
struct Warp {
    slots: [[u64; 32]; 2],
    phase: u32,
    size: u32,
    d: [*mut f32; 32],
    a: [[u32; 4]; 32],
    b: [[u32; 2]; 32],
}

// The variables that a kernel reads. They need no lock: `run` takes `&mut FiberPool`, so only one thread runs
// kernels.
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

/// The running block, for the functions that kernels call.
static CURRENT_BLOCK: AtomicPtr<ThreadBlock> = AtomicPtr::new(std::ptr::null_mut());

/// A kernel with its parameters and dimensions.
pub(crate) struct GridLaunch {
    pub(crate) kernel: KernelFn,
    pub(crate) parameters: *mut *mut c_void,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: usize,
}

/// Why a launch failed, and in which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaunchFailure {
    /// A thread accessed memory that is not mapped, overflowed its stack, or divided by zero.
    BadAccess { access: BadAccess, block: [u32; 3], thread: usize },
    /// Threads wait for others that have finished or that wait elsewhere. The numbers count threads.
    Divergent { block: [u32; 3], at_block: usize, at_warp: usize, finished: usize },
    /// The kernel wrote past the end of the dynamic shared memory.
    SharedOverrun { block: [u32; 3] },
    /// There was no memory for the stack of a fiber.
    NoStack,
}

/// State of a thread of the running block.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ThreadState {
    Unstarted,
    Ready,
    /// Waits for its warp.
    AtWarp,
    /// Waits for its block.
    AtBlock,
    Finished,
}

/// Why a fiber yields.
enum YieldReason {
    /// Its thread waits for other threads.
    Waiting,
    /// There are no unstarted threads.
    Idle,
    /// Its thread made a bad access.
    Faulted,
}

type Fiber = Coroutine<(), YieldReason, (), StaggeredStack>;

/// The block that runs, and the fibers of its threads.
struct ThreadBlock {
    kernel: KernelFn,
    parameters: *mut *mut c_void,
    dims: [u32; 3],
    thread_count: usize,
    descending: bool,
    started: usize,
    finished: usize,
    at_block: usize,
    /// Whether lanes of one warp arrived at different collectives.
    has_mixed_collectives: bool,
    current_thread: usize,
    current_fiber: usize,
    /// By thread.
    states: Vec<ThreadState>,
    /// By thread.
    fiber_of: Vec<usize>,
    warps: Vec<Warp>,
    /// By warp: the number of lanes that have arrived at the current collective, and its kind.
    arrived: Vec<(u32, u32)>,
    /// Boxes as raw pointers, because a kernel on a running fiber accesses the block.
    fibers: Vec<*mut Fiber>,
    /// By fiber.
    yielders: Vec<Option<NonNull<Yielder<(), YieldReason>>>>,
    free_fibers: Vec<usize>,
}

/// Fibers and shared memory, which all launches use.
pub(crate) struct FiberPool {
    block: Box<ThreadBlock>,
    shared_address: usize,
    launches: u64,
}

// SAFETY: only the owner of the value runs kernels. Another thread may resume a stack, because kernels have
// no thread-local variables.
unsafe impl Send for FiberPool {}

const SHARED_MAPPED_BYTES: usize = MAX_SHARED_BYTES.next_multiple_of(PAGE_BYTES);

impl FiberPool {
    /// Returns `None` if there is no memory.
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

    /// Runs all blocks of a launch in ascending order.
    ///
    /// # Safety
    /// `launch.parameters` has one pointer per parameter of the kernel, each to a value of its type.
    pub(crate) unsafe fn run(&mut self, launch: &GridLaunch) -> Result<(), LaunchFailure> {
        let guard = sys::catch_faults(on_fault);
        let block: *mut ThreadBlock = &mut *self.block;
        CURRENT_BLOCK.store(block, Ordering::Release);
        // Shared memory ends at a page that cannot be accessed.
        let rounded = launch.shared_bytes.next_multiple_of(16);
        let shared = self.shared_address + SHARED_MAPPED_BYTES - rounded;
        // SAFETY: `self` is borrowed mutably, so no other thread runs kernels or uses the block and these
        // variables.
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
                    // SAFETY: no other thread runs kernels, the block is prepared, and the shared memory is
                    // mapped.
                    unsafe {
                        simgpu_block = Dim3 { x, y, z };
                        sys::fill(shared, POISON, rounded);
                        run_block(block, parity % 2 == 1, [x, y, z])?;
                        let padding = sys::bytes(shared + launch.shared_bytes, rounded - launch.shared_bytes);
                        if padding.iter().any(|byte| *byte != POISON) {
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

    /// Returns the thread at an index of the block's order.
    fn thread_at(&self, index: usize) -> usize {
        if self.descending { self.thread_count - 1 - index } else { index }
    }

    /// Sets the variables that a kernel reads to those of a thread.
    ///
    /// # Safety
    /// No other thread of the process runs kernels.
    unsafe fn switch_to(&mut self, thread: usize) {
        self.current_thread = thread;
        let [width, height, _] = self.dims.map(|size| size as usize);
        let position = match (width == self.thread_count, width * height) {
            (true, _) => Dim3 { x: thread as u32, y: 0, z: 0 },
            (false, plane) => Dim3 {
                x: (thread % width) as u32,
                y: (thread / width % height) as u32,
                z: (thread / plane) as u32,
            },
        };
        // SAFETY: the caller promises that no other thread runs kernels, so none uses these variables.
        unsafe {
            simgpu_thread = position;
            simgpu_lane = (thread % 32) as u32;
            simgpu_this_warp = &raw mut self.warps[thread / 32];
        }
    }

    fn divergent(&self, block: [u32; 3]) -> LaunchFailure {
        let count = |state| self.states.iter().filter(|current| **current == state).count();
        LaunchFailure::Divergent {
            block,
            at_block: count(ThreadState::AtBlock),
            at_warp: count(ThreadState::AtWarp),
            finished: count(ThreadState::Finished),
        }
    }
}

/// Runs one block, whose index in the grid is `block_index`.
///
/// # Safety
/// `block` is prepared, and no other thread of the process runs kernels.
unsafe fn run_block(
    block: *mut ThreadBlock,
    descending: bool,
    block_index: [u32; 3],
) -> Result<(), LaunchFailure> {
    // SAFETY: the caller promises exclusive use of the block. No reference into it is held while a fiber
    // runs, because kernels access it through `CURRENT_BLOCK`.
    unsafe {
        (*block).begin(descending);
        while (*block).has_unstarted() {
            let Some(fiber) = take_fiber(block) else { return Err(LaunchFailure::NoStack) };
            resume(block, fiber, block_index)?;
        }
        while (*block).has_unfinished() {
            let mut has_progress = false;
            for index in 0..(*block).thread_count {
                let thread = (*block).thread_at(index);
                if (&(*block).states)[thread] == ThreadState::Ready {
                    has_progress = true;
                    (*block).switch_to(thread);
                    let fiber = (&(*block).fiber_of)[thread];
                    resume(block, fiber, block_index)?;
                }
            }
            if !has_progress {
                break;
            }
        }
        if (*block).has_unfinished() || (*block).has_mixed_collectives {
            let failure = (*block).divergent(block_index);
            discard_fibers(block);
            return Err(failure);
        }
    }
    Ok(())
}

/// Resumes a fiber until it yields.
///
/// # Safety
/// As for [`run_block`]. The fiber exists and is suspended or unstarted.
unsafe fn resume(block: *mut ThreadBlock, fiber: usize, block_index: [u32; 3]) -> Result<(), LaunchFailure> {
    // SAFETY: the caller promises exclusive use of the block. The fiber's box lives until `discard_fibers`,
    // and no other reference to its content exists.
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
                Err(LaunchFailure::BadAccess { access, block: block_index, thread })
            }
        }
    }
}

/// Returns a free or new fiber, or `None` if there is no memory for a stack.
///
/// # Safety
/// As for [`run_block`], and no fiber is running.
unsafe fn take_fiber(block: *mut ThreadBlock) -> Option<usize> {
    // SAFETY: the caller promises exclusive use of the block.
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
        // SAFETY: the fiber starts inside `resume`, which holds no reference into the current block.
        unsafe {
            let fiber = (*block).current_fiber;
            (&mut (*block).yielders)[fiber] = Some(NonNull::from(yielder));
        }
        loop {
            // SAFETY: this runs on a fiber of the current block, whose parameters fit its kernel.
            unsafe { run_threads(CURRENT_BLOCK.load(Ordering::Acquire)) };
            yielder.suspend(YieldReason::Idle);
        }
    })
}

/// Runs unstarted threads one after another. A thread that waits suspends the fiber in between.
///
/// # Safety
/// As for [`run_block`]. Runs on a fiber.
unsafe fn run_threads(block: *mut ThreadBlock) {
    // SAFETY: the caller promises exclusive use of the block, and no reference into it is held while the
    // kernel runs. The parameters fit the kernel.
    unsafe {
        while (*block).has_unstarted() {
            let thread = (*block).thread_at((*block).started);
            (*block).started += 1;
            let fiber = (*block).current_fiber;
            (&mut (*block).fiber_of)[thread] = fiber;
            (*block).switch_to(thread);
            ((*block).kernel)((*block).parameters);
            // If the thread has waited, `switch_to` has made it current again before the fiber was resumed.
            let thread = (*block).current_thread;
            (&mut (*block).states)[thread] = ThreadState::Finished;
            (*block).finished += 1;
        }
    }
}

/// Discards all fibers with their stacks.
///
/// # Safety
/// As for [`run_block`], and no fiber is running.
unsafe fn discard_fibers(block: *mut ThreadBlock) {
    // SAFETY: the caller promises exclusive use of the block, and no fiber runs that could access it.
    let block = unsafe { &mut *block };
    block.free_fibers.clear();
    block.yielders.clear();
    for fiber in block.fibers.drain(..) {
        // SAFETY: `take_fiber` made the box. Kernels are C++ code without destructors, so their stacks hold
        // nothing that must be dropped.
        unsafe {
            let mut coroutine = Box::from_raw(fiber);
            coroutine.force_reset();
        }
    }
}

/// Suspends the running fiber.
///
/// # Safety
/// Runs on a fiber of `block`, and the caller holds no reference into the block.
unsafe fn yield_fiber(block: *mut ThreadBlock, reason: YieldReason) {
    // SAFETY: the fiber has stored its yielder when it started. The yielder lives as long as the fiber's
    // stack.
    unsafe {
        let fiber = (*block).current_fiber;
        if let Some(yielder) = (&(*block).yielders)[fiber] {
            yielder.as_ref().suspend(reason);
        }
    }
}

/// Where a thread continues after a bad access.
extern "C" fn on_fault() -> ! {
    loop {
        // SAFETY: bad accesses are only caught while a kernel runs, so this is on a fiber of the current
        // block.
        unsafe { yield_fiber(CURRENT_BLOCK.load(Ordering::Acquire), YieldReason::Faulted) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_wait_block() {
    let current = CURRENT_BLOCK.load(Ordering::Acquire);
    // SAFETY: only kernels call this, on a fiber of the current block. The reference ends before the fiber
    // yields.
    unsafe {
        let block = &mut *current;
        block.at_block += 1;
        if block.at_block == block.thread_count {
            block.at_block = 0;
            block.states.fill(ThreadState::Ready);
            return;
        }
        let thread = block.current_thread;
        block.states[thread] = ThreadState::AtBlock;
        yield_fiber(current, YieldReason::Waiting);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_is_last_of_warp(kind: u32) -> bool {
    // SAFETY: only kernels call this, on a fiber of the current block, where no other reference into it
    // exists.
    let block = unsafe { &mut *CURRENT_BLOCK.load(Ordering::Acquire) };
    let index = block.current_thread / 32;
    let (arrived, of_kind) = block.arrived[index];
    arrived + 1 == block.warps[index].size && of_kind == kind
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_wait_warp(kind: u32) {
    let current = CURRENT_BLOCK.load(Ordering::Acquire);
    // SAFETY: only kernels call this, on a fiber of the current block. The reference ends before the fiber
    // yields.
    unsafe {
        let block = &mut *current;
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
        yield_fiber(current, YieldReason::Waiting);
    }
}
