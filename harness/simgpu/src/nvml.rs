//! The part of libnvidia-ml that monitoring programs call. It reports the plan's health of the GPU and the
//! consequences of injected errors, in addition to what a real NVML reports. Unsafe: C calls it. Must not
//! know the driver's calls.

use std::collections::BTreeMap;
use std::ffi::c_char;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use simgpu_plan::{ClockThrottleReason, ControlFile, GpuHealth};

use crate::driver::info::{DEVICE_NAME, pci_bus, uuid};
use crate::driver::state::gpu;
use crate::driver::sys::{Out, TextArgument, write_c_str};
use crate::faults::{FaultState, fault_state};
use crate::forward;
use crate::locks::MutexExt;

/// `nvmlReturn_t`.
const SUCCESS: u32 = 0;
const UNINITIALIZED: u32 = 1;
const INVALID_ARGUMENT: u32 = 2;
const NOT_SUPPORTED: u32 = 3;
const NOT_FOUND: u32 = 6;
const INSUFFICIENT_SIZE: u32 = 7;
const TIMEOUT: u32 = 10;
const FUNCTION_NOT_FOUND: u32 = 13;
const GPU_IS_LOST: u32 = 15;

/// A device's handle is this plus the device's number.
const HANDLE_BASE: usize = 0x2_0000;
/// `nvmlEventTypeXidCriticalError`.
const EVENT_TYPE_XID: u64 = 8;
/// `nvmlMemoryErrorType_t`. The other type is that of uncorrected errors.
const ERROR_TYPE_CORRECTED: u32 = 0;
/// `NVML_MEMORY_LOCATION_DEVICE_MEMORY`.
const LOCATION_DEVICE_MEMORY: u32 = 2;
/// `NVML_FEATURE_ENABLED`.
const FEATURE_ENABLED: u32 = 1;
/// `nvmlClocksEventReasons`: software power cap, hardware thermal slowdown, hardware power brake.
const REASON_POWER_CAP: u64 = 0x4;
const REASON_THERMAL: u64 = 0x40;
const REASON_POWER_BRAKE: u64 = 0x80;
/// All reasons that NVML defines.
const ALL_REASONS: u64 = 0x1FF;

/// Version of the driver that came with CUDA 12.8.
const DRIVER_VERSION: &str = "570.86.10";
/// Version of NVML that came with it.
const NVML_VERSION: &str = "12.570.86.10";
/// Device and vendor of an H100.
const PCI_DEVICE_ID: u32 = 0x2330_10DE;
const DEFAULT_TEMPERATURE_C: u32 = 45;
const POWER_USAGE_MW: u32 = 250_000;
const POWER_LIMIT_MW: u32 = 700_000;
const UTILIZATION_PERCENT: Utilization = Utilization { gpu: 50, memory: 30 };
/// `NVML_VALUE_NOT_AVAILABLE`, for the instances of a GPU that is not partitioned.
const NO_INSTANCE: u32 = u32::MAX;

/// Writes an output value. Returns NVML's code of the call.
fn write_nvml<T>(out: Out<T>, value: T) -> u32 {
    if out.try_write(value) { SUCCESS } else { INVALID_ARGUMENT }
}

/// Writes a string, or returns an error if there is not enough room.
///
/// # Safety
/// `out` is null or has room for `length` bytes.
unsafe fn write_name(out: *mut c_char, length: u32, value: &str) -> u32 {
    if value.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: `write_c_str` requires the room that this function requires of its caller.
    unsafe { write_c_str(out, length as usize, value) };
    SUCCESS
}

fn health(faults: &FaultState) -> GpuHealth {
    faults.current_plan().plan.health.clone()
}

fn is_gpu_lost(faults: &FaultState) -> bool {
    // Reads the plan first, because the harness may have replaced it.
    let health = health(faults);
    health.lost || faults.is_lost()
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
        ClockThrottleReason::Thermal => REASON_THERMAL,
        ClockThrottleReason::PowerCap => REASON_POWER_CAP,
        ClockThrottleReason::PowerBrake => REASON_POWER_BRAKE,
    };
    health.throttled.iter().map(bit).fold(0, |bits, bit| bits | bit)
}

