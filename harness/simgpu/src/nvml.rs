//! The part of libnvidia-ml that watchers of a GPU ask: what the plan says of the machine's state, and what rules have brought
//! about. Unsafe: C calls it. In front of a real NVML both are laid over what that tells. It must not know the driver's calls.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use simgpu_plan::{ClockThrottleReason, ControlFile, GpuHealth};

use crate::driver::info::{DEVICE_NAME, pci_bus, uuid};
use crate::driver::state::gpu;
use crate::driver::write_c_str;
use crate::forward;
use crate::rules::fault_state;

const SUCCESS: u32 = 0;
const INVALID_ARGUMENT: u32 = 2;
const NOT_SUPPORTED: u32 = 3;
const NOT_FOUND: u32 = 6;
const INSUFFICIENT_SIZE: u32 = 7;
const TIMEOUT: u32 = 10;
const GPU_IS_LOST: u32 = 15;

/// Handles of devices: this, and the device's number.
const HANDLE_BASE: usize = 0x2_0000;
/// `nvmlEventTypeXidCriticalError`.
const EVENT_TYPE_XID: u64 = 8;
/// The driver that came with CUDA 12.8.
const DRIVER_VERSION: &str = "570.86.10";

/// Writes an answer.
///
/// # Safety
/// `place` is null or a place for the answer.
unsafe fn write_out<T>(place: *mut T, value: T) -> u32 {
    if place.is_null() {
        return INVALID_ARGUMENT;
    }
    // SAFETY: the caller's.
    unsafe { place.write_unaligned(value) };
    SUCCESS
}

/// # Safety
/// `place` has room for `length` bytes.
unsafe fn write_name(place: *mut c_char, length: u32, value: &str) -> u32 {
    if value.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    // SAFETY: the caller's.
    unsafe { write_c_str(place, length as usize, value) };
    SUCCESS
}

fn health() -> GpuHealth {
    fault_state().current_plan().plan.health.clone()
}

fn lost() -> bool {
    // The plan may have been replaced: it is read first.
    let state = health();
    state.lost || fault_state().is_lost()
}

/// The number of a device of the simulation.
fn device_number(device: usize) -> Result<usize, u32> {
    let number = device.checked_sub(HANDLE_BASE).filter(|number| *number < gpu().machine.devices as usize);
    number.ok_or(INVALID_ARGUMENT)
}

fn uuid_text(device: usize) -> String {
    let hex: String = uuid(device).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn throttle_bits(state: &GpuHealth) -> u64 {
    let bit = |throttle: &ClockThrottleReason| match throttle {
        ClockThrottleReason::Thermal => 0x40,
        ClockThrottleReason::PowerCap => 0x4,
        ClockThrottleReason::PowerBrake => 0x80,
    };
    state.throttled.iter().map(bit).fold(0, |bits, bit| bits | bit)
}

/// Corrected (0) or uncorrected (1) errors that the plan and its rules speak of.
fn ecc_errors(kind: u32) -> u64 {
    let state = health();
    match kind {
        0 => state.ecc_corrected,
        _ => state.ecc_uncorrected + fault_state().control().map_or(0, ControlFile::uncorrected_errors),
    }
}

/// Exported functions, of `any` device or none, or of one `device`: these tell that a lost GPU is lost. In front of a real
/// NVML the real function answers; where a name stands before the block, that gets what the real one told, and answers.
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) $kind:ident $($told:ident)? $body:block)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
            if functions!(@$kind) && lost() {
                return GPU_IS_LOST;
            }
            let real = forward::nvml(stringify!($name)).map(|real| {
                // SAFETY: the type that NVML gives this function; the caller's arguments go on as they are.
                unsafe {
                    let real: unsafe extern "C" fn($($type),*) -> u32 = std::mem::transmute(real);
                    real($($argument),*)
                }
            });
            functions!(@answer real $body $($told)?)
        }
    )*};
    (@any) => { false };
    (@device) => { true };
    (@answer $real:ident $body:block) => {
        match $real {
            Some(told) => told,
            None => $body,
        }
    };
    (@answer $real:ident $body:block $told:ident) => {{
        let $told: Option<u32> = $real;
        $body
    }};
}

