//! Contexts: a device's primary one, others, and which one a thread works in.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::ManuallyDrop;

use crate::driver::{code, write_out};
use crate::{codes, forward};

use super::state::{Handle, gpu};
use super::wait::wait_for;

thread_local! {
    /// Never dropped: programs call the driver from destructors of their own thread-locals.
    static CURRENT: ManuallyDrop<RefCell<Vec<Handle>>> = const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

fn with_stack<T>(act: impl FnOnce(&mut Vec<Handle>) -> T) -> T {
    CURRENT.with(|stack| act(&mut stack.borrow_mut()))
}

/// The context that the thread works in.
pub(super) fn current_context() -> Result<Handle, u32> {
    let gpu = gpu();
    if !gpu.initialised {
        return Err(codes::NOT_INITIALIZED);
    }
    let handle = with_stack(|stack| stack.last().copied()).filter(|handle| *handle != 0);
    handle.filter(|handle| gpu.contexts.contains_key(handle)).ok_or(codes::INVALID_CONTEXT)
}

/// Whether the process has a context on any device.
pub(crate) fn has_context() -> bool {
    match forward::is_active() {
        true => forward::has_context(),
        false => !gpu().contexts.is_empty(),
    }
}

fn device_index(device: i32) -> Result<usize, u32> {
    let gpu = gpu();
    match usize::try_from(device) {
        _ if !gpu.initialised => Err(codes::NOT_INITIALIZED),
        Ok(device) if device < gpu.primary_contexts.len() => Ok(device),
        _ => Err(codes::INVALID_DEVICE),
    }
}

pub(super) unsafe extern "C" fn cuDevicePrimaryCtxRetain(place: *mut Handle, of: i32) -> u32 {
    let device = match device_index(of) {
        Ok(device) => device,
        Err(code) => return code,
    };
    let handle = {
        let mut gpu = gpu();
        let handle = match gpu.primary_contexts[device] {
            Some(handle) => handle,
            None => gpu.add_context(device, 0),
        };
        gpu.primary_contexts[device] = Some(handle);
        if let Some(context) = gpu.contexts.get_mut(&handle) {
            context.retain_count += 1;
        }
        handle
    };
    // SAFETY: an answer's place is the caller's to choose, here and below.
    unsafe { write_out(place, handle) }
}

pub(super) unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(of: i32) -> u32 {
    code(device_index(of).and_then(|device| {
        let mut gpu = gpu();
        let handle = gpu.primary_contexts[device].ok_or(codes::INVALID_CONTEXT)?;
        let left = gpu.contexts.get_mut(&handle).map_or(0, |context| {
            context.retain_count = context.retain_count.saturating_sub(1);
            context.retain_count
        });
        if left == 0 {
            gpu.remove_context(handle);
            gpu.primary_contexts[device] = None;
        }
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(of: i32) -> u32 {
    code(device_index(of).map(|device| {
        let mut gpu = gpu();
        if let Some(handle) = gpu.primary_contexts[device].take() {
            gpu.remove_context(handle);
        }
    }))
}

pub(super) unsafe extern "C" fn cuDevicePrimaryCtxSetFlags_v2(of: i32, _flags: u32) -> u32 {
    code(device_index(of).map(|_| ()))
}

pub(super) unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    of: i32,
    flags: *mut u32,
    active: *mut i32,
) -> u32 {
    match device_index(of) {
        Ok(device) => {
            let is_active = i32::from(gpu().primary_contexts[device].is_some());
            // SAFETY: as above.
            unsafe { write_out(flags, 0) | write_out(active, is_active) }
        }
        Err(code) => code,
    }
}

fn create_context(place: *mut Handle, flags: u32, of: i32) -> u32 {
    match device_index(of) {
        Ok(device) => {
            let handle = gpu().add_context(device, flags);
            with_stack(|stack| stack.push(handle));
            // SAFETY: as above.
            unsafe { write_out(place, handle) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuCtxCreate_v2(place: *mut Handle, flags: u32, of: i32) -> u32 {
    create_context(place, flags, of)
}

pub(super) unsafe extern "C" fn cuCtxCreate_v3(
    place: *mut Handle,
    _affinity: *mut c_void,
    _count: i32,
    flags: u32,
    of: i32,
) -> u32 {
    create_context(place, flags, of)
}

pub(super) unsafe extern "C" fn cuCtxCreate_v4(
    place: *mut Handle,
    _parameters: *mut c_void,
    flags: u32,
    of: i32,
) -> u32 {
    create_context(place, flags, of)
}

pub(super) unsafe extern "C" fn cuCtxDestroy_v2(context: Handle) -> u32 {
    let mut gpu = gpu();
    if !gpu.contexts.contains_key(&context) {
        return codes::INVALID_CONTEXT;
    }
    gpu.remove_context(context);
    with_stack(|stack| stack.retain(|handle| *handle != context));
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuCtxSetCurrent(context: Handle) -> u32 {
    let known = {
        let gpu = gpu();
        match (gpu.initialised, context) {
            (false, _) => return codes::NOT_INITIALIZED,
            (true, 0) => true,
            (true, handle) => gpu.contexts.contains_key(&handle),
        }
    };
    if !known {
        return codes::INVALID_CONTEXT;
    }
    with_stack(|stack| {
        stack.pop();
        stack.push(context);
    });
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuCtxGetCurrent(place: *mut Handle) -> u32 {
    match current_context() {
        // SAFETY: as above.
        Ok(handle) => unsafe { write_out(place, handle) },
        Err(codes::NOT_INITIALIZED) => codes::NOT_INITIALIZED,
        // SAFETY: as above.
        Err(_) => unsafe { write_out(place, 0) },
    }
}

pub(super) unsafe extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> u32 {
    if !gpu().contexts.contains_key(&context) {
        return codes::INVALID_CONTEXT;
    }
    with_stack(|stack| stack.push(context));
    codes::SUCCESS
}

pub(super) unsafe extern "C" fn cuCtxPopCurrent_v2(place: *mut Handle) -> u32 {
    match with_stack(Vec::pop) {
        Some(_) if place.is_null() => codes::SUCCESS,
        // SAFETY: as above.
        Some(handle) => unsafe { write_out(place, handle) },
        None => codes::INVALID_CONTEXT,
    }
}

pub(super) unsafe extern "C" fn cuCtxGetDevice(place: *mut i32) -> u32 {
    match current_context() {
        Ok(handle) => {
            let device = gpu().contexts.get(&handle).map_or(0, |context| context.device);
            // SAFETY: as above.
            unsafe { write_out(place, device as i32) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuCtxSynchronize() -> u32 {
    code(current_context().and_then(|context| {
        let places = gpu().pending_in(Some(context));
        wait_for(&places)
    }))
}

pub(super) unsafe extern "C" fn cuCtxGetApiVersion(_context: Handle, version: *mut u32) -> u32 {
    // SAFETY: as above.
    unsafe { write_out(version, 3020) }
}

pub(super) unsafe extern "C" fn cuCtxGetId(context: Handle, id: *mut u64) -> u32 {
    // SAFETY: as above.
    unsafe { write_out(id, context) }
}

pub(super) unsafe extern "C" fn cuCtxGetFlags(place: *mut u32) -> u32 {
    match current_context() {
        Ok(handle) => {
            let flags = gpu().contexts.get(&handle).map_or(0, |context| context.flags);
            // SAFETY: as above.
            unsafe { write_out(place, flags) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuCtxSetFlags(flags: u32) -> u32 {
    code(current_context().map(|handle| {
        if let Some(context) = gpu().contexts.get_mut(&handle) {
            context.flags = flags;
        }
    }))
}

pub(super) unsafe extern "C" fn cuCtxGetLimit(place: *mut usize, limit: u32) -> u32 {
    match current_context() {
        Ok(handle) => {
            let value = gpu().contexts.get(&handle).and_then(|context| context.limits.get(&limit).copied());
            // SAFETY: as above.
            value.map_or(codes::NOT_SUPPORTED, |value| unsafe { write_out(place, value) })
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuCtxSetLimit(limit: u32, value: usize) -> u32 {
    code(current_context().map(|handle| {
        if let Some(context) = gpu().contexts.get_mut(&handle) {
            context.limits.insert(limit, value);
        }
    }))
}

pub(super) unsafe extern "C" fn cuCtxGetCacheConfig(place: *mut u32) -> u32 {
    // SAFETY: as above.
    unsafe { write_out(place, 0) }
}

pub(super) unsafe extern "C" fn cuCtxSetCacheConfig(_config: u32) -> u32 {
    code(current_context().map(|_| ()))
}

pub(super) unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) -> u32 {
    if let Err(code) = current_context() {
        return code;
    }
    for (place, value) in [(least, 0), (greatest, -5)] {
        if !place.is_null() {
            // SAFETY: as above.
            unsafe { write_out(place, value) };
        }
    }
    codes::SUCCESS
}
