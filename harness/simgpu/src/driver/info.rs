//! Functions that describe the driver and its devices, and the lookup of functions by name. Unsafe: writes
//! names into buffers whose length is an argument of its own. Must not know how work runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::{c_char, c_void};

use crate::codes;
use crate::symbols::exported_function;

use super::limits::device_attribute;
use super::operations::Handle;
use super::state::gpu;
use super::sys::{Out, TextArgument, write_c_str};

pub(super) extern "C" fn cuInit(flags: u32) -> u32 {
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

pub(super) extern "C" fn cuDriverGetVersion(version: Out<i32>) -> u32 {
    let current = gpu().machine.driver_version;
    version.write(current)
}

pub(super) extern "C" fn cuGetErrorName(error: u32, name: Out<*const c_char>) -> u32 {
    let known = codes::name_and_meaning(error).map_or(std::ptr::null(), |(name, _)| name.as_ptr().cast());
    let put = name.write(known);
    if known.is_null() { codes::INVALID_VALUE } else { put }
}

pub(super) extern "C" fn cuGetErrorString(error: u32, meaning: Out<*const c_char>) -> u32 {
    let known =
        codes::name_and_meaning(error).map_or(std::ptr::null(), |(_, meaning)| meaning.as_ptr().cast());
    let put = meaning.write(known);
    if known.is_null() { codes::INVALID_VALUE } else { put }
}

pub(super) extern "C" fn cuGetProcAddress(
    symbol: TextArgument,
    function: Out<*mut c_void>,
    version: i32,
    flags: u64,
) -> u32 {
    cuGetProcAddress_v2(symbol, function, version, flags, Out::null())
}

/// Functions whose name without a suffix means the first version in these CUDA versions. For all others it
/// means `_v2`.
const FIRST_VERSION_ONLY: [&str; 4] =
    ["cuMemPrefetchAsync", "cuMemAdvise", "cuEventElapsedTime", "cuDeviceGetUuid"];

const UNLISTED_NAME: &str = "simgpu_unlisted";

/// `CU_GET_PROC_ADDRESS_SUCCESS` and `CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND`.
const SYMBOL_FOUND: u32 = 0;
const SYMBOL_NOT_FOUND: u32 = 1;

pub(super) extern "C" fn cuGetProcAddress_v2(
    symbol: TextArgument,
    function: Out<*mut c_void>,
    _version: i32,
    _flags: u64,
    status: Out<u32>,
) -> u32 {
    let Some(name) = symbol.as_str() else { return codes::INVALID_VALUE };
    let second =
        (!FIRST_VERSION_ONLY.contains(&name)).then(|| exported_function(&format!("{name}_v2"))).flatten();
    let unlisted = || (name == UNLISTED_NAME).then_some(unlisted as *const () as usize);
    let found = second.or_else(|| exported_function(name)).or_else(unlisted);
    // The caller may not want the status.
    status.try_write(if found.is_some() { SYMBOL_FOUND } else { SYMBOL_NOT_FOUND });
    let put = function.write(found.unwrap_or(0) as *mut c_void);
    if found.is_some() { put } else { codes::NOT_FOUND }
}

fn device_index(device: i32) -> Result<usize, u32> {
    let gpu = gpu();
    if !gpu.initialised {
        return Err(codes::NOT_INITIALIZED);
    }
    let found = usize::try_from(device).ok().filter(|device| *device < gpu.machine.devices as usize);
    found.ok_or(codes::INVALID_DEVICE)
}

pub(super) extern "C" fn cuDeviceGet(out: Out<i32>, ordinal: i32) -> u32 {
    out.write_result(device_index(ordinal).map(|_| ordinal))
}

pub(super) extern "C" fn cuDeviceGetCount(count: Out<i32>) -> u32 {
    let (initialised, devices) = {
        let gpu = gpu();
        (gpu.initialised, gpu.machine.devices as i32)
    };
    if !initialised {
        return codes::NOT_INITIALIZED;
    }
    count.write(devices)
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

pub(super) extern "C" fn cuDeviceGetUuid(out: Out<[u8; 16]>, ordinal: i32) -> u32 {
    out.write_result(device_index(ordinal).map(uuid))
}

pub(super) extern "C" fn cuDeviceGetUuid_v2(out: Out<[u8; 16]>, ordinal: i32) -> u32 {
    cuDeviceGetUuid(out, ordinal)
}

pub(super) extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        Ok(device) => {
            let (_, total) = gpu().memory.free_and_total(device);
            bytes.write(total as usize)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, ordinal: i32) -> u32 {
    let capability = gpu().compute_capability();
    match device_index(ordinal) {
        Ok(_) => major.write(capability.major) | minor.write(capability.minor),
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, ordinal: i32) -> u32 {
    let capability = gpu().compute_capability();
    value.write_result(device_index(ordinal).map(|device| device_attribute(attribute, device, capability)))
}

pub(super) unsafe extern "C" fn cuDeviceGetPCIBusId(out: *mut c_char, length: i32, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        // SAFETY: CUDA requires `out` to have room for `length` bytes; `write_c_str` checks for null.
        Ok(device) => unsafe { write_c_str(out, length.max(0) as usize, &pci_bus(device)) },
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuDeviceGetByPCIBusId(out: Out<i32>, bus: TextArgument) -> u32 {
    let requested = bus.as_str().unwrap_or_default();
    let devices = gpu().machine.devices as usize;
    match (0..devices).find(|device| pci_bus(*device).eq_ignore_ascii_case(requested)) {
        Some(device) => out.write(device as i32),
        None => codes::INVALID_DEVICE,
    }
}

pub(super) extern "C" fn cuDeviceCanAccessPeer(can_access: Out<i32>, device: i32, peer: i32) -> u32 {
    can_access.write_result(device_index(device).and(device_index(peer)).map(|_| 0))
}

/// Returns the handle of a device's default memory pool. It lies below all handles of other objects.
fn default_pool(device: usize) -> Handle {
    0x1000 + device as Handle
}

pub(super) extern "C" fn cuDeviceGetDefaultMemPool(pool: Out<Handle>, ordinal: i32) -> u32 {
    pool.write_result(device_index(ordinal).map(default_pool))
}

pub(super) extern "C" fn cuDeviceGetMemPool(pool: Out<Handle>, ordinal: i32) -> u32 {
    cuDeviceGetDefaultMemPool(pool, ordinal)
}

pub(super) extern "C" fn cuDeviceSetMemPool(ordinal: i32, _pool: Handle) -> u32 {
    device_index(ordinal).err().unwrap_or(codes::SUCCESS)
}

/// For tests: a function of a newer driver that the list of symbols does not contain. Its result shows that
/// all arguments arrived.
pub(super) extern "C" fn unlisted(a: u32, b: u32, c: u32, d: u32, e: u32, f: u32, g: u32, h: u32) -> u32 {
    [a, b, c, d, e, f, g, h].iter().fold(0, |number, digit| number * 10 + digit)
}
