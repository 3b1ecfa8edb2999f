//! Launches: checks the arguments and queues the work. Unsafe: copies the parameters of kernels, and calls
//! functions of the program. Must not know which kernels there are.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::c_void;

use crate::codes;
use crate::faults::{Corruption, take_pending_corruptions};

use super::context::stream_of;
use super::limits::{MAX_BLOCK_Z, MAX_GRID_X, MAX_GRID_YZ, MAX_THREADS_PER_BLOCK};
use super::operations::{Handle, KernelLaunch, StreamWork};
use super::state::gpu;
use super::sys::{HostCall, HostFunction, result_code};

/// Queues a launch, with the corruptions that rules inject into it.
pub(crate) fn enqueue_launch(
    stream: Handle,
    work: StreamWork,
    corruptions: Vec<Corruption>,
) -> Result<(), u32> {
    let stream = stream_of(stream)?;
    gpu().enqueue_launch(stream, work, corruptions);
    Ok(())
}

/// The execution configuration of a launch, as in CUDA C's `<<<grid, block, shared, stream>>>`.
struct ExecutionConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: Handle,
}

/// # Safety
/// `parameters` is null or points to one pointer per parameter of the kernel, each to a value of the
/// parameter's type.
unsafe fn enqueue_kernel(
    handle: Handle,
    config: &ExecutionConfig,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> Result<(), u32> {
    // This launch takes its corruptions even if it fails, because they must not reach a later launch.
    let corruptions = take_pending_corruptions();
    let stream = stream_of(config.stream)?;
    let (kernel, max_shared_bytes) = {
        let gpu = gpu();
        let function = gpu.functions.get(&handle).ok_or(codes::INVALID_HANDLE)?;
        (function.kernel, function.max_shared_bytes)
    };
    let threads: u64 = config.block.iter().map(|size| u64::from(*size)).product();
    let block_fits =
        (1..=u64::from(MAX_THREADS_PER_BLOCK)).contains(&threads) && config.block[2] <= MAX_BLOCK_Z;
    let grid_x_fits = config.grid.iter().all(|size| *size > 0) && config.grid[0] <= MAX_GRID_X;
    let grid_yz_fits = config.grid[1] <= MAX_GRID_YZ && config.grid[2] <= MAX_GRID_YZ;
    if !block_fits || !grid_x_fits || !grid_yz_fits || config.shared_bytes as usize > max_shared_bytes {
        return Err(codes::INVALID_VALUE);
    }
    if !kernel.parameter_sizes.is_empty() && parameters.is_null() || !extra.is_null() {
        return Err(if extra.is_null() { codes::INVALID_VALUE } else { codes::NOT_SUPPORTED });
    }
    let mut work = KernelLaunch {
        kernel,
        grid: config.grid,
        block: config.block,
        shared_bytes: config.shared_bytes as usize,
        parameter_cells: Vec::new(),
        first_cells: Vec::with_capacity(kernel.parameter_sizes.len()),
    };
    for (index, size) in kernel.parameter_sizes.iter().enumerate() {
        work.first_cells.push(work.parameter_cells.len());
        let first = work.parameter_cells.len();
        work.parameter_cells.resize(first + (*size as usize).div_ceil(16), 0);
        // SAFETY: `parameters` has a pointer to a value of each parameter's size, as this function requires,
        // and the cells were made long enough.
        unsafe {
            let from = (*parameters.add(index)).cast::<u8>();
            let to = work.parameter_cells.as_mut_ptr().add(first).cast::<u8>();
            std::ptr::copy_nonoverlapping(from, to, *size as usize);
        }
    }
    gpu().enqueue_launch(stream, StreamWork::LaunchKernel(Box::new(work)), corruptions);
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
    let config = ExecutionConfig {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared_bytes,
        stream,
    };
    // SAFETY: CUDA requires one pointer per parameter of the kernel.
    result_code(unsafe { enqueue_kernel(function, &config, parameters, extra) })
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
    let config = ExecutionConfig {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        shared_bytes,
        stream,
    };
    // SAFETY: CUDA requires one pointer per parameter of the kernel.
    result_code(unsafe { enqueue_kernel(function, &config, parameters, std::ptr::null_mut()) })
}

/// `CUlaunchConfig`, without its attributes, which the simulation ignores.
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
    // SAFETY: CUDA requires `config` to be readable; null was checked.
    let LaunchConfig { grid, block, shared_bytes, stream } = unsafe { config.read() };
    let config = ExecutionConfig { grid, block, shared_bytes, stream };
    // SAFETY: CUDA requires one pointer per parameter of the kernel.
    result_code(unsafe { enqueue_kernel(function, &config, parameters, extra) })
}

pub(super) unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<HostFunction>,
    data: *mut c_void,
) -> u32 {
    let Some(function) = function else { return codes::INVALID_VALUE };
    // SAFETY: CUDA requires that the function accepts the data whenever the stream reaches the call.
    let call = unsafe { HostCall::new(function, data) };
    result_code(stream_of(stream).map(|stream| {
        gpu().enqueue(stream, StreamWork::CallHost(call));
    }))
}
