//! The simulated driver: one file for each group of its functions. Unsafe: C calls it.
//!
//! What a function does to the state lies here; how work is carried out lies in `work`, and who carries it out in `wait`. It
//! must not know rules but for what they do to memory.

mod context;
pub(crate) mod info;
pub(crate) mod launch;
mod memory;
mod module;
pub(crate) mod state;
mod stream;
pub(crate) mod wait;
pub(crate) mod work;

use std::ffi::{CStr, c_char};

use crate::codes;

pub(crate) use context::has_context;
pub(crate) use module::kernel_name;

/// Writes an answer.
///
/// # Safety
/// `at` is null or a valid place for the answer.
unsafe fn write_out<T>(at: *mut T, value: T) -> u32 {
    if at.is_null() {
        return codes::INVALID_VALUE;
    }
    // SAFETY: the caller's.
    unsafe { at.write_unaligned(value) };
    codes::SUCCESS
}

/// # Safety
/// `at` is null or a string of C.
unsafe fn c_str<'a>(at: *const c_char) -> Option<&'a str> {
    // SAFETY: the caller's.
    (!at.is_null()).then(|| unsafe { CStr::from_ptr(at) }.to_str().ok()).flatten()
}

/// Writes a string and its NUL, cut to `length`.
///
/// # Safety
/// `at` is null or has room for `length` bytes.
pub(crate) unsafe fn write_c_str(at: *mut c_char, length: usize, value: &str) -> u32 {
    if at.is_null() || length == 0 {
        return codes::INVALID_VALUE;
    }
    let bytes = value.len().min(length - 1);
    // SAFETY: the caller's.
    unsafe {
        std::ptr::copy_nonoverlapping(value.as_ptr().cast(), at, bytes);
        at.add(bytes).write(0);
    }
    codes::SUCCESS
}

fn code(result: Result<(), u32>) -> u32 {
    result.err().unwrap_or(codes::SUCCESS)
}

/// What functions give that the simulation does not have.
pub(crate) unsafe extern "C" fn not_supported() -> u32 {
    codes::NOT_SUPPORTED
}

/// What is free is left in holes.
pub(crate) fn fragment(hole_bytes: u64) {
    state::gpu().memory.fragment(hole_bytes);
}

/// One bit of the largest allocation, after what was given out before.
pub(crate) fn flip_bit_now(seed: u64, rule: usize) {
    let places = state::gpu().pending_in(None);
    if wait::wait_for(&places).is_ok() {
        work::flip_bit(seed, rule);
    }
}

macro_rules! targets {
    ($($module:ident: $($name:ident)*;)*) => {
        /// Where a function goes on; none: the simulation does not have it.
        pub(crate) fn target(name: &str) -> Option<usize> {
            match name {
                $($(stringify!($name) => Some($module::$name as *const () as usize),)*)*
                _ => None,
            }
        }
    };
}

targets! {
    info: cuInit cuDriverGetVersion cuGetErrorName cuGetErrorString cuGetProcAddress cuGetProcAddress_v2
        cuDeviceGet cuDeviceGetCount cuDeviceGetName cuDeviceGetUuid cuDeviceGetUuid_v2 cuDeviceTotalMem_v2
        cuDeviceGetAttribute cuDeviceComputeCapability cuDeviceGetPCIBusId cuDeviceGetByPCIBusId
        cuDeviceCanAccessPeer cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceSetMemPool;
    context: cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2
        cuDevicePrimaryCtxSetFlags_v2 cuDevicePrimaryCtxGetState cuCtxCreate_v2 cuCtxCreate_v3 cuCtxCreate_v4
        cuCtxDestroy_v2 cuCtxSetCurrent cuCtxGetCurrent cuCtxPushCurrent_v2 cuCtxPopCurrent_v2 cuCtxGetDevice
        cuCtxSynchronize cuCtxGetApiVersion cuCtxGetFlags cuCtxSetFlags cuCtxGetLimit cuCtxSetLimit
        cuCtxGetCacheConfig cuCtxSetCacheConfig cuCtxGetStreamPriorityRange cuCtxGetId;
    stream: cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamSynchronize cuStreamQuery
        cuStreamWaitEvent cuStreamGetCtx cuStreamGetFlags cuStreamGetPriority cuStreamIsCapturing cuStreamGetId
        cuLaunchHostFunc cuEventCreate cuEventRecord cuEventRecordWithFlags cuEventQuery cuEventSynchronize
        cuEventDestroy_v2 cuEventElapsedTime cuEventElapsedTime_v2;
    memory: cuMemAlloc_v2 cuMemFree_v2 cuMemAllocAsync cuMemAllocFromPoolAsync cuMemFreeAsync cuMemAllocManaged
        cuMemGetInfo_v2 cuMemGetAddressRange_v2 cuMemHostAlloc cuMemAllocHost_v2 cuMemFreeHost
        cuMemHostGetDevicePointer_v2 cuMemHostGetFlags cuMemHostRegister_v2 cuMemHostUnregister cuPointerGetAttribute
        cuMemcpy cuMemcpyAsync cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuMemcpyDtoD_v2 cuMemcpyHtoDAsync_v2
        cuMemcpyDtoHAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyPeer cuMemcpyPeerAsync
        cuMemsetD8_v2 cuMemsetD16_v2 cuMemsetD32_v2 cuMemsetD8Async cuMemsetD16Async cuMemsetD32Async
        cuMemPoolCreate cuMemPoolDestroy cuMemPoolTrimTo cuMemPoolSetAttribute cuMemPoolGetAttribute
        cuMemPrefetchAsync cuMemPrefetchAsync_v2 cuMemAdvise cuMemAdvise_v2;
    module: cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary cuModuleLoad cuModuleUnload cuModuleGetFunction
        cuModuleGetGlobal_v2 cuModuleGetLoadingMode cuLibraryLoadData cuLibraryUnload cuLibraryGetKernel
        cuLibraryGetModule cuKernelGetFunction cuKernelGetName cuFuncGetName cuFuncGetModule cuFuncGetAttribute
        cuFuncSetAttribute cuFuncSetCacheConfig cuFuncLoad cuFuncIsLoaded cuKernelGetAttribute cuKernelSetAttribute
        cuOccupancyMaxActiveBlocksPerMultiprocessor cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
        cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags
        cuOccupancyAvailableDynamicSMemPerBlock;
    launch: cuLaunchKernel cuLaunchKernelEx cuLaunchCooperativeKernel;
}