/// The answer for a device of the simulation.
fn for_device(device: usize, answer: impl FnOnce(usize) -> u32) -> u32 {
    device_number(device).map_or_else(|code| code, answer)
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

    nvmlSystemGetDriverVersion(place: *mut c_char, length: u32) any {
        // SAFETY: an answer's place is the caller's to choose, here and below.
        unsafe { write_name(place, length, DRIVER_VERSION) }
    }
    nvmlSystemGetNVMLVersion(place: *mut c_char, length: u32) any {
        // SAFETY: as above.
        unsafe { write_name(place, length, "12.570.86.10") }
    }
    nvmlSystemGetCudaDriverVersion(place: *mut i32) any {
        let version = gpu().machine.driver_version;
        // SAFETY: as above.
        unsafe { write_out(place, version) }
    }
    nvmlSystemGetCudaDriverVersion_v2(place: *mut i32) any {
        let version = gpu().machine.driver_version;
        // SAFETY: as above.
        unsafe { write_out(place, version) }
    }

    nvmlDeviceGetCount_v2(place: *mut u32) any {
        let devices = gpu().machine.devices;
        // SAFETY: as above.
        unsafe { write_out(place, devices) }
    }
    nvmlDeviceGetHandleByIndex_v2(index: u32, place: *mut usize) device {
        for_device(HANDLE_BASE.saturating_add(index as usize), |number| {
            // SAFETY: as above.
            unsafe { write_out(place, HANDLE_BASE + number) }
        })
    }
    nvmlDeviceGetHandleByUUID(asked: *const c_char, place: *mut usize) device {
        // SAFETY: the caller's string.
        let asked = unsafe { CStr::from_ptr(asked) }.to_string_lossy().into_owned();
        let devices = gpu().machine.devices as usize;
        match (0..devices).find(|device| uuid_text(*device) == asked) {
            // SAFETY: as above.
            Some(device) => unsafe { write_out(place, HANDLE_BASE + device) },
            None => NOT_FOUND,
        }
    }
    nvmlDeviceGetHandleByPciBusId_v2(asked: *const c_char, place: *mut usize) device {
        // SAFETY: the caller's string.
        let asked = unsafe { CStr::from_ptr(asked) }.to_string_lossy().to_ascii_uppercase();
        let devices = gpu().machine.devices as usize;
        match (0..devices).find(|device| asked.ends_with(&pci_bus(*device))) {
            // SAFETY: as above.
            Some(device) => unsafe { write_out(place, HANDLE_BASE + device) },
            None => NOT_FOUND,
        }
    }
    nvmlDeviceGetIndex(device: usize, place: *mut u32) device {
        // SAFETY: as above.
        for_device(device, |number| unsafe { write_out(place, number as u32) })
    }
    nvmlDeviceGetName(device: usize, place: *mut c_char, length: u32) device {
        // SAFETY: as above.
        for_device(device, |_| unsafe { write_name(place, length, DEVICE_NAME) })
    }
    nvmlDeviceGetUUID(device: usize, place: *mut c_char, length: u32) device {
        // SAFETY: as above.
        for_device(device, |number| unsafe { write_name(place, length, &uuid_text(number)) })
    }
    nvmlDeviceGetPciInfo_v3(device: usize, place: *mut PciInfo) device {
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
            // SAFETY: both have room for their lengths; the place as above.
            unsafe {
                write_c_str(pci.legacy.as_mut_ptr(), 16, &pci_bus(number));
                write_c_str(pci.name.as_mut_ptr(), 32, &format!("0000{}", pci_bus(number)));
                write_out(place, pci)
            }
        })
    }
    nvmlDeviceGetCudaComputeCapability(device: usize, major: *mut i32, minor: *mut i32) device {
        let capability = gpu().machine.compute_capability;
        // SAFETY: as above.
        for_device(device, |_| unsafe { write_out(major, capability.0).max(write_out(minor, capability.1)) })
    }

    nvmlDeviceGetMemoryInfo(device: usize, place: *mut [u64; 3]) device {
        for_device(device, |number| {
            let (free, total) = free_and_total(number);
            // SAFETY: as above.
            unsafe { write_out(place, [total, free, total - free]) }
        })
    }
    nvmlDeviceGetMemoryInfo_v2(device: usize, place: *mut MemoryInfo) device {
        for_device(device, |number| {
            if place.is_null() {
                return INVALID_ARGUMENT;
            }
            let (free, total) = free_and_total(number);
            // SAFETY: as above.
            unsafe {
                let version = (*place).version;
                write_out(place, MemoryInfo { version, total, reserved: 0, free, used: total - free })
            }
        })
    }
    nvmlDeviceGetTemperature(device: usize, _sensor: u32, place: *mut u32) device told {
        match (health().temperature_c, told) {
            // SAFETY: as above.
            (Some(temperature), Some(_)) => unsafe { write_out(place, temperature) },
            (None, Some(told)) => told,
            // SAFETY: as above.
            (temperature, None) => for_device(device, |_| unsafe { write_out(place, temperature.unwrap_or(45)) }),
        }
    }
    nvmlDeviceGetCurrentClocksThrottleReasons(device: usize, place: *mut u64) device told {
        // SAFETY: as above.
        unsafe { throttle_reasons(device, place, told) }
    }
    nvmlDeviceGetCurrentClocksEventReasons(device: usize, place: *mut u64) device told {
        // SAFETY: as above.
        unsafe { throttle_reasons(device, place, told) }
    }
    nvmlDeviceGetSupportedClocksThrottleReasons(device: usize, place: *mut u64) device {
        // SAFETY: as above.
        for_device(device, |_| unsafe { write_out(place, 0x1FF) })
    }
    nvmlDeviceGetTotalEccErrors(device: usize, kind: u32, _counter: u32, place: *mut u64) device told {
        // SAFETY: as above.
        unsafe { ecc_counter(device, kind, place, told) }
    }
    nvmlDeviceGetMemoryErrorCounter(device: usize, kind: u32, _counter: u32, at: u32, place: *mut u64) device told {
        // NVML_MEMORY_LOCATION_DEVICE_MEMORY is where errors of the plan lie.
        match (at, told) {
            // SAFETY: as above.
            (2, told) => unsafe { ecc_counter(device, kind, place, told) },
            (_, Some(told)) => told,
            // SAFETY: as above.
            (_, None) => for_device(device, |_| unsafe { write_out(place, 0) }),
        }
    }
    nvmlDeviceGetEccMode(device: usize, current: *mut u32, pending: *mut u32) device {
        // SAFETY: as above.
        for_device(device, |_| unsafe { write_out(current, 1).max(write_out(pending, 1)) })
    }
    nvmlDeviceGetPowerUsage(device: usize, place: *mut u32) device {
        // SAFETY: as above; in milliwatts.
        for_device(device, |_| unsafe { write_out(place, 250_000) })
    }
    nvmlDeviceGetEnforcedPowerLimit(device: usize, place: *mut u32) device {
        // SAFETY: as above.
        for_device(device, |_| unsafe { write_out(place, 700_000) })
    }
    nvmlDeviceGetPowerManagementLimit(device: usize, place: *mut u32) device {
        // SAFETY: as above.
        for_device(device, |_| unsafe { write_out(place, 700_000) })
    }
    nvmlDeviceGetUtilizationRates(device: usize, place: *mut [u32; 2]) device {
        // SAFETY: as above; of the processor and of memory, in per cent.
        for_device(device, |_| unsafe { write_out(place, [50, 30]) })
    }
    nvmlDeviceGetSupportedEventTypes(device: usize, place: *mut u64) device {
        // SAFETY: as above.
        for_device(device, |_| unsafe { write_out(place, EVENT_TYPE_XID) })
    }

    nvmlEventSetCreate(place: *mut usize) any told {
        // SAFETY: as above.
        told.unwrap_or_else(|| unsafe { write_out(place, new_event_set()) })
    }
    nvmlDeviceRegisterEvents(device: usize, kinds: u64, set: usize) device told {
        let code = told.unwrap_or_else(|| for_device(device, |_| if kinds & !EVENT_TYPE_XID == 0 { SUCCESS } else { NOT_SUPPORTED }));
        if code == SUCCESS && kinds & EVENT_TYPE_XID != 0 {
            event_sets().insert(set, device);
        }
        code
    }
    nvmlEventSetFree(set: usize) any told {
        event_sets().remove(&set);
        told.unwrap_or(SUCCESS)
    }
}

