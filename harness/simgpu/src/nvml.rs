//! The part of libnvidia-ml that monitoring programs call. It reports the plan's health of the GPU and the
//! consequences of injected errors, in addition to what a real NVML reports. Unsafe: C calls it. Must not
//! know the driver's calls.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use simgpu_plan::{ClockThrottleReason, ControlFile, GpuHealth};

use crate::driver::info::{DEVICE_NAME, pci_bus, uuid};
use crate::driver::state::gpu;
use crate::driver::sys::write_c_str;
use crate::faults::fault_state;
use crate::forward;
use crate::locks::MutexExt;

/// `nvmlReturn_t`.
const SUCCESS: u32 = 0;
const INVALID_ARGUMENT: u32 = 2;
const NOT_SUPPORTED: u32 = 3;
const NOT_FOUND: u32 = 6;
const INSUFFICIENT_SIZE: u32 = 7;
const TIMEOUT: u32 = 10;
const GPU_IS_LOST: u32 = 15;

/// A device's handle is this plus the device's number.
const HANDLE_BASE: usize = 0x2_0000;
/// `nvmlEventTypeXidCriticalError`.
const EVENT_TYPE_XID: u64 = 8;
/// Version of the driver that came with CUDA 12.8.
const DRIVER_VERSION: &str = "570.86.10";

/// Writes an output value. Returns the code of the call.
///
/// # Safety
/// `out` is null or valid for a write.
unsafe fn write_out<T>(out: *mut T, value: T) -> u32 {
    if out.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: `out` is not null, so the caller promises that it is valid for a write. It need not be aligned.
    unsafe { out.write_unaligned(value) };
    SUCCESS
}

/// Writes a string, or returns an error if there is not enough room.
///
/// # Safety
/// `out` is null or has room for `length` bytes.
unsafe fn write_name(out: *mut c_char, length: u32, value: &str) -> u32 {
    if value.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller promises that `out` is null or has room for `length` bytes.
    unsafe { write_c_str(out, length as usize, value) };
    SUCCESS
}

fn health() -> GpuHealth {
    fault_state().current_plan().plan.health.clone()
}

fn is_gpu_lost() -> bool {
    // Reads the plan first, because the harness may have replaced it.
    let health = health();
    health.lost || fault_state().is_lost()
}

/// Returns the number of a simulated device.
fn device_number(device: usize) -> Result<usize, u32> {
    let number = device.checked_sub(HANDLE_BASE).filter(|number| *number < gpu().machine.devices as usize);
    number.ok_or(INVALID_ARGUMENT)
}

fn uuid_text(device: usize) -> String {
    let hex: String = uuid(device).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Returns the bits of `nvmlClocksThrottleReasons` for the plan's reasons.
fn throttle_bits(health: &GpuHealth) -> u64 {
    let bit = |reason: &ClockThrottleReason| match reason {
        ClockThrottleReason::Thermal => 0x40,
        ClockThrottleReason::PowerCap => 0x4,
        ClockThrottleReason::PowerBrake => 0x80,
    };
    health.throttled.iter().map(bit).fold(0, |bits, bit| bits | bit)
}

/// Returns the number of corrected (0) or uncorrected (1) memory errors, from the plan and from injected
/// errors.
fn ecc_errors(kind: u32) -> u64 {
    let health = health();
    match kind {
        0 => health.ecc_corrected,
        _ => health.ecc_uncorrected + fault_state().control().map_or(0, ControlFile::uncorrected_errors),
    }
}

/// Exports functions. A `device` function returns an error if the GPU is lost; an `any` function does not.
///
/// If there is a real NVML, its function is called. A block without a name is only the simulation. If a name
/// precedes the block, the name holds the code of the real function, and the block always computes the
/// result.
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) $kind:ident $($real_code:ident)? $body:block)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
            if functions!(@$kind) && is_gpu_lost() {
                return GPU_IS_LOST;
            }
            let real = forward::nvml_symbol(fault_state(), stringify!($name)).map(|real| {
                // SAFETY: NVML defines this type for the function, and requires the same of the caller.
                unsafe {
                    let real: unsafe extern "C" fn($($type),*) -> u32 = std::mem::transmute(real);
                    real($($argument),*)
                }
            });
            functions!(@result real $body $($real_code)?)
        }
    )*};
    (@any) => { false };
    (@device) => { true };
    (@result $real:ident $body:block) => {
        match $real {
            Some(real_code) => real_code,
            None => $body,
        }
    };
    (@result $real:ident $body:block $real_code:ident) => {{
        let $real_code: Option<u32> = $real;
        $body
    }};
}

