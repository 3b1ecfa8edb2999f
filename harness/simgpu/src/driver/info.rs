//! Functions that describe the driver and its devices, and the lookup of functions by name. Must not know
//! how work runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::{c_char, c_void};

use crate::codes;
use crate::symbols::exported_function;

use super::operations::Handle;
use super::state::gpu;
use super::sys::{c_str, write_c_str, write_out};

pub(super) unsafe extern "C" fn cuInit(flags: u32) -> u32 {
    let mut gpu = gpu();
    match (flags, gpu.machine.devices) {
        (0, 0) => codes::NO_DEVICE,
        (0, _) => {
            gpu.initialised = true;
            codes::SUCCESS
        }
        _ => codes::INVALID_VALUE,
    }
}

pub(super) unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> u32 {
    let current = gpu().machine.driver_version;
    // SAFETY: CUDA requires `version` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(version, current) }
}

pub(super) unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32 {
    let known = codes::name_and_meaning(error).map_or(std::ptr::null(), |(name, _)| name.as_ptr().cast());
    // SAFETY: CUDA requires `name` to be valid for a write; `write_out` checks for null.
    let put = unsafe { write_out(name, known) };
    if known.is_null() { codes::INVALID_VALUE } else { put }
}

pub(super) unsafe extern "C" fn cuGetErrorString(error: u32, meaning: *mut *const c_char) -> u32 {
    let known =
        codes::name_and_meaning(error).map_or(std::ptr::null(), |(_, meaning)| meaning.as_ptr().cast());
    // SAFETY: CUDA requires `meaning` to be valid for a write; `write_out` checks for null.
    let put = unsafe { write_out(meaning, known) };
    if known.is_null() { codes::INVALID_VALUE } else { put }
}

pub(super) unsafe extern "C" fn cuGetProcAddress(
    symbol: *const c_char,
    function: *mut *mut c_void,
    version: i32,
    flags: u64,
) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuGetProcAddress_v2`.
    unsafe { cuGetProcAddress_v2(symbol, function, version, flags, std::ptr::null_mut()) }
}

/// Functions whose name without a suffix means the first version in these CUDA versions. For all others it
/// means `_v2`.
const FIRST_VERSION_ONLY: [&str; 4] =
    ["cuMemPrefetchAsync", "cuMemAdvise", "cuEventElapsedTime", "cuDeviceGetUuid"];

const UNLISTED_NAME: &str = "simgpu_unlisted";

pub(super) unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    function: *mut *mut c_void,
    _version: i32,
    _flags: u64,
    status: *mut u32,
) -> u32 {
    // SAFETY: CUDA requires `symbol` to be a C string; `c_str` checks for null.
    let Some(name) = (unsafe { c_str(symbol) }) else { return codes::INVALID_VALUE };
    let second =
        (!FIRST_VERSION_ONLY.contains(&name)).then(|| exported_function(&format!("{name}_v2"))).flatten();
    let unlisted = || (name == UNLISTED_NAME).then_some(unlisted as *const () as usize);
    let found = second.or_else(|| exported_function(name)).or_else(unlisted);
    if !status.is_null() {
        // CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND is 1.
        // SAFETY: CUDA requires `status` to be valid for a write if it is not null.
        unsafe { write_out(status, u32::from(found.is_none())) };
    }
    // SAFETY: CUDA requires `function` to be valid for a write; `write_out` checks for null.
    let put = unsafe { write_out(function, found.unwrap_or(0) as *mut c_void) };
    match (found, status.is_null()) {
        // The status, if there is one, has already been written.
        (None, _) => codes::NOT_FOUND,
        (Some(_), _) => put,
    }
}

fn device_index(device: i32) -> Result<usize, u32> {
    let gpu = gpu();
    if !gpu.initialised {
        return Err(codes::NOT_INITIALIZED);
    }
    let found = usize::try_from(device).ok().filter(|device| *device < gpu.machine.devices as usize);
    found.ok_or(codes::INVALID_DEVICE)
}

pub(super) unsafe extern "C" fn cuDeviceGet(out: *mut i32, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
        Ok(_) => unsafe { write_out(out, ordinal) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> u32 {
    let (initialised, devices) = {
        let gpu = gpu();
        (gpu.initialised, gpu.machine.devices as i32)
    };
    if !initialised {
        return codes::NOT_INITIALIZED;
    }
    // SAFETY: CUDA requires `count` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(count, devices) }
}

/// Name of each simulated device.
pub(crate) const DEVICE_NAME: &str = "Simulated GPU";

/// Returns the UUID of a device, as the driver and NVML report it.
pub(crate) fn uuid(device: usize) -> [u8; 16] {
    let mut uuid = *b"trainwreck-gpu-\0";
    uuid[15] = device as u8;
    uuid
}

/// Returns the PCI bus id of a device.
pub(crate) fn pci_bus(device: usize) -> String {
    format!("0000:{:02X}:00.0", device + 1)
}

pub(super) unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        // SAFETY: CUDA requires `name` to have room for `length` bytes; `write_c_str` checks for null.
        Ok(_) => unsafe { write_c_str(name, length.max(0) as usize, DEVICE_NAME) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetUuid(out: *mut [u8; 16], ordinal: i32) -> u32 {
    match device_index(ordinal) {
        // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
        Ok(device) => unsafe { write_out(out, uuid(device)) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetUuid_v2(out: *mut [u8; 16], ordinal: i32) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuDeviceGetUuid`.
    unsafe { cuDeviceGetUuid(out, ordinal) }
}