/// # Safety
/// `place` is null or a place for the answer.
unsafe fn throttle_reasons(device: usize, place: *mut u64, told: Option<u32>) -> u32 {
    let ours = throttle_bits(&health());
    match told {
        // SAFETY: the caller's; the real function has written there.
        Some(SUCCESS) => unsafe { write_out(place, place.read_unaligned() | ours) },
        Some(told) => told,
        // SAFETY: the caller's.
        None => for_device(device, |_| unsafe { write_out(place, ours) }),
    }
}

/// # Safety
/// As of [`clocks`].
unsafe fn ecc_counter(device: usize, kind: u32, place: *mut u64, told: Option<u32>) -> u32 {
    let ours = ecc_errors(kind);
    match told {
        // SAFETY: as above.
        Some(SUCCESS) => unsafe { write_out(place, place.read_unaligned() + ours) },
        // A card that does not count tells of what the plan brings about all the same.
        // SAFETY: as above.
        Some(_) if ours > 0 => unsafe { write_out(place, ours) },
        Some(told) => told,
        // SAFETY: as above.
        None => for_device(device, |_| unsafe { write_out(place, ours) }),
    }
}

/// Sets of events that listen for XIDs, and the device of each.
fn event_sets() -> MutexGuard<'static, BTreeMap<usize, usize>> {
    static SETS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
    SETS.lock().unwrap_or_else(|poison| poison.into_inner())
}

