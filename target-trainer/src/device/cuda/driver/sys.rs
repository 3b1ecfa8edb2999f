//! The functions of the CUDA driver that the trainer calls, under their own names. They are unsafe, as in C;
//! each caller states why its call is sound.
//!
//! cudarc's loader finds the functions by name. They return an integer: cudarc's own declarations return a
//! Rust enum, and a code that the enum does not list would be undefined behaviour.

#![expect(clippy::too_many_arguments, reason = "the driver's own arguments")]

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use crate::device::cuda::error::ERROR_NOT_FOUND;

macro_rules! driver {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        #[expect(non_snake_case, reason = "CUDA's own name")]
        pub(in crate::device::cuda) unsafe fn $name($($arg: $kind),*) -> u32 {
            type DriverFunction = unsafe extern "C" fn($($kind),*) -> u32;
            static FUNCTION: OnceLock<Option<DriverFunction>> = OnceLock::new();
            let function = FUNCTION.get_or_init(|| {
                // SAFETY: `CudaDriver::new` has checked that the library is present, so `culib` can load it.
                let library = unsafe { cudarc::driver::sys::culib() };
                // SAFETY: the type is the one in `cuda.h`, where enums are ints and handles are pointers.
                let symbol = unsafe { library.get::<DriverFunction>(stringify!($name).as_bytes()) };
                symbol.ok().map(|symbol| *symbol)
            });
            match function {
                // SAFETY: the arguments are passed on unchanged, and the caller guarantees that they are
                // valid for this function.
                Some(function) => unsafe { function($($arg),*) },
                None => ERROR_NOT_FOUND,
            }
        }
    )*};
}

driver! {
    cuInit(flags: u32);
    cuDriverGetVersion(version: *mut i32);
    cuGetErrorName(code: u32, name: *mut *const c_char);
    cuDeviceGetCount(count: *mut i32);
    cuDeviceGet(device: *mut i32, ordinal: i32);
    cuDeviceGetName(name: *mut c_char, length: i32, device: i32);
    cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32);
    cuDevicePrimaryCtxRetain(context: *mut usize, device: i32);
    cuDevicePrimaryCtxRelease_v2(device: i32);
    cuCtxSetCurrent(context: usize);
    cuStreamCreate(stream: *mut usize, flags: u32);
    cuStreamDestroy_v2(stream: usize);
    cuStreamSynchronize(stream: usize);
    cuStreamQuery(stream: usize);
    cuStreamWaitEvent(stream: usize, event: usize, flags: u32);
    cuEventCreate(event: *mut usize, flags: u32);
    cuEventRecord(event: usize, stream: usize);
    cuEventSynchronize(event: usize);
    cuEventDestroy_v2(event: usize);
    cuMemAlloc_v2(address: *mut u64, bytes: usize);
    cuMemFree_v2(address: u64);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: u32);
    cuMemFreeHost(address: *mut c_void);
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize);
    cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: usize);
    cuModuleLoadData(module: *mut usize, image: *const c_void);
    cuModuleUnload(module: usize);
    cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char);
    cuLaunchKernel(
        function: usize, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared_bytes: u32, stream: usize, params: *mut *mut c_void, extra: *mut *mut c_void
    );
}