/// Calls a function with the number of a simulated device, or returns an error if there is no such device.
fn for_device(device: usize, action: impl FnOnce(usize) -> u32) -> u32 {
    device_number(device).map_or_else(|code| code, action)
}

/// `nvmlPciInfo_t`.
#[repr(C)]
struct PciInfo {
    legacy: [c_char; 16],
    domain: u32,
    bus: u32,
    device: u32,
    id: u32,
    subsystem: u32,
    name: [c_char; 32],
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
struct MemoryInfo {
    version: u32,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// `nvmlEventData_t`.
#[repr(C)]
struct EventData {
    device: usize,
    kind: u64,
    data: u64,
    instances: [u32; 2],
}

fn free_and_total(device: usize) -> (u64, u64) {
    gpu().memory.free_and_total(device)
}

functions! {
    nvmlInit_v2() any { SUCCESS }
    nvmlInitWithFlags(_flags: u32) any { SUCCESS }
    nvmlShutdown() any { SUCCESS }

    nvmlSystemGetDriverVersion(out: *mut c_char, length: u32) any {
        // SAFETY: NVML requires `out` to have room for `length` bytes.
        unsafe { write_name(out, length, DRIVER_VERSION) }
    }
    nvmlSystemGetNVMLVersion(out: *mut c_char, length: u32) any {
        // SAFETY: NVML requires `out` to have room for `length` bytes.
        unsafe { write_name(out, length, "12.570.86.10") }
    }
    nvmlSystemGetCudaDriverVersion(out: *mut i32) any {
        let version = gpu().machine.driver_version;
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        unsafe { write_out(out, version) }
    }
    nvmlSystemGetCudaDriverVersion_v2(out: *mut i32) any {
        let version = gpu().machine.driver_version;
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        unsafe { write_out(out, version) }
    }

    nvmlDeviceGetCount_v2(out: *mut u32) any {
        let devices = gpu().machine.devices;
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        unsafe { write_out(out, devices) }
    }
    nvmlDeviceGetHandleByIndex_v2(index: u32, out: *mut usize) device {
        for_device(HANDLE_BASE.saturating_add(index as usize), |number| {
            // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(out, HANDLE_BASE + number) }
        })
    }
    nvmlDeviceGetHandleByUUID(requested: *const c_char, out: *mut usize) device {
        // SAFETY: NVML requires a C string.
        let requested = unsafe { CStr::from_ptr(requested) }.to_string_lossy().into_owned();
        let devices = gpu().machine.devices as usize;
        match (0..devices).find(|device| uuid_text(*device) == requested) {
            // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
            Some(device) => unsafe { write_out(out, HANDLE_BASE + device) },
            None => NOT_FOUND,
        }
    }
    nvmlDeviceGetHandleByPciBusId_v2(requested: *const c_char, out: *mut usize) device {
        // SAFETY: NVML requires a C string.
        let requested = unsafe { CStr::from_ptr(requested) }.to_string_lossy().to_ascii_uppercase();
        let devices = gpu().machine.devices as usize;
        match (0..devices).find(|device| requested.ends_with(&pci_bus(*device))) {
            // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
            Some(device) => unsafe { write_out(out, HANDLE_BASE + device) },
            None => NOT_FOUND,
        }
    }
    nvmlDeviceGetIndex(device: usize, out: *mut u32) device {
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        for_device(device, |number| unsafe { write_out(out, number as u32) })
    }
    nvmlDeviceGetName(device: usize, out: *mut c_char, length: u32) device {
        // SAFETY: NVML requires `out` to have room for `length` bytes.
        for_device(device, |_| unsafe { write_name(out, length, DEVICE_NAME) })
    }
    nvmlDeviceGetUUID(device: usize, out: *mut c_char, length: u32) device {
        // SAFETY: NVML requires `out` to have room for `length` bytes.
        for_device(device, |number| unsafe { write_name(out, length, &uuid_text(number)) })
    }
    nvmlDeviceGetPciInfo_v3(device: usize, out: *mut PciInfo) device {
        for_device(device, |number| {
            let mut pci = PciInfo {
                legacy: [0; 16],
                domain: 0,
                bus: number as u32 + 1,
                device: 0,
                id: 0x2330_10DE,
                subsystem: 0,
                name: [0; 32],
            };
            // SAFETY: both fields have room for these lengths. NVML requires `out` to be valid for a write.
            unsafe {
                write_c_str(pci.legacy.as_mut_ptr(), 16, &pci_bus(number));
                write_c_str(pci.name.as_mut_ptr(), 32, &format!("0000{}", pci_bus(number)));
                write_out(out, pci)
            }
        })
    }
    nvmlDeviceGetCudaComputeCapability(device: usize, major: *mut i32, minor: *mut i32) device {
        let capability = gpu().machine.compute_capability;
        // SAFETY: NVML requires `major` and `minor` to be valid for writes; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(major, capability.0).max(write_out(minor, capability.1)) })
    }

    nvmlDeviceGetMemoryInfo(device: usize, out: *mut [u64; 3]) device {
        for_device(device, |number| {
            let (free, total) = free_and_total(number);
            // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(out, [total, free, total - free]) }
        })
    }
    nvmlDeviceGetMemoryInfo_v2(device: usize, out: *mut MemoryInfo) device {
        for_device(device, |number| {
            if out.is_null() {
                return INVALID_ARGUMENT;
            }
            let (free, total) = free_and_total(number);
            // SAFETY: NVML requires `out` to point to a structure; null was checked.
            unsafe {
                let version = (*out).version;
                write_out(out, MemoryInfo { version, total, reserved: 0, free, used: total - free })
            }
        })
    }
    nvmlDeviceGetTemperature(device: usize, _sensor: u32, out: *mut u32) device real_code {
        match (health().temperature_c, real_code) {
            // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
            (Some(temperature), Some(_)) => unsafe { write_out(out, temperature) },
            (None, Some(real_code)) => real_code,
            // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
            (temperature, None) => for_device(device, |_| unsafe {
                write_out(out, temperature.unwrap_or(45))
            }),
        }
    }
    nvmlDeviceGetCurrentClocksThrottleReasons(device: usize, out: *mut u64) device real_code {
        // SAFETY: NVML requires `out` to be valid for a write; null is checked.
        unsafe { throttle_reasons(device, out, real_code) }
    }
    nvmlDeviceGetCurrentClocksEventReasons(device: usize, out: *mut u64) device real_code {
        // SAFETY: NVML requires `out` to be valid for a write; null is checked.
        unsafe { throttle_reasons(device, out, real_code) }
    }
    nvmlDeviceGetSupportedClocksThrottleReasons(device: usize, out: *mut u64) device {
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(out, 0x1FF) })
    }
    nvmlDeviceGetTotalEccErrors(device: usize, kind: u32, _counter: u32, out: *mut u64) device real_code {
        // SAFETY: NVML requires `out` to be valid for a write; null is checked.
        unsafe { ecc_counter(device, kind, out, real_code) }
    }
    nvmlDeviceGetMemoryErrorCounter(
        device: usize, kind: u32, _counter: u32, location: u32, out: *mut u64
    ) device real_code {
        // 2 is NVML_MEMORY_LOCATION_DEVICE_MEMORY. The plan's errors are in device memory.
        match (location, real_code) {
            // SAFETY: NVML requires `out` to be valid for a write; null is checked.
            (2, real_code) => unsafe { ecc_counter(device, kind, out, real_code) },
            (_, Some(real_code)) => real_code,
            // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
            (_, None) => for_device(device, |_| unsafe { write_out(out, 0) }),
        }
    }
    nvmlDeviceGetEccMode(device: usize, current: *mut u32, pending: *mut u32) device {
        // SAFETY: NVML requires `current` and `pending` to be valid for writes; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(current, 1).max(write_out(pending, 1)) })
    }
    nvmlDeviceGetPowerUsage(device: usize, out: *mut u32) device {
        // In milliwatts.
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(out, 250_000) })
    }
    nvmlDeviceGetEnforcedPowerLimit(device: usize, out: *mut u32) device {
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(out, 700_000) })
    }
    nvmlDeviceGetPowerManagementLimit(device: usize, out: *mut u32) device {
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(out, 700_000) })
    }
    nvmlDeviceGetUtilizationRates(device: usize, out: *mut [u32; 2]) device {
        // Of the processor and of the memory, in per cent.
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(out, [50, 30]) })
    }
    nvmlDeviceGetSupportedEventTypes(device: usize, out: *mut u64) device {
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        for_device(device, |_| unsafe { write_out(out, EVENT_TYPE_XID) })
    }

    nvmlEventSetCreate(out: *mut usize) any real_code {
        // SAFETY: NVML requires `out` to be valid for a write; `write_out` checks for null.
        real_code.unwrap_or_else(|| unsafe { write_out(out, new_event_set()) })
    }
    nvmlDeviceRegisterEvents(device: usize, kinds: u64, set: usize) device real_code {
        let simulated = |_| if kinds & !EVENT_TYPE_XID == 0 { SUCCESS } else { NOT_SUPPORTED };
        let code = real_code.unwrap_or_else(|| for_device(device, simulated));
        if code == SUCCESS && kinds & EVENT_TYPE_XID != 0 {
            event_sets().insert(set, device);
        }
        code
    }
    nvmlEventSetFree(set: usize) any real_code {
        event_sets().remove(&set);
        real_code.unwrap_or(SUCCESS)
    }
}

