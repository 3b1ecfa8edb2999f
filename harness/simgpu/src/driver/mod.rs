//! The simulated driver: one file per group of its functions, which queue `operations` in the `state`. `work`
//! defines how an operation runs, and `wait` decides which operations run. Must not know rules, or that a
//! real driver exists.

mod context;
pub(crate) mod info;
pub(crate) mod launch;
mod limits;
mod memory;
mod module;
pub(crate) mod operations;
pub(crate) mod state;
mod stream;
pub(crate) mod sys;
mod wait;
mod work;

use crate::codes;
use crate::faults::FaultState;

pub(crate) use context::has_context;
pub(crate) use module::kernel_name;

/// Implements all functions that the simulation does not have.
pub(crate) extern "C" fn not_supported() -> u32 {
    codes::NOT_SUPPORTED
}

/// Splits the free memory of all devices into holes of at most `hole_bytes`.
pub(crate) fn fragment(hole_bytes: u64) {
    state::gpu().memory.fragment(hole_bytes);
}

/// Runs all queued work, then flips one bit of the largest allocation.
pub(crate) fn flip_bit_now(faults: &FaultState, seed: u64, rule: usize) {
    let positions = state::gpu().pending_in(None);
    if wait::wait_for(faults, &positions).is_ok() {
        work::flip_bit(faults, seed, rule);
    }
}

macro_rules! implementations {
    ($($module:ident: $($name:ident)*;)*) => {
        /// Returns the address of a function's implementation, or `None` if the simulation does not have it.
        pub(crate) fn implementation(name: &str) -> Option<usize> {
            match name {
                $($(stringify!($name) => Some($module::$name as *const () as usize),)*)*
                _ => None,
            }
        }
    };
}

implementations! {
    info: cuInit cuDriverGetVersion cuGetErrorName cuGetErrorString cuGetProcAddress
        cuGetProcAddress_v2 cuDeviceGet cuDeviceGetCount cuDeviceGetName cuDeviceGetUuid
        cuDeviceGetUuid_v2 cuDeviceTotalMem_v2 cuDeviceGetAttribute cuDeviceComputeCapability
        cuDeviceGetPCIBusId cuDeviceGetByPCIBusId cuDeviceCanAccessPeer cuDeviceGetDefaultMemPool
        cuDeviceGetMemPool cuDeviceSetMemPool;
    context: cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2
        cuDevicePrimaryCtxSetFlags_v2 cuDevicePrimaryCtxGetState cuCtxCreate_v2 cuCtxCreate_v3
        cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxSetCurrent cuCtxGetCurrent cuCtxPushCurrent_v2
        cuCtxPopCurrent_v2 cuCtxGetDevice cuCtxSynchronize cuCtxGetApiVersion cuCtxGetFlags
        cuCtxSetFlags cuCtxGetLimit cuCtxSetLimit cuCtxGetCacheConfig cuCtxSetCacheConfig
        cuCtxGetStreamPriorityRange cuCtxGetId;
    stream: cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamSynchronize
        cuStreamQuery cuStreamWaitEvent cuStreamGetCtx cuStreamGetFlags cuStreamGetPriority
        cuStreamIsCapturing cuStreamGetId cuEventCreate cuEventRecord
        cuEventRecordWithFlags cuEventQuery cuEventSynchronize cuEventDestroy_v2 cuEventElapsedTime
        cuEventElapsedTime_v2;
    memory: cuMemAlloc_v2 cuMemFree_v2 cuMemAllocAsync cuMemAllocFromPoolAsync cuMemFreeAsync
        cuMemAllocManaged cuMemGetInfo_v2 cuMemGetAddressRange_v2 cuMemHostAlloc cuMemAllocHost_v2
        cuMemFreeHost cuMemHostGetDevicePointer_v2 cuMemHostGetFlags cuMemHostRegister_v2
        cuMemHostUnregister cuPointerGetAttribute cuMemcpy cuMemcpyAsync cuMemcpyHtoD_v2
        cuMemcpyDtoH_v2 cuMemcpyDtoD_v2 cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2
        cuMemcpyDtoDAsync_v2 cuMemcpyPeer cuMemcpyPeerAsync cuMemsetD8_v2 cuMemsetD16_v2
        cuMemsetD32_v2 cuMemsetD8Async cuMemsetD16Async cuMemsetD32Async cuMemPoolCreate
        cuMemPoolDestroy cuMemPoolTrimTo cuMemPoolSetAttribute cuMemPoolGetAttribute
        cuMemPrefetchAsync cuMemPrefetchAsync_v2 cuMemAdvise cuMemAdvise_v2;
    module: cuModuleLoadData cuModuleLoadDataEx cuModuleLoadFatBinary cuModuleLoad cuModuleUnload
        cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleGetLoadingMode cuLibraryLoadData
        cuLibraryUnload cuLibraryGetKernel cuLibraryGetModule cuKernelGetFunction cuKernelGetName
        cuFuncGetName cuFuncGetModule cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig
        cuFuncLoad cuFuncIsLoaded cuKernelGetAttribute cuKernelSetAttribute
        cuOccupancyMaxActiveBlocksPerMultiprocessor
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxPotentialBlockSize
        cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyAvailableDynamicSMemPerBlock;
    launch: cuLaunchKernel cuLaunchKernelEx cuLaunchCooperativeKernel cuLaunchHostFunc;
}
