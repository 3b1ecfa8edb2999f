//! Allocations, copies and fills of device memory and of page-locked host memory. Unsafe: reads the memory
//! that the program copies from. Must not know how work runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::c_void;

use crate::codes;
use crate::faults::fault_state;
use crate::sys::{self, PAGE_BYTES};

use super::context::{current_context, stream_of};
use super::operations::{CopyEndpoint, Handle, MemoryFill, StreamWork};
use super::state::{PinnedRange, gpu};
use super::sys::{Out, result_code};
use super::wait::wait_for;
use super::work::free;

/// The NULL stream of the current context.
const NULL_STREAM: Handle = 0;

/// `CUpointer_attribute`.
const POINTER_ATTRIBUTE_MEMORY_TYPE: u32 = 2;
const POINTER_ATTRIBUTE_DEVICE_POINTER: u32 = 3;
const POINTER_ATTRIBUTE_HOST_POINTER: u32 = 4;
const POINTER_ATTRIBUTE_DEVICE_ORDINAL: u32 = 9;

/// `CUmemorytype`.
const MEMORY_TYPE_HOST: u32 = 1;
const MEMORY_TYPE_DEVICE: u32 = 2;

fn current_device() -> Result<usize, u32> {
    let context = current_context()?;
    Ok(gpu().contexts.get(&context).map_or(0, |context| context.device))
}

/// Allocates memory. If there is not enough, runs all queued work, which may free some, and tries again.
fn allocate(bytes: usize) -> Result<usize, u32> {
    let device = current_device()?;
    if bytes == 0 {
        return Err(codes::INVALID_VALUE);
    }
    if let Some(address) = gpu().memory.allocate(device, bytes) {
        return Ok(address);
    }
    let positions = gpu().pending_in(None);
    wait_for(fault_state(), &positions)?;
    gpu().memory.allocate(device, bytes).ok_or(codes::OUT_OF_MEMORY)
}

fn allocate_into(out: Out<usize>, bytes: usize) -> u32 {
    if out.is_null() {
        return codes::INVALID_VALUE;
    }
    out.write_result(allocate(bytes))
}

pub(super) extern "C" fn cuMemAlloc_v2(out: Out<usize>, bytes: usize) -> u32 {
    allocate_into(out, bytes)
}

pub(super) extern "C" fn cuMemAllocManaged(out: Out<usize>, bytes: usize, _flags: u32) -> u32 {
    allocate_into(out, bytes)
}