/// Writes the reasons why clocks are reduced: the plan's, in addition to those of the real NVML.
///
/// # Safety
/// `out` is null or valid for a write.
unsafe fn throttle_reasons(device: usize, out: *mut u64, real_code: Option<u32>) -> u32 {
    let injected = throttle_bits(&health());
    match real_code {
        // SAFETY: the real function has succeeded, so it has written to `out`.
        Some(SUCCESS) => unsafe { write_out(out, out.read_unaligned() | injected) },
        Some(real_code) => real_code,
        // SAFETY: the caller promises that `out` is null or valid for a write.
        None => for_device(device, |_| unsafe { write_out(out, injected) }),
    }
}

/// Writes the number of memory errors: the plan's and the injected ones, in addition to those of the real
/// NVML.
///
/// # Safety
/// `out` is null or valid for a write.
unsafe fn ecc_counter(device: usize, kind: u32, out: *mut u64, real_code: Option<u32>) -> u32 {
    let injected = ecc_errors(kind);
    match real_code {
        // SAFETY: the real function has succeeded, so it has written to `out`.
        Some(SUCCESS) => unsafe { write_out(out, out.read_unaligned() + injected) },
        // Injected errors are reported even if the real GPU has no counter.
        // SAFETY: the caller promises that `out` is null or valid for a write.
        Some(_) if injected > 0 => unsafe { write_out(out, injected) },
        Some(real_code) => real_code,
        // SAFETY: the caller promises that `out` is null or valid for a write.
        None => for_device(device, |_| unsafe { write_out(out, injected) }),
    }
}

