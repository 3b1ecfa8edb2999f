//! Allocations, copies and fills, on the device and page-locked on the host.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::c_void;

use crate::codes;
use crate::driver::{code, write_out};
use crate::sys::{self, PAGE_BYTES};

use super::context::current_context;
use super::launch::enqueue;
use super::state::{Handle, PinnedRange, gpu};
use super::stream::stream_of;
use super::wait::wait_for;
use super::work::{CopyEndpoint, StreamWork, free};

fn current_device() -> Result<usize, u32> {
    let context = current_context()?;
    Ok(gpu().contexts.get(&context).map_or(0, |context| context.device))
}

/// Where memory is short, what was given out is done first: it may free some.
fn allocate(bytes: usize) -> Result<usize, u32> {
    let device = current_device()?;
    if bytes == 0 {
        return Err(codes::INVALID_VALUE);
    }
    if let Some(at) = gpu().memory.allocate(device, bytes) {
        return Ok(at);
    }
    let places = gpu().pending_in(None);
    wait_for(&places)?;
    gpu().memory.allocate(device, bytes).ok_or(codes::OUT_OF_MEMORY)
}

fn allocate_into(place: *mut usize, bytes: usize) -> u32 {
    if place.is_null() {
        return codes::INVALID_VALUE;
    }
    match allocate(bytes) {
        // SAFETY: an answer's place is the caller's to choose, here and below.
        Ok(at) => unsafe { write_out(place, at) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuMemAlloc_v2(place: *mut usize, bytes: usize) -> u32 {
    allocate_into(place, bytes)
}

pub(super) unsafe extern "C" fn cuMemAllocManaged(place: *mut usize, bytes: usize, _flags: u32) -> u32 {
    allocate_into(place, bytes)
}

pub(super) unsafe extern "C" fn cuMemAllocAsync(place: *mut usize, bytes: usize, stream: Handle) -> u32 {
    match stream_of(stream) {
        Ok(_) => allocate_into(place, bytes),
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuMemAllocFromPoolAsync(
    place: *mut usize,
    bytes: usize,
    _pool: Handle,
    stream: Handle,
) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuMemAllocAsync(place, bytes, stream) }
}

/// Waits for all work of the context, as drivers do: memory in use is not pulled away from a kernel.
pub(super) unsafe extern "C" fn cuMemFree_v2(at: usize) -> u32 {
    if at == 0 {
        return codes::SUCCESS;
    }
    code(current_context().and_then(|context| {
        if gpu().memory.starting_at(at).is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let places = gpu().pending_in(Some(context));
        wait_for(&places)?;
        free(at)
    }))
}

pub(super) unsafe extern "C" fn cuMemFreeAsync(at: usize, stream: Handle) -> u32 {
    if at == 0 {
        return codes::SUCCESS;
    }
    code(stream_of(stream).and_then(|stream| {
        if gpu().memory.starting_at(at).is_none() {
            return Err(codes::INVALID_VALUE);
        }
        enqueue(stream, StreamWork::Free { address: at }).map(|_| ())
    }))
}

pub(super) unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    match current_device() {
        Ok(device) => {
            let (left, all) = gpu().memory.free_and_total(device);
            // SAFETY: as above.
            unsafe { write_out(free, left as usize) | write_out(total, all as usize) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuMemGetAddressRange_v2(
    base: *mut usize,
    bytes: *mut usize,
    at: usize,
) -> u32 {
    let found = gpu().memory.containing(at).map(|allocation| (allocation.address, allocation.len_bytes));
    let Some((start, length)) = found else { return codes::NOT_FOUND };
    for (place, value) in [(base, start), (bytes, length)] {
        if !place.is_null() {
            // SAFETY: as above.
            unsafe { write_out(place, value) };
        }
    }
    codes::SUCCESS
}

/// `CU_POINTER_ATTRIBUTE_CONTEXT`, `_MEMORY_TYPE`, `_DEVICE_POINTER`, `_HOST_POINTER`, `_DEVICE_ORDINAL`.
pub(super) unsafe extern "C" fn cuPointerGetAttribute(place: *mut c_void, attribute: u32, at: usize) -> u32 {
    let (on_device, pinned) = {
        let gpu = gpu();
        (gpu.memory.containing(at).map(|allocation| allocation.device), gpu.is_pinned(at, 1))
    };
    if on_device.is_none() && !pinned {
        return codes::INVALID_VALUE;
    }
    // SAFETY: as above; each attribute has the type that CUDA gives it.
    unsafe {
        match attribute {
            2 => write_out(place.cast::<u32>(), if on_device.is_some() { 2 } else { 1 }),
            3 => write_out(place.cast::<usize>(), at),
            4 if pinned => write_out(place.cast::<usize>(), at),
            9 => write_out(place.cast::<i32>(), on_device.unwrap_or(0) as i32),
            _ => codes::NOT_SUPPORTED,
        }
    }
}

pub(super) unsafe extern "C" fn cuMemHostAlloc(place: *mut usize, bytes: usize, _flags: u32) -> u32 {
    if let Err(code) = current_context() {
        return code;
    }
    if bytes == 0 || place.is_null() {
        return codes::INVALID_VALUE;
    }
    let mapped = bytes.next_multiple_of(PAGE_BYTES);
    let Some(at) = sys::map_guarded(mapped) else { return codes::OUT_OF_MEMORY };
    gpu().pinned.insert(at, PinnedRange { len_bytes: mapped, is_owned: true });
    // SAFETY: as above.
    unsafe { write_out(place, at) }
}

pub(super) unsafe extern "C" fn cuMemAllocHost_v2(place: *mut usize, bytes: usize) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuMemHostAlloc(place, bytes, 0) }
}

/// Waits for all work first: a copy that is under way still uses the memory.
pub(super) unsafe extern "C" fn cuMemFreeHost(at: usize) -> u32 {
    code(current_context().and_then(|_| {
        let known = gpu().pinned.get(&at).copied().filter(|pinned| pinned.is_owned);
        let pinned = known.ok_or(codes::INVALID_VALUE)?;
        let places = gpu().pending_in(None);
        wait_for(&places)?;
        gpu().pinned.remove(&at);
        sys::unmap_guarded(at, pinned.len_bytes);
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    place: *mut usize,
    at: usize,
    _flags: u32,
) -> u32 {
    if !gpu().is_pinned(at, 1) {
        return codes::INVALID_VALUE;
    }
    // SAFETY: as above.
    unsafe { write_out(place, at) }
}

pub(super) unsafe extern "C" fn cuMemHostGetFlags(place: *mut u32, at: usize) -> u32 {
    if !gpu().is_pinned(at, 1) {
        return codes::INVALID_VALUE;
    }
    // SAFETY: as above.
    unsafe { write_out(place, 0) }
}

pub(super) unsafe extern "C" fn cuMemHostRegister_v2(at: usize, bytes: usize, _flags: u32) -> u32 {
    code(current_context().and_then(|_| {
        if at == 0 || bytes == 0 {
            return Err(codes::INVALID_VALUE);
        }
        gpu().pinned.insert(at, PinnedRange { len_bytes: bytes, is_owned: false });
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuMemHostUnregister(at: usize) -> u32 {
    code(current_context().and_then(|_| {
        let known = gpu().pinned.get(&at).is_some_and(|pinned| !pinned.is_owned);
        if !known {
            return Err(codes::INVALID_VALUE);
        }
        let places = gpu().pending_in(None);
        wait_for(&places)?;
        gpu().pinned.remove(&at);
        Ok(())
    }))
}

/// Which way a copy goes, by the function's name; none: both ends tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToDevice,
    ToHost,
    OnDevice,
    Unknown,
}

/// Both ends, or an error for one that should lie on the device and does not.
fn copy_endpoints(
    way: Way,
    to: usize,
    from: usize,
    bytes: usize,
) -> Result<(CopyEndpoint, CopyEndpoint), u32> {
    let gpu = gpu();
    let end = |address, on_device: bool| match (gpu.is_device_side(address, bytes), on_device) {
        (true, _) => Ok(CopyEndpoint::DeviceSide(address)),
        (false, false) => Ok(CopyEndpoint::Pageable(address)),
        (false, true) => Err(codes::INVALID_VALUE),
    };
    let to = end(to, matches!(way, Way::ToDevice | Way::OnDevice))?;
    let from = end(from, matches!(way, Way::ToHost | Way::OnDevice))?;
    Ok((to, from))
}

/// Queues a copy, and waits for it where CUDA does.
fn copy(way: Way, to: usize, from: usize, bytes: usize, stream: Handle, blocks: bool) -> Result<(), u32> {
    let stream = stream_of(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let (to, from) = copy_endpoints(way, to, from, bytes)?;
    let (work, waits) = match (to, from) {
        (CopyEndpoint::DeviceSide(_), CopyEndpoint::Pageable(from)) => {
            // SAFETY: pageable memory is the caller's to answer for.
            let staged = unsafe { sys::bytes(from, bytes) }.to_vec();
            (StreamWork::StagedCopy { to, bytes: staged }, blocks)
        }
        // Copies to pageable memory are over when the call is.
        (CopyEndpoint::Pageable(_), _) => (StreamWork::Copy { to, from, bytes }, true),
        (CopyEndpoint::DeviceSide(_), CopyEndpoint::DeviceSide(_)) => {
            (StreamWork::Copy { to, from, bytes }, blocks && way != Way::OnDevice)
        }
    };
    let place = enqueue(stream, work)?;
    if waits { wait_for(&[place]) } else { Ok(()) }
}

macro_rules! copies {
    ($($name:ident $blocking:ident $way:ident;)*) => {$(
        copies!(@$blocking $name $way);
    )*};
    (@blocks $name:ident $way:ident) => {
        pub(super) unsafe extern "C" fn $name(to: usize, from: usize, bytes: usize) -> u32 {
            code(copy(Way::$way, to, from, bytes, 0, true))
        }
    };
    (@queues $name:ident $way:ident) => {
        pub(super) unsafe extern "C" fn $name(to: usize, from: usize, bytes: usize, stream: Handle) -> u32 {
            code(copy(Way::$way, to, from, bytes, stream, false))
        }
    };
}

copies! {
    cuMemcpy blocks Unknown;
    cuMemcpyHtoD_v2 blocks ToDevice;
    cuMemcpyDtoH_v2 blocks ToHost;
    cuMemcpyDtoD_v2 blocks OnDevice;
    cuMemcpyAsync queues Unknown;
    cuMemcpyHtoDAsync_v2 queues ToDevice;
    cuMemcpyDtoHAsync_v2 queues ToHost;
    cuMemcpyDtoDAsync_v2 queues OnDevice;
}

pub(super) unsafe extern "C" fn cuMemcpyPeer(
    to: usize,
    _to_context: Handle,
    from: usize,
    _from_context: Handle,
    bytes: usize,
) -> u32 {
    code(copy(Way::OnDevice, to, from, bytes, 0, true))
}

pub(super) unsafe extern "C" fn cuMemcpyPeerAsync(
    to: usize,
    _to_context: Handle,
    from: usize,
    _from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> u32 {
    code(copy(Way::OnDevice, to, from, bytes, stream, false))
}

/// Queues a fill: the host does not wait for it.
fn set(to: usize, value: u32, width: usize, count: usize, stream: Handle) -> Result<(), u32> {
    let stream = stream_of(stream)?;
    let bytes = width.checked_mul(count).ok_or(codes::INVALID_VALUE)?;
    if !to.is_multiple_of(width) || !gpu().is_device_side(to, bytes) {
        return Err(codes::INVALID_VALUE);
    }
    enqueue(stream, StreamWork::Fill { to, pattern: value.to_le_bytes(), width, count }).map(|_| ())
}

macro_rules! fills {
    ($($now:ident $later:ident $value:ty;)*) => {$(
        pub(super) unsafe extern "C" fn $now(to: usize, value: $value, count: usize) -> u32 {
            code(set(to, u32::from(value), size_of::<$value>(), count, 0))
        }
        pub(super) unsafe extern "C" fn $later(to: usize, value: $value, count: usize, stream: Handle) -> u32 {
            code(set(to, u32::from(value), size_of::<$value>(), count, stream))
        }
    )*};
}

fills! {
    cuMemsetD8_v2 cuMemsetD8Async u8;
    cuMemsetD16_v2 cuMemsetD16Async u16;
    cuMemsetD32_v2 cuMemsetD32Async u32;
}

pub(super) unsafe extern "C" fn cuMemPoolCreate(place: *mut Handle, _properties: *const c_void) -> u32 {
    let handle = {
        let mut gpu = gpu();
        let handle = gpu.new_handle();
        gpu.pools.insert(handle, 0);
        handle
    };
    // SAFETY: as above.
    unsafe { write_out(place, handle) }
}

pub(super) unsafe extern "C" fn cuMemPoolDestroy(pool: Handle) -> u32 {
    match gpu().pools.remove(&pool) {
        Some(_) => codes::SUCCESS,
        None => codes::INVALID_VALUE,
    }
}

/// Nothing is held back: freed memory is free at once.
pub(super) unsafe extern "C" fn cuMemPoolTrimTo(_pool: Handle, _keep: usize) -> u32 {
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuMemPoolSetAttribute(
    _pool: Handle,
    _attribute: u32,
    _value: *const c_void,
) -> u32 {
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuMemPoolGetAttribute(
    _pool: Handle,
    _attribute: u32,
    place: *mut u64,
) -> u32 {
    // SAFETY: all attributes but the first three are 64 bits wide; those callers read the first half.
    unsafe { write_out(place.cast::<u32>(), 0) }
}

pub(super) unsafe extern "C" fn cuMemPrefetchAsync(
    _at: usize,
    _bytes: usize,
    _device: i32,
    _stream: Handle,
) -> u32 {
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuMemPrefetchAsync_v2(
    _at: usize,
    _bytes: usize,
    _to: u64,
    _flags: u32,
    _stream: Handle,
) -> u32 {
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuMemAdvise(_at: usize, _bytes: usize, _advice: u32, _device: i32) -> u32 {
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuMemAdvise_v2(
    _at: usize,
    _bytes: usize,
    _advice: u32,
    _location: u64,
) -> u32 {
    codes::SUCCESS
}
