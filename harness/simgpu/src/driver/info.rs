//! What the driver tells of itself and of its devices, and the door to its functions by name.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::{c_char, c_void};

use crate::driver::{c_str, write_c_str, write_out};
use crate::{codes, hooks};

use super::state::{Handle, gpu};

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
    let now = gpu().machine.driver_version;
    // SAFETY: an answer's place is the caller's to choose, here and below.
    unsafe { write_out(version, now) }
}

pub(super) unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32 {
    let known = codes::name_and_meaning(error).map_or(std::ptr::null(), |(name, _)| name.as_ptr().cast());
    // SAFETY: as above.
    let put = unsafe { write_out(name, known) };
    if known.is_null() { codes::INVALID_VALUE } else { put }
}

pub(super) unsafe extern "C" fn cuGetErrorString(error: u32, meaning: *mut *const c_char) -> u32 {
    let known =
        codes::name_and_meaning(error).map_or(std::ptr::null(), |(_, meaning)| meaning.as_ptr().cast());
    // SAFETY: as above.
    let put = unsafe { write_out(meaning, known) };
    if known.is_null() { codes::INVALID_VALUE } else { put }
}

pub(super) unsafe extern "C" fn cuGetProcAddress(
    symbol: *const c_char,
    function: *mut *mut c_void,
    version: i32,
    flags: u64,
) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuGetProcAddress_v2(symbol, function, version, flags, std::ptr::null_mut()) }
}

/// Names that have a second version which programs of these CUDA versions do not ask for by the plain name.
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
    // SAFETY: the caller's string.
    let Some(name) = (unsafe { c_str(symbol) }) else { return codes::INVALID_VALUE };
    let second = (!FIRST_VERSION_ONLY.contains(&name))
        .then(|| hooks::exported_function(&format!("{name}_v2")))
        .flatten();
    let unlisted = || (name == UNLISTED_NAME).then_some(unlisted as *const () as usize);
    let found = second.or_else(|| hooks::exported_function(name)).or_else(unlisted);
    if !status.is_null() {
        // SAFETY: the caller's place. 1: there is no such function.
        unsafe { write_out(status, u32::from(found.is_none())) };
    }
    // SAFETY: the caller's place.
    let put = unsafe { write_out(function, found.unwrap_or(0) as *mut c_void) };
    match (found, status.is_null()) {
        // The second version tells it by the status too, and both by the code.
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

pub(super) unsafe extern "C" fn cuDeviceGet(place: *mut i32, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        // SAFETY: an answer's place is the caller's to choose, here and below.
        Ok(_) => unsafe { write_out(place, ordinal) },
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
    // SAFETY: as above.
    unsafe { write_out(count, devices) }
}

pub(crate) const DEVICE_NAME: &str = "Simulated GPU";

/// Of a device; the same for the driver and for NVML.
pub(crate) fn uuid(device: usize) -> [u8; 16] {
    let mut uuid = *b"trainwreck-gpu-\0";
    uuid[15] = device as u8;
    uuid
}

pub(crate) fn pci_bus(device: usize) -> String {
    format!("0000:{:02X}:00.0", device + 1)
}

pub(super) unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, of: i32) -> u32 {
    match device_index(of) {
        // SAFETY: as above.
        Ok(_) => unsafe { write_c_str(name, length.max(0) as usize, DEVICE_NAME) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetUuid(place: *mut [u8; 16], of: i32) -> u32 {
    match device_index(of) {
        // SAFETY: as above.
        Ok(device) => unsafe { write_out(place, uuid(device)) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetUuid_v2(place: *mut [u8; 16], of: i32) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuDeviceGetUuid(place, of) }
}

pub(super) unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, of: i32) -> u32 {
    match device_index(of) {
        Ok(device) => {
            let (_, total) = gpu().memory.free_and_total(device);
            // SAFETY: as above.
            unsafe { write_out(bytes, total as usize) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceComputeCapability(major: *mut i32, minor: *mut i32, of: i32) -> u32 {
    let capability = gpu().machine.compute_capability;
    match device_index(of) {
        // SAFETY: as above.
        Ok(_) => unsafe { write_out(major, capability.0) | write_out(minor, capability.1) },
        Err(code) => code,
    }
}

/// Dynamic shared bytes that a block of this capability may ask for.
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

pub(super) unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: u32, of: i32) -> u32 {
    let device = match device_index(of) {
        Ok(device) => device,
        Err(code) => return code,
    };
    let capability = gpu().machine.compute_capability;
    let told = match attribute {
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
    // SAFETY: as above.
    unsafe { write_out(value, told) }
}

pub(super) unsafe extern "C" fn cuDeviceGetPCIBusId(place: *mut c_char, length: i32, of: i32) -> u32 {
    match device_index(of) {
        // SAFETY: as above.
        Ok(device) => unsafe { write_c_str(place, length.max(0) as usize, &pci_bus(device)) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetByPCIBusId(place: *mut i32, bus: *const c_char) -> u32 {
    // SAFETY: the caller's string.
    let asked = unsafe { c_str(bus) }.unwrap_or_default();
    let devices = gpu().machine.devices as usize;
    match (0..devices).find(|device| pci_bus(*device).eq_ignore_ascii_case(asked)) {
        // SAFETY: as above.
        Some(device) => unsafe { write_out(place, device as i32) },
        None => codes::INVALID_DEVICE,
    }
}

pub(super) unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut i32, one: i32, other: i32) -> u32 {
    match device_index(one).and(device_index(other)) {
        // SAFETY: as above.
        Ok(_) => unsafe { write_out(can, 0) },
        Err(code) => code,
    }
}

/// The default pool of a device: a handle that no other object has.
fn default_pool(device: usize) -> Handle {
    0x1000 + device as Handle
}

pub(super) unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut Handle, of: i32) -> u32 {
    match device_index(of) {
        // SAFETY: as above.
        Ok(device) => unsafe { write_out(pool, default_pool(device)) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut Handle, of: i32) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuDeviceGetDefaultMemPool(pool, of) }
}

pub(super) unsafe extern "C" fn cuDeviceSetMemPool(of: i32, _pool: Handle) -> u32 {
    device_index(of).err().unwrap_or(codes::SUCCESS)
}

/// Stands for what a newer driver has and the list of symbols does not know: tests ask for it by name. Its answer shows that
/// all arguments came through.
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