/// Event sets that are registered for XIDs, with the device of each.
fn event_sets() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    static SETS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
    SETS.locked()
}

/// Returns a handle for a new event set.
fn new_event_set() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x3_0000);
    NEXT.fetch_add(0x10, Ordering::Relaxed)
}

/// Takes the next XID that this process has not received yet: the plan's first, then those of injected
/// errors.
fn next_xid() -> Option<u64> {
    static DELIVERED: Mutex<(usize, usize)> = Mutex::new((0, 0));
    let mut delivered = DELIVERED.locked();
    if let Some(xid) = health().xids.get(delivered.0) {
        delivered.0 += 1;
        return Some(*xid);
    }
    let injected = fault_state().control().map(ControlFile::xids).unwrap_or_default();
    let xid = injected.get(delivered.1).copied()?;
    delivered.1 += 1;
    Some(xid)
}

/// Waits in short steps, because the harness may replace the plan meanwhile. Delivers XIDs even if the GPU is
/// lost.
///
/// # Safety
/// `out` is null or points to an `nvmlEventData_t`.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(set: usize, out: *mut c_void, timeout_ms: u32) -> u32 {
    const STEP: Duration = Duration::from_millis(20);
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    let out = out.cast::<EventData>();
    let registered = event_sets().get(&set).copied();
    loop {
        if let (Some(device), Some(xid)) = (registered, next_xid()) {
            // SAFETY: the caller promises that `out` is null or valid for a write.
            return unsafe {
                write_out(
                    out,
                    EventData { device, kind: EVENT_TYPE_XID, data: xid, instances: [u32::MAX; 2] },
                )
            };
        }
        let remaining = end.saturating_duration_since(Instant::now());
        let step = remaining.min(STEP);
        match forward::nvml_symbol(fault_state(), "nvmlEventSetWait_v2") {
            Some(real) => {
                // SAFETY: NVML defines this type for the function, and the caller passes a valid `out`.
                let real_code = unsafe {
                    let real: unsafe extern "C" fn(usize, *mut EventData, u32) -> u32 =
                        std::mem::transmute(real);
                    real(set, out, step.as_millis() as u32)
                };
                if real_code != TIMEOUT {
                    return real_code;
                }
            }
            None => std::thread::sleep(step),
        }
        if remaining.is_zero() {
            return TIMEOUT;
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: u32) -> *const c_char {
    let meaning = match code {
        SUCCESS => c"Success",
        1 => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        TIMEOUT => c"Timeout",
        GPU_IS_LOST => c"GPU is lost",
        _ => c"Unknown Error",
    };
    meaning.as_ptr()
}