fn new_event_set() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0x3_0000);
    NEXT.fetch_add(0x10, Ordering::Relaxed)
}

/// The next XID that this process was not told of: those of the plan first, then those that rules have brought about.
fn next_xid() -> Option<u64> {
    static TOLD: Mutex<(usize, usize)> = Mutex::new((0, 0));
    let mut told = TOLD.lock().unwrap_or_else(|poison| poison.into_inner());
    if let Some(xid) = health().xids.get(told.0) {
        told.0 += 1;
        return Some(*xid);
    }
    let brought = fault_state().control().map(ControlFile::xids).unwrap_or_default();
    let xid = brought.get(told.1).copied()?;
    told.1 += 1;
    Some(xid)
}

/// Waits in short steps: the plan may be replaced meanwhile. An XID is told even of a GPU that is lost.
///
/// # Safety
/// `place` is null or a place for the answer.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(set: usize, place: *mut c_void, timeout_ms: u32) -> u32 {
    const STEP: Duration = Duration::from_millis(20);
    let end = Instant::now() + Duration::from_millis(timeout_ms.into());
    let place = place.cast::<EventData>();
    let listens = event_sets().get(&set).copied();
    loop {
        if let (Some(device), Some(xid)) = (listens, next_xid()) {
            // SAFETY: the caller's.
            return unsafe {
                write_out(
                    place,
                    EventData { device, kind: EVENT_TYPE_XID, data: xid, instances: [u32::MAX; 2] },
                )
            };
        }
        let left = end.saturating_duration_since(Instant::now());
        let step = left.min(STEP);
        match forward::nvml("nvmlEventSetWait_v2") {
            Some(real) => {
                // SAFETY: the type that NVML gives this function; the caller's place.
                let told = unsafe {
                    let real: unsafe extern "C" fn(usize, *mut EventData, u32) -> u32 =
                        std::mem::transmute(real);
                    real(set, place, step.as_millis() as u32)
                };
                if told != TIMEOUT {
                    return told;
                }
            }
            None => std::thread::sleep(step),
        }
        if left.is_zero() {
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