pub(super) extern "C" fn cuMemAllocAsync(out: Out<usize>, bytes: usize, stream: Handle) -> u32 {
    match stream_of(stream) {
        Ok(_) => allocate_into(out, bytes),
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuMemAllocFromPoolAsync(
    out: Out<usize>,
    bytes: usize,
    _pool: Handle,
    stream: Handle,
) -> u32 {
    cuMemAllocAsync(out, bytes, stream)
}

/// Waits for all work of the context first, as drivers do, because a queued kernel may use the memory.
pub(super) extern "C" fn cuMemFree_v2(address: usize) -> u32 {
    if address == 0 {
        return codes::SUCCESS;
    }
    result_code(current_context().and_then(|context| {
        if gpu().memory.starting_at(address).is_none() {
            return Err(codes::INVALID_VALUE);
        }
        let positions = gpu().pending_in(Some(context));
        wait_for(fault_state(), &positions)?;
        free(fault_state(), address)
    }))
}

pub(super) extern "C" fn cuMemFreeAsync(address: usize, stream: Handle) -> u32 {
    if address == 0 {
        return codes::SUCCESS;
    }
    result_code(stream_of(stream).and_then(|stream| {
        if gpu().memory.starting_at(address).is_none() {
            return Err(codes::INVALID_VALUE);
        }
        gpu().enqueue(stream, StreamWork::Free { address });
        Ok(())
    }))
}

pub(super) extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> u32 {
    match current_device() {
        Ok(device) => {
            let (free_bytes, total_bytes) = gpu().memory.free_and_total(device);
            free.write(free_bytes as usize) | total.write(total_bytes as usize)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuMemGetAddressRange_v2(base: Out<usize>, bytes: Out<usize>, address: usize) -> u32 {
    let found = gpu().memory.containing(address).map(|allocation| (allocation.address, allocation.len_bytes));
    let Some((start, length)) = found else { return codes::NOT_FOUND };
    // The caller may want only one of them.
    base.try_write(start);
    bytes.try_write(length);
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuPointerGetAttribute(
    out: *mut c_void,
    attribute: u32,
    address: usize,
) -> u32 {
    let (on_device, pinned) = {
        let gpu = gpu();
        (gpu.memory.containing(address).map(|allocation| allocation.device), gpu.is_pinned(address, 1))
    };
    if on_device.is_none() && !pinned {
        return codes::INVALID_VALUE;
    }
    let memory_type = if on_device.is_some() { MEMORY_TYPE_DEVICE } else { MEMORY_TYPE_HOST };
    // SAFETY: CUDA requires `out` to be null or valid for a write of the attribute's type.
    unsafe {
        match attribute {
            POINTER_ATTRIBUTE_MEMORY_TYPE => Out::from_pointer(out.cast()).write(memory_type),
            POINTER_ATTRIBUTE_DEVICE_POINTER => Out::from_pointer(out.cast()).write(address),
            POINTER_ATTRIBUTE_HOST_POINTER if pinned => Out::from_pointer(out.cast()).write(address),
            POINTER_ATTRIBUTE_DEVICE_ORDINAL => {
                Out::from_pointer(out.cast()).write(on_device.unwrap_or(0) as i32)
            }
            _ => codes::NOT_SUPPORTED,
        }
    }
}

pub(super) extern "C" fn cuMemHostAlloc(out: Out<usize>, bytes: usize, _flags: u32) -> u32 {
    if let Err(code) = current_context() {
        return code;
    }
    if bytes == 0 || out.is_null() {
        return codes::INVALID_VALUE;
    }
    let mapped = bytes.next_multiple_of(PAGE_BYTES);
    let Some(address) = sys::map_guarded(mapped) else { return codes::OUT_OF_MEMORY };
    gpu().pinned.insert(address, PinnedRange { len_bytes: mapped, is_owned: true });
    out.write(address)
}

pub(super) extern "C" fn cuMemAllocHost_v2(out: Out<usize>, bytes: usize) -> u32 {
    cuMemHostAlloc(out, bytes, 0)
}

/// Waits for all work first, because a queued copy may use the memory.
pub(super) extern "C" fn cuMemFreeHost(address: usize) -> u32 {
    result_code(current_context().and_then(|_| {
        let known = gpu().pinned.get(&address).copied().filter(|pinned| pinned.is_owned);
        let pinned = known.ok_or(codes::INVALID_VALUE)?;
        let positions = gpu().pending_in(None);
        wait_for(fault_state(), &positions)?;
        gpu().pinned.remove(&address);
        sys::unmap_guarded(address, pinned.len_bytes);
        Ok(())
    }))
}

pub(super) extern "C" fn cuMemHostGetDevicePointer_v2(out: Out<usize>, address: usize, _flags: u32) -> u32 {
    if !gpu().is_pinned(address, 1) {
        return codes::INVALID_VALUE;
    }
    out.write(address)
}

pub(super) extern "C" fn cuMemHostGetFlags(out: Out<u32>, address: usize) -> u32 {
    if !gpu().is_pinned(address, 1) {
        return codes::INVALID_VALUE;
    }
    out.write(0)
}

pub(super) extern "C" fn cuMemHostRegister_v2(address: usize, bytes: usize, _flags: u32) -> u32 {
    result_code(current_context().and_then(|_| {
        if address == 0 || bytes == 0 {
            return Err(codes::INVALID_VALUE);
        }
        gpu().pinned.insert(address, PinnedRange { len_bytes: bytes, is_owned: false });
        Ok(())
    }))
}

pub(super) extern "C" fn cuMemHostUnregister(address: usize) -> u32 {
    result_code(current_context().and_then(|_| {
        let known = gpu().pinned.get(&address).is_some_and(|pinned| !pinned.is_owned);
        if !known {
            return Err(codes::INVALID_VALUE);
        }
        let positions = gpu().pending_in(None);
        wait_for(fault_state(), &positions)?;
        gpu().pinned.remove(&address);
        Ok(())
    }))
}

/// The direction of a copy, from the function's name. `Unknown`: the two addresses decide.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CopyDirection {
    ToDevice,
    ToHost,
    OnDevice,
    Unknown,
}

/// A copy that the program asks for.
#[derive(Clone, Copy)]
struct CopyRequest {
    direction: CopyDirection,
    to: usize,
    from: usize,
    bytes: usize,
}

impl CopyRequest {
    /// Classifies both ends. Returns an error if an end must be device memory but is not.
    fn endpoints(self) -> Result<(CopyEndpoint, CopyEndpoint), u32> {
        let gpu = gpu();
        let end = |address, on_device: bool| match (gpu.is_device_side(address, self.bytes), on_device) {
            (true, _) => Ok(CopyEndpoint::DeviceSide(address)),
            (false, false) => Ok(CopyEndpoint::Pageable(address)),
            (false, true) => Err(codes::INVALID_VALUE),
        };
        let to = end(self.to, matches!(self.direction, CopyDirection::ToDevice | CopyDirection::OnDevice))?;
        let from = end(self.from, matches!(self.direction, CopyDirection::ToHost | CopyDirection::OnDevice))?;
        Ok((to, from))
    }
}

/// Queues a copy. Waits for it if CUDA's function waits.
///
/// # Safety
/// `from` is readable and `to` is writable for the length of the copy, or they are device memory.
unsafe fn enqueue_copy(copy: CopyRequest, stream: Handle, blocks: bool) -> Result<(), u32> {
    let CopyRequest { direction, bytes, .. } = copy;
    let stream = stream_of(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let (to, from) = copy.endpoints()?;
    let (work, waits) = match (to, from) {
        (CopyEndpoint::DeviceSide(_), CopyEndpoint::Pageable(from)) => {
            // SAFETY: memory that is not the device's is what the caller promises to be readable.
            let staged = unsafe { sys::bytes(from, bytes) }.to_vec();
            (StreamWork::StagedCopy { to, bytes: staged }, blocks)
        }
        // A copy to pageable memory is complete when the call returns.
        (CopyEndpoint::Pageable(_), _) => (StreamWork::Copy { to, from, bytes }, true),
        (CopyEndpoint::DeviceSide(_), CopyEndpoint::DeviceSide(_)) => {
            (StreamWork::Copy { to, from, bytes }, blocks && direction != CopyDirection::OnDevice)
        }
    };
    let position = gpu().enqueue(stream, work);
    if waits { wait_for(fault_state(), &[position]) } else { Ok(()) }
}

macro_rules! copies {
    ($($name:ident $blocking:ident $direction:ident;)*) => {$(
        copies!(@$blocking $name $direction);
    )*};
    (@blocks $name:ident $direction:ident) => {
        pub(super) unsafe extern "C" fn $name(to: usize, from: usize, bytes: usize) -> u32 {
            let copy = CopyRequest { direction: CopyDirection::$direction, to, from, bytes };
            // SAFETY: CUDA requires host memory to be readable or writable for the length of the copy.
            result_code(unsafe { enqueue_copy(copy, NULL_STREAM, true) })
        }
    };
    (@queues $name:ident $direction:ident) => {
        pub(super) unsafe extern "C" fn $name(to: usize, from: usize, bytes: usize, stream: Handle) -> u32 {
            let copy = CopyRequest { direction: CopyDirection::$direction, to, from, bytes };
            // SAFETY: CUDA requires host memory to be readable or writable for the length of the copy.
            result_code(unsafe { enqueue_copy(copy, stream, false) })
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
    let copy = CopyRequest { direction: CopyDirection::OnDevice, to, from, bytes };
    // SAFETY: CUDA requires host memory to be readable or writable for the length of the copy.
    result_code(unsafe { enqueue_copy(copy, NULL_STREAM, true) })
}

pub(super) unsafe extern "C" fn cuMemcpyPeerAsync(
    to: usize,
    _to_context: Handle,
    from: usize,
    _from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> u32 {
    let copy = CopyRequest { direction: CopyDirection::OnDevice, to, from, bytes };
    // SAFETY: CUDA requires host memory to be readable or writable for the length of the copy.
    result_code(unsafe { enqueue_copy(copy, stream, false) })
}

/// Queues a fill. The host does not wait for it.
fn enqueue_fill(to: usize, value: u32, width: usize, count: usize, stream: Handle) -> Result<(), u32> {
    let stream = stream_of(stream)?;
    let bytes = width.checked_mul(count).ok_or(codes::INVALID_VALUE)?;
    if !to.is_multiple_of(width) || !gpu().is_device_side(to, bytes) {
        return Err(codes::INVALID_VALUE);
    }
    let fill = MemoryFill { to, pattern: value.to_le_bytes(), width, count };
    gpu().enqueue(stream, StreamWork::Fill(fill));
    Ok(())
}

macro_rules! fills {
    ($($name:ident $name_async:ident $value:ty;)*) => {$(
        pub(super) extern "C" fn $name(to: usize, value: $value, count: usize) -> u32 {
            result_code(enqueue_fill(to, u32::from(value), size_of::<$value>(), count, NULL_STREAM))
        }
        pub(super) extern "C" fn $name_async(
            to: usize,
            value: $value,
            count: usize,
            stream: Handle,
        ) -> u32 {
            result_code(enqueue_fill(to, u32::from(value), size_of::<$value>(), count, stream))
        }
    )*};
}

fills! {
    cuMemsetD8_v2 cuMemsetD8Async u8;
    cuMemsetD16_v2 cuMemsetD16Async u16;
    cuMemsetD32_v2 cuMemsetD32Async u32;
}

pub(super) extern "C" fn cuMemPoolCreate(out: Out<Handle>, _properties: *const c_void) -> u32 {
    let handle = {
        let mut gpu = gpu();
        let handle = gpu.new_handle();
        gpu.pools.insert(handle, 0);
        handle
    };
    out.write(handle)
}

pub(super) extern "C" fn cuMemPoolDestroy(pool: Handle) -> u32 {
    match gpu().pools.remove(&pool) {
        Some(_) => codes::SUCCESS,
        None => codes::INVALID_VALUE,
    }
}

/// Does nothing, as pools keep no freed memory.
pub(super) extern "C" fn cuMemPoolTrimTo(_pool: Handle, _keep: usize) -> u32 {
    codes::SUCCESS
}

pub(super) extern "C" fn cuMemPoolSetAttribute(_pool: Handle, _attribute: u32, _value: *const c_void) -> u32 {
    codes::SUCCESS
}

pub(super) extern "C" fn cuMemPoolGetAttribute(_pool: Handle, _attribute: u32, out: Out<u32>) -> u32 {
    // Attributes have 4 or 8 bytes, and this writes the first 4.
    out.write(0)
}

pub(super) extern "C" fn cuMemPrefetchAsync(
    _address: usize,
    _bytes: usize,
    _device: i32,
    _stream: Handle,
) -> u32 {
    codes::SUCCESS
}

pub(super) extern "C" fn cuMemPrefetchAsync_v2(
    _address: usize,
    _bytes: usize,
    _to: u64,
    _flags: u32,
    _stream: Handle,
) -> u32 {
    codes::SUCCESS
}

pub(super) extern "C" fn cuMemAdvise(_address: usize, _bytes: usize, _advice: u32, _device: i32) -> u32 {
    codes::SUCCESS
}

pub(super) extern "C" fn cuMemAdvise_v2(_address: usize, _bytes: usize, _advice: u32, _location: u64) -> u32 {
    codes::SUCCESS
}