/// Returns the number of corrected or uncorrected memory errors, from the plan and from injected errors.
fn ecc_errors(faults: &FaultState, kind: u32) -> u64 {
    let health = health(faults);
    match kind {
        ERROR_TYPE_CORRECTED => health.ecc_corrected,
        _ => health.ecc_uncorrected + faults.control().map_or(0, ControlFile::uncorrected_errors),
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
            let faults = fault_state();
            if functions!(@$kind) && is_gpu_lost(faults) {
                return GPU_IS_LOST;
            }
            let real = forward::nvml_symbol(faults, stringify!($name)).map(|real| {
                // SAFETY: NVML defines this type for the function, and requires the same of the caller.
                unsafe {
                    let real: unsafe extern "C" fn($($type),*) -> u32 = std::mem::transmute(real);
                    real($($argument),*)
                }
            });
            if real.is_none() && forward::is_active(faults) {
                return FUNCTION_NOT_FOUND;
            }
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

/// Returns the real NVML's function of this name, or the code that a call of it returns: the GPU is lost, the
/// machine's NVML does not have it, or the simulation does not.
pub(crate) fn forwarded(faults: &FaultState, name: &str) -> Result<usize, u32> {
    if !forward::is_active(faults) {
        return Err(NOT_SUPPORTED);
    }
    if name.starts_with("nvmlDevice") && is_gpu_lost(faults) {
        return Err(GPU_IS_LOST);
    }
    forward::nvml_symbol(faults, name).ok_or(FUNCTION_NOT_FOUND)
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

/// `nvmlUtilization_t`, in per cent.
#[repr(C)]
struct Utilization {
    gpu: u32,
    memory: u32,
}

/// `nvmlMemory_t`.
#[repr(C)]
struct BasicMemoryInfo {
    total: u64,
    free: u64,
    used: u64,
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
        // SAFETY: NVML requires `out` to have room for `length` bytes, or to be null.
        unsafe { write_name(out, length, DRIVER_VERSION) }
    }
    nvmlSystemGetNVMLVersion(out: *mut c_char, length: u32) any {
        // SAFETY: NVML requires `out` to have room for `length` bytes, or to be null.
        unsafe { write_name(out, length, NVML_VERSION) }
    }
    nvmlSystemGetCudaDriverVersion(out: Out<i32>) any {
        let version = gpu().machine.driver_version;
        write_nvml(out, version)
    }
    nvmlSystemGetCudaDriverVersion_v2(out: Out<i32>) any {
        let version = gpu().machine.driver_version;
        write_nvml(out, version)
    }

    nvmlDeviceGetCount_v2(out: Out<u32>) any {
        let devices = gpu().machine.devices;
        write_nvml(out, devices)
    }
    nvmlDeviceGetHandleByIndex_v2(index: u32, out: Out<usize>) device {
        for_device(HANDLE_BASE.saturating_add(index as usize), |number| {
            write_nvml(out, HANDLE_BASE + number)
        })
    }
    nvmlDeviceGetHandleByUUID(requested: TextArgument, out: Out<usize>) device {
        let requested = requested.as_str().unwrap_or_default();
        let devices = gpu().machine.devices as usize;
        match (0..devices).find(|device| uuid_text(*device) == requested) {
            Some(device) => write_nvml(out, HANDLE_BASE + device),
            None => NOT_FOUND,
        }
    }
    nvmlDeviceGetHandleByPciBusId_v2(requested: TextArgument, out: Out<usize>) device {
        let requested = requested.as_str().unwrap_or_default().to_ascii_uppercase();
        let devices = gpu().machine.devices as usize;
        match (0..devices).find(|device| requested.ends_with(&pci_bus(*device))) {
            Some(device) => write_nvml(out, HANDLE_BASE + device),
            None => NOT_FOUND,
        }
    }
    nvmlDeviceGetIndex(device: usize, out: Out<u32>) device {
        for_device(device, |number| write_nvml(out, number as u32))
    }
    nvmlDeviceGetName(device: usize, out: *mut c_char, length: u32) device {
        // SAFETY: NVML requires `out` to have room for `length` bytes, or to be null.
        for_device(device, |_| unsafe { write_name(out, length, DEVICE_NAME) })
    }
    nvmlDeviceGetUUID(device: usize, out: *mut c_char, length: u32) device {
        // SAFETY: NVML requires `out` to have room for `length` bytes, or to be null.
        for_device(device, |number| unsafe { write_name(out, length, &uuid_text(number)) })
    }
    nvmlDeviceGetPciInfo_v3(device: usize, out: Out<PciInfo>) device {
        for_device(device, |number| {
            let mut pci = PciInfo {
                legacy: [0; 16],
                domain: 0,
                bus: number as u32 + 1,
                device: 0,
                id: PCI_DEVICE_ID,
                subsystem: 0,
                name: [0; 32],
            };
            // SAFETY: the fields have these lengths.
            unsafe {
                write_c_str(pci.legacy.as_mut_ptr(), pci.legacy.len(), &pci_bus(number));
                write_c_str(pci.name.as_mut_ptr(), pci.name.len(), &format!("0000{}", pci_bus(number)));
            }
            write_nvml(out, pci)
        })
    }
    nvmlDeviceGetCudaComputeCapability(device: usize, major: Out<i32>, minor: Out<i32>) device {
        let capability = gpu().compute_capability();
        for_device(device, |_| write_nvml(major, capability.major).max(write_nvml(minor, capability.minor)))
    }

    nvmlDeviceGetMemoryInfo(device: usize, out: Out<BasicMemoryInfo>) device {
        for_device(device, |number| {
            let (free, total) = free_and_total(number);
            write_nvml(out, BasicMemoryInfo { total, free, used: total - free })
        })
    }
    nvmlDeviceGetMemoryInfo_v2(device: usize, out: Out<MemoryInfo>) device {
        for_device(device, |number| {
            if out.is_null() {
                return INVALID_ARGUMENT;
            }
            let (free, total) = free_and_total(number);
            // SAFETY: NVML requires the caller to set the version before the call; null was checked.
            let version = unsafe { out.read() }.version;
            write_nvml(out, MemoryInfo { version, total, reserved: 0, free, used: total - free })
        })
    }
    nvmlDeviceGetTemperature(device: usize, _sensor: u32, out: Out<u32>) device real_code {
        match (health(fault_state()).temperature_c, real_code) {
            (Some(temperature), Some(_)) => write_nvml(out, temperature),
            (None, Some(real_code)) => real_code,
            (temperature, None) => for_device(device, |_| write_nvml(out, temperature.unwrap_or(DEFAULT_TEMPERATURE_C))),
        }
    }
    nvmlDeviceGetCurrentClocksThrottleReasons(device: usize, out: Out<u64>) device real_code {
        // SAFETY: NVML writes to `out` before it returns a success.
        unsafe { throttle_reasons(device, out, real_code) }
    }
    nvmlDeviceGetCurrentClocksEventReasons(device: usize, out: Out<u64>) device real_code {
        // SAFETY: NVML writes to `out` before it returns a success.
        unsafe { throttle_reasons(device, out, real_code) }
    }
    nvmlDeviceGetSupportedClocksThrottleReasons(device: usize, out: Out<u64>) device {
        for_device(device, |_| write_nvml(out, ALL_REASONS))
    }
    nvmlDeviceGetTotalEccErrors(device: usize, kind: u32, _counter: u32, out: Out<u64>) device real_code {
        // SAFETY: NVML writes to `out` before it returns a success.
        unsafe { ecc_counter(device, kind, out, real_code) }
    }
    nvmlDeviceGetMemoryErrorCounter(
        device: usize, kind: u32, _counter: u32, location: u32, out: Out<u64>
    ) device real_code {
        // The plan's errors are in device memory.
        match (location, real_code) {
            // SAFETY: NVML writes to `out` before it returns a success.
            (LOCATION_DEVICE_MEMORY, real_code) => unsafe { ecc_counter(device, kind, out, real_code) },
            (_, Some(real_code)) => real_code,
            (_, None) => for_device(device, |_| write_nvml(out, 0)),
        }
    }
    nvmlDeviceGetEccMode(device: usize, current: Out<u32>, pending: Out<u32>) device {
        for_device(device, |_| write_nvml(current, FEATURE_ENABLED).max(write_nvml(pending, FEATURE_ENABLED)))
    }
    nvmlDeviceGetPowerUsage(device: usize, out: Out<u32>) device {
        for_device(device, |_| write_nvml(out, POWER_USAGE_MW))
    }
    nvmlDeviceGetEnforcedPowerLimit(device: usize, out: Out<u32>) device {
        for_device(device, |_| write_nvml(out, POWER_LIMIT_MW))
    }
    nvmlDeviceGetPowerManagementLimit(device: usize, out: Out<u32>) device {
        for_device(device, |_| write_nvml(out, POWER_LIMIT_MW))
    }
    nvmlDeviceGetUtilizationRates(device: usize, out: Out<Utilization>) device {
        for_device(device, |_| write_nvml(out, UTILIZATION_PERCENT))
    }
    nvmlDeviceGetSupportedEventTypes(device: usize, out: Out<u64>) device {
        for_device(device, |_| write_nvml(out, EVENT_TYPE_XID))
    }

    nvmlEventSetCreate(out: Out<usize>) any real_code {
        real_code.unwrap_or_else(|| write_nvml(out, new_event_set()))
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
/// If `real_code` is a success, the real function has written to `out`.
unsafe fn throttle_reasons(device: usize, out: Out<u64>, real_code: Option<u32>) -> u32 {
    let faults = fault_state();
    let injected = throttle_bits(&health(faults));
    match real_code {
        // SAFETY: the real function has succeeded, so it has written to `out`, as this function requires.
        Some(SUCCESS) => write_nvml(out, unsafe { out.read() } | injected),
        Some(real_code) => real_code,
        None => for_device(device, |_| write_nvml(out, injected)),
    }
}

/// Writes the number of memory errors: the plan's and the injected ones, in addition to those of the real
/// NVML.
///
/// # Safety
/// If `real_code` is a success, the real function has written to `out`.
unsafe fn ecc_counter(device: usize, kind: u32, out: Out<u64>, real_code: Option<u32>) -> u32 {
    let faults = fault_state();
    let injected = ecc_errors(faults, kind);
    match real_code {
        // SAFETY: the real function has succeeded, so it has written to `out`, as this function requires.
        Some(SUCCESS) => write_nvml(out, unsafe { out.read() } + injected),
        // Injected errors are reported even if the real GPU has no counter.
        Some(_) if injected > 0 => write_nvml(out, injected),
        Some(real_code) => real_code,
        None => for_device(device, |_| write_nvml(out, injected)),
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

/// How many XIDs this process has received: of the plan, and of injected errors.
struct DeliveredXids {
    planned: usize,
    injected: usize,
}

/// Takes the next XID that this process has not received yet: the plan's first, then those of injected
/// errors.
fn next_xid(faults: &FaultState) -> Option<u64> {
    static DELIVERED: Mutex<DeliveredXids> = Mutex::new(DeliveredXids { planned: 0, injected: 0 });
    let mut delivered = DELIVERED.locked();
    if let Some(xid) = health(faults).xids.get(delivered.planned) {
        delivered.planned += 1;
        return Some(*xid);
    }
    let injected = faults.control().map(ControlFile::xids).unwrap_or_default();
    let xid = injected.get(delivered.injected).copied()?;
    delivered.injected += 1;
    Some(xid)
}

/// Waits in short steps, because the harness may replace the plan meanwhile. Delivers XIDs even if the GPU is
/// lost.
#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetWait_v2(set: usize, out: Out<EventData>, timeout_ms: u32) -> u32 {
    const STEP: Duration = Duration::from_millis(20);
    let faults = fault_state();
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    let registered = event_sets().get(&set).copied();
    loop {
        if let (Some(device), Some(xid)) = (registered, next_xid(faults)) {
            let instances = [NO_INSTANCE; 2];
            return write_nvml(out, EventData { device, kind: EVENT_TYPE_XID, data: xid, instances });
        }
        let remaining = end.saturating_duration_since(Instant::now());
        let step = remaining.min(STEP);
        match forward::nvml_symbol(faults, "nvmlEventSetWait_v2") {
            Some(real) => {
                // SAFETY: NVML defines this type for the function, and its caller passed these arguments.
                let real_code = unsafe {
                    let real: unsafe extern "C" fn(usize, Out<EventData>, u32) -> u32 =
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
        UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        TIMEOUT => c"Timeout",
        FUNCTION_NOT_FOUND => c"Function Not Found",
        GPU_IS_LOST => c"GPU is lost",
        _ => c"Unknown Error",
    };
    meaning.as_ptr()
}
