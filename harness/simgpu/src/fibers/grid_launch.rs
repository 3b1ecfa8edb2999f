//! What a launch needs, and how it can fail. Must not know how threads run.

use std::ffi::c_void;

use crate::kernels::KernelFn;
use crate::sys::BadAccess;

/// Largest dynamic shared memory of any GPU.
pub(super) const MAX_SHARED_BYTES: usize = 232_448;
/// Value of each byte that was never written. Read as f32 or bf16, it is NaN.
pub(crate) const POISON: u8 = 0xFF;

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
