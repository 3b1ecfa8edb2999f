//! Switches between the fibers of a block's threads. Unsafe: kernels are C++, read variables of this file, and
//! call back. Must not know which thread runs next.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::kernels::KernelFn;
use crate::stacks::StaggeredStack;
use crate::sys::{BadAccess, PAGE_BYTES, bytes, catch_faults, fill, last_bad_access, map_guarded};

use super::grid_launch::{GridLaunch, LaunchFailure, MAX_SHARED_BYTES, POISON};
use super::thread_block::{Arrival, ThreadBlock, WARP_LANES};

/// `uint3` and `dim3`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Dim3 {
    x: u32,
    y: u32,
    z: u32,
}

impl From<[u32; 3]> for Dim3 {
    fn from([x, y, z]: [u32; 3]) -> Dim3 {
        Dim3 { x, y, z }
    }
}

/// `simgpu_warp` in `host/simgpu_host.h`.
#[repr(C)]
struct Warp {
    slots: [[u64; WARP_LANES]; 2],
    phase: u32,
    size: u32,
    d: [*mut f32; WARP_LANES],
    a: [[u32; 4]; WARP_LANES],
    b: [[u32; 2]; WARP_LANES],
}

impl Warp {
    fn empty() -> Warp {
        Warp {
            slots: [[0; WARP_LANES]; 2],
            phase: 0,
            size: 0,
            d: [std::ptr::null_mut(); WARP_LANES],
            a: [[0; 4]; WARP_LANES],
            b: [[0; 2]; WARP_LANES],
        }
    }
}

// The variables that a kernel reads. They need no lock: `FiberPool::run` takes `&mut FiberPool`, so only one
// thread runs kernels.
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
static CURRENT_BLOCK: AtomicPtr<RunningBlock> = AtomicPtr::new(std::ptr::null_mut());

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
struct RunningBlock {
    kernel: KernelFn,
    parameters: *mut *mut c_void,
    threads: ThreadBlock,
    current_fiber: usize,
    /// By thread.
    fiber_of: Vec<usize>,
    warps: Vec<Warp>,
    /// Boxes as raw pointers, because a kernel on a running fiber accesses the block.
    fibers: Vec<*mut Fiber>,
    /// By fiber.
    yielders: Vec<Option<NonNull<Yielder<(), YieldReason>>>>,
    free_fibers: Vec<usize>,
}

