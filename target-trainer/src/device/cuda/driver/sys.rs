//! The driver's functions that we call, by their own names: unsafe as in C. Who calls them says why it is sound.
//!
//! They are found through cudarc's loader by name and give back a number: cudarc's own declarations give back a Rust enum, for which
//! a code that it does not list would be undefined behaviour.

#![expect(clippy::too_many_arguments, reason = "the driver's own arguments")]

use std::ffi::{c_char, c_void};
use std::sync::OnceLock;

use crate::device::cuda::error::ERROR_NOT_FOUND;

macro_rules! driver {
    ($($name:ident($($arg:ident: $kind:ty),*);)*) => {$(
        #[expect(non_snake_case, reason = "CUDA's own name")]
        pub(in crate::device::cuda) unsafe fn $name($($arg: $kind),*) -> u32 {
            type Function = unsafe extern "C" fn($($kind),*) -> u32;
            static FOUND: OnceLock<Option<Function>> = OnceLock::new();
            let found = FOUND.get_or_init(|| {
                // SAFETY: `Instance` was made, so the library is there; the type is that of `cuda.h`, whose enums are ints
                // and whose handles are pointers.
                let library = unsafe { cudarc::driver::sys::culib() };
                // SAFETY: as above.
                unsafe { library.get::<Function>(stringify!($name).as_bytes()) }.ok().map(|found| *found)
            });
            match found {
                // SAFETY: the caller's arguments go on as they are.
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
    cuMemAlloc_v2(at: *mut u64, bytes: usize);
    cuMemFree_v2(at: u64);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, flags: u32);
    cuMemFreeHost(at: *mut c_void);
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize);
    cuMemsetD8Async(at: u64, value: u8, bytes: usize, stream: usize);
    cuModuleLoadData(module: *mut usize, image: *const c_void);
    cuModuleUnload(module: usize);
    cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char);
    cuLaunchKernel(
        function: usize, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        shared_bytes: u32, stream: usize, params: *mut *mut c_void, extra: *mut *mut c_void
    );
}
