//! Launches: what is checked at the call, and what is queued.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::c_void;

use crate::codes;
use crate::driver::code;
use crate::hooks::take_corruptions;
use crate::rules::Corruption;

use super::state::{Handle, StreamPosition, gpu};
use super::stream::stream_of;
use super::work::{KernelLaunch, StreamWork};

/// Queues work that no rule twists.
pub(crate) fn enqueue(stream: Handle, work: StreamWork) -> Result<StreamPosition, u32> {
    Ok(gpu().enqueue(stream, Vec::new(), work, Vec::new()))
}

/// Queues a launch, with what happens to it by rules.
pub(crate) fn enqueue_launch(stream: Handle, work: StreamWork, twists: Vec<Corruption>) -> Result<(), u32> {
    let stream = stream_of(stream)?;
    gpu().enqueue(stream, Vec::new(), work, twists);
    Ok(())
}

struct ExecutionConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: Handle,
}

/// # Safety
/// `parameters` points to as many pointers as the kernel has parameters, each to a value of its type.
unsafe fn enqueue_kernel(
    handle: Handle,
    shape: &ExecutionConfig,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<(), u32> {
    // Taken whatever becomes of this launch: they must not fall upon another.
    let twists = take_corruptions();
    let stream = stream_of(shape.stream)?;
    let (kernel, shared_most) = {
        let gpu = gpu();
        let function = gpu.functions.get(&handle).ok_or(codes::INVALID_HANDLE)?;
        (function.kernel, function.max_shared_bytes)
    };
    let threads: u64 = shape.block.iter().map(|size| u64::from(*size)).product();
    let fits = (1..=1024).contains(&threads) && shape.block[2] <= 64;
    let blocks = shape.grid.iter().all(|size| *size > 0) && shape.grid[0] <= i32::MAX as u32;
    let planes = shape.grid[1] <= 65_535 && shape.grid[2] <= 65_535;
    if !fits || !blocks || !planes || shape.shared_bytes as usize > shared_most {
        return Err(codes::INVALID_VALUE);
    }
    if !kernel.parameter_sizes.is_empty() && parameters.is_null() || !extra.is_null() {
        return Err(if extra.is_null() { codes::INVALID_VALUE } else { codes::NOT_SUPPORTED });
    }
    let mut work = KernelLaunch {
        kernel,
        grid: shape.grid,
        block: shape.block,
        shared_bytes: shape.shared_bytes as usize,
        parameter_cells: Vec::new(),
        first_cells: Vec::with_capacity(kernel.parameter_sizes.len()),
    };
    for (index, size) in kernel.parameter_sizes.iter().enumerate() {
        work.first_cells.push(work.parameter_cells.len());
        let first = work.parameter_cells.len();
        work.parameter_cells.resize(first + (*size as usize).div_ceil(16), 0);
        // SAFETY: the caller's; the cells are long enough.
        unsafe {
            let from = (*parameters.add(index)).cast::<u8>();
            let to = work.parameter_cells.as_mut_ptr().add(first).cast::<u8>();
            std::ptr::copy_nonoverlapping(from, to, *size as usize);
        }
    }
    gpu().enqueue(stream, Vec::new(), StreamWork::LaunchKernel(Box::new(work)), twists);
    Ok(())
}

pub(super) unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: Handle,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    let shape = ExecutionConfig {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared_bytes,
        stream,
    };
    // SAFETY: the caller's arguments go on as they are, here and below.
    code(unsafe { enqueue_kernel(function, &shape, parameters, extra) })
}

pub(super) unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: Handle,
    parameters: *mut *mut c_void,
) -> u32 {
    let shape = ExecutionConfig {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared_bytes,
        stream,
    };
    // SAFETY: as above.
    code(unsafe { enqueue_kernel(function, &shape, parameters, std::ptr::null_mut()) })
}

/// `CUlaunchConfig`, without what the simulation does not look at: its attributes.
#[repr(C)]
pub(super) struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: Handle,
}

pub(super) unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: Handle,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> u32 {
    if config.is_null() {
        return codes::INVALID_VALUE;
    }
    // SAFETY: as above.
    let LaunchConfig { grid, block, shared_bytes, stream } = unsafe { config.read() };
    let shape = ExecutionConfig { grid, block, shared_bytes, stream };
    // SAFETY: as above.
    code(unsafe { enqueue_kernel(function, &shape, parameters, extra) })
}