pub(super) unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        Ok(device) => {
            let (_, total) = gpu().memory.free_and_total(device);
            // SAFETY: CUDA requires `bytes` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(bytes, total as usize) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceComputeCapability(
    major: *mut i32,
    minor: *mut i32,
    ordinal: i32,
) -> u32 {
    let capability = gpu().machine.compute_capability;
    match device_index(ordinal) {
        // SAFETY: CUDA requires `major` and `minor` to be valid for writes; `write_out` checks for null.
        Ok(_) => unsafe { write_out(major, capability.0) | write_out(minor, capability.1) },
        Err(code) => code,
    }
}

/// Returns the maximum dynamic shared memory of a block in bytes, by compute capability. Source: the CUDA C
/// guide.
pub(crate) fn max_dynamic_shared_bytes((major, minor): (i32, i32)) -> usize {
    match (major, minor) {
        (9 | 10, _) => 232_448,
        (8, 0 | 7) => 166_912,
        (8 | 12, _) => 101_376,
        (7, 5) => 65_536,
        (7, _) => 98_304,
        _ => 49_152,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: u32, ordinal: i32) -> u32 {
    let device = match device_index(ordinal) {
        Ok(device) => device,
        Err(code) => return code,
    };
    let capability = gpu().machine.compute_capability;
    let result = match attribute {
        1 => 1024,               // threads per block
        2 | 3 => 1024,           // block, x and y
        4 => 64,                 // block, z
        5 => i32::MAX,           // grid, x
        6 | 7 => 65_535,         // grid, y and z
        8 => 49_152,             // shared memory per block
        9 => 65_536,             // constant memory
        10 => 32,                // warp
        12 | 82 => 65_536,       // registers per block and multiprocessor
        13 | 36 => 1_500_000,    // clock and memory clock, kHz
        14 => 512,               // alignment of textures
        16 => 8,                 // multiprocessors
        31 | 40 | 41 => 1,       // concurrent kernels, asynchronous engines, unified addressing
        33 => device as i32 + 1, // PCI bus
        34 | 50 => 0,            // PCI device and domain
        37 => 5120,              // bus width
        38 => 50 << 20,          // L2 cache
        39 => 2048,              // threads per multiprocessor
        75 => capability.0,
        76 => capability.1,
        81 => 233_472,                                     // shared memory per multiprocessor
        32 => 1,                                           // ECC
        97 => max_dynamic_shared_bytes(capability) as i32, // dynamic shared memory on request
        106 => 32,                                         // blocks per multiprocessor
        115 => 1,                                          // memory pools
        _ => 0,
    };
    // SAFETY: CUDA requires `value` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(value, result) }
}

pub(super) unsafe extern "C" fn cuDeviceGetPCIBusId(out: *mut c_char, length: i32, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        // SAFETY: CUDA requires `out` to have room for `length` bytes; `write_c_str` checks for null.
        Ok(device) => unsafe { write_c_str(out, length.max(0) as usize, &pci_bus(device)) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetByPCIBusId(out: *mut i32, bus: *const c_char) -> u32 {
    // SAFETY: CUDA requires `bus` to be a C string; `c_str` checks for null.
    let requested = unsafe { c_str(bus) }.unwrap_or_default();
    let devices = gpu().machine.devices as usize;
    match (0..devices).find(|device| pci_bus(*device).eq_ignore_ascii_case(requested)) {
        // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
        Some(device) => unsafe { write_out(out, device as i32) },
        None => codes::INVALID_DEVICE,
    }
}

pub(super) unsafe extern "C" fn cuDeviceCanAccessPeer(can_access: *mut i32, device: i32, peer: i32) -> u32 {
    match device_index(device).and(device_index(peer)) {
        // SAFETY: CUDA requires `can_access` to be valid for a write; `write_out` checks for null.
        Ok(_) => unsafe { write_out(can_access, 0) },
        Err(code) => code,
    }
}

/// Returns the handle of a device's default memory pool. It lies below all handles of other objects.
fn default_pool(device: usize) -> Handle {
    0x1000 + device as Handle
}

pub(super) unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut Handle, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        // SAFETY: CUDA requires `pool` to be valid for a write; `write_out` checks for null.
        Ok(device) => unsafe { write_out(pool, default_pool(device)) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut Handle, ordinal: i32) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuDeviceGetDefaultMemPool`.
    unsafe { cuDeviceGetDefaultMemPool(pool, ordinal) }
}

pub(super) unsafe extern "C" fn cuDeviceSetMemPool(ordinal: i32, _pool: Handle) -> u32 {
    device_index(ordinal).err().unwrap_or(codes::SUCCESS)
}

/// For tests: a function of a newer driver that the list of symbols does not contain. Its result shows that
/// all arguments arrived.
pub(super) unsafe extern "C" fn unlisted(
    a: u32,
    b: u32,
    c: u32,
    d: u32,
    e: u32,
    f: u32,
    g: u32,
    h: u32,
) -> u32 {
    [a, b, c, d, e, f, g, h].iter().fold(0, |number, digit| number * 10 + digit)
}