/// Fibers and shared memory, which all launches use.
pub(crate) struct FiberPool {
    block: Box<RunningBlock>,
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
        let block = RunningBlock {
            kernel: empty_kernel,
            parameters: std::ptr::null_mut(),
            threads: ThreadBlock::default(),
            current_fiber: 0,
            fiber_of: Vec::new(),
            warps: Vec::new(),
            fibers: Vec::new(),
            yielders: Vec::new(),
            free_fibers: Vec::new(),
        };
        let shared_address = map_guarded(SHARED_MAPPED_BYTES)?;
        Some(FiberPool { block: Box::new(block), shared_address, launches: 0 })
    }

    /// Runs all blocks of a launch in ascending order.
    ///
    /// # Safety
    /// `launch.parameters` has one pointer per parameter of the kernel, each to a value of its type.
    ///
    /// # Errors
    /// The first defect of a block. The rest of the launch does not run.
    pub(crate) unsafe fn run(&mut self, launch: &GridLaunch) -> Result<(), LaunchFailure> {
        let guard = catch_faults(on_fault);
        let block: *mut RunningBlock = &mut *self.block;
        CURRENT_BLOCK.store(block, Ordering::Release);
        // Shared memory ends at a page that cannot be accessed.
        let rounded = launch.shared_bytes.next_multiple_of(16);
        let shared = self.shared_address + SHARED_MAPPED_BYTES - rounded;
        // SAFETY: `self` is borrowed mutably, so no other thread runs kernels or uses the block and these
        // variables.
        unsafe {
            (*block).prepare(launch);
            simgpu_block_dim = launch.block.into();
            simgpu_grid_dim = launch.grid.into();
            simgpu_shared_base = shared as *mut c_void;
        }
        self.launches += 1;
        let mut parity = self.launches;
        for z in 0..launch.grid[2] {
            for y in 0..launch.grid[1] {
                for x in 0..launch.grid[0] {
                    parity += 1;
                    // SAFETY: `self` is borrowed mutably, so no other thread runs kernels. The block was
                    // prepared above, and the shared memory is mapped as long as the pool lives.
                    unsafe {
                        simgpu_block = Dim3 { x, y, z };
                        fill(shared, POISON, rounded);
                        run_block(block, parity % 2 == 1, [x, y, z])?;
                        let padding = bytes(shared + launch.shared_bytes, rounded - launch.shared_bytes);
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

impl RunningBlock {
    fn prepare(&mut self, launch: &GridLaunch) {
        self.kernel = launch.kernel;
        self.parameters = launch.parameters;
        self.threads.prepare(launch.block);
        self.fiber_of.resize(self.threads.thread_count(), 0);
        self.warps.resize_with(self.threads.warp_count(), Warp::empty);
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.size = self.threads.warp_size(index) as u32;
        }
    }

    /// Sets the variables that a kernel reads to those of a thread.
    ///
    /// # Safety
    /// No other thread of the process runs kernels.
    unsafe fn switch_to(&mut self, thread: usize) {
        let position = self.threads.switch_to(thread);
        // SAFETY: only kernels and this function use these variables, and no other thread runs kernels.
        unsafe {
            simgpu_thread = position.into();
            simgpu_lane = (thread % WARP_LANES) as u32;
            simgpu_this_warp = &raw mut self.warps[thread / WARP_LANES];
        }
    }
}

/// Runs one block, whose index in the grid is `block_index`.
///
/// # Safety
/// `block` is prepared, and no other thread of the process runs kernels.
unsafe fn run_block(
    block: *mut RunningBlock,
    descending: bool,
    block_index: [u32; 3],
) -> Result<(), LaunchFailure> {
    // SAFETY: this thread alone runs kernels, so nobody else uses the block. No reference into it is held
    // while a fiber runs, because kernels access it through `CURRENT_BLOCK`.
    unsafe {
        (*block).threads.begin(descending);
        while (*block).threads.has_unstarted() {
            let Some(fiber) = take_fiber(block) else { return Err(LaunchFailure::NoStack) };
            resume(block, fiber, block_index)?;
        }
        while (*block).threads.has_unfinished() {
            let mut has_progress = false;
            for index in 0..(*block).threads.thread_count() {
                if let Some(thread) = (*block).threads.ready_thread_at(index) {
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
        if let Some(failure) = (*block).threads.divergence(block_index) {
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
unsafe fn resume(block: *mut RunningBlock, fiber: usize, block_index: [u32; 3]) -> Result<(), LaunchFailure> {
    // SAFETY: this thread alone runs kernels, so nobody else uses the block. The fiber's box lives until
    // `discard_fibers`, and no other reference to its content exists.
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
                let access = last_bad_access().unwrap_or(BadAccess {
                    address: 0,
                    is_write: false,
                    is_division: false,
                });
                let thread = (*block).threads.current_thread();
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
unsafe fn take_fiber(block: *mut RunningBlock) -> Option<usize> {
    // SAFETY: this thread alone runs kernels and no fiber runs, so this is the only reference to the block.
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
unsafe fn run_threads(block: *mut RunningBlock) {
    // SAFETY: this thread alone runs kernels, so nobody else uses the block, and no reference into it is held
    // while the kernel runs. `FiberPool::run` requires that the parameters fit the kernel.
    unsafe {
        while let Some(thread) = (*block).threads.start_next() {
            let fiber = (*block).current_fiber;
            (&mut (*block).fiber_of)[thread] = fiber;
            (*block).switch_to(thread);
            ((*block).kernel)((*block).parameters);
            // If the thread has waited, `switch_to` has made it current again before the fiber was resumed.
            (*block).threads.finish_current();
        }
    }
}

/// Discards all fibers with their stacks.
///
/// # Safety
/// As for [`run_block`], and no fiber is running.
unsafe fn discard_fibers(block: *mut RunningBlock) {
    // SAFETY: this thread alone runs kernels and no fiber runs, so this is the only reference to the block.
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
unsafe fn yield_fiber(block: *mut RunningBlock, reason: YieldReason) {
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
    let block = CURRENT_BLOCK.load(Ordering::Acquire);
    // SAFETY: only kernels call this, on a fiber of the current block. The reference ends before the fiber
    // yields.
    unsafe {
        if (*block).threads.arrive_at_block() == Arrival::Waits {
            yield_fiber(block, YieldReason::Waiting);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_is_last_of_warp(kind: u32) -> bool {
    // SAFETY: only kernels call this, on a fiber of the current block, where no other reference into it
    // exists.
    unsafe { (*CURRENT_BLOCK.load(Ordering::Acquire)).threads.is_last_of_warp(kind) }
}

#[unsafe(no_mangle)]
extern "C" fn simgpu_wait_warp(kind: u32) {
    let current = CURRENT_BLOCK.load(Ordering::Acquire);
    // SAFETY: only kernels call this, on a fiber of the current block. The reference ends before the fiber
    // yields.
    unsafe {
        let block = &mut *current;
        match block.threads.arrive_at_warp(kind) {
            Arrival::Last => block.warps[block.threads.current_thread() / WARP_LANES].phase += 1,
            Arrival::Waits => yield_fiber(current, YieldReason::Waiting),
        }
    }
}
