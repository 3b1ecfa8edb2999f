//! Contexts: the primary context of each device, others, and the current context of a thread, in which handles
//! of streams have their meaning. Must not know how work runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::cell::RefCell;
use std::ffi::c_void;
use std::mem::ManuallyDrop;

use crate::codes;
use crate::faults::fault_state;

use super::operations::Handle;
use super::state::{GREATEST_PRIORITY, LEAST_PRIORITY, gpu};
use super::sys::{Out, result_code};
use super::wait::wait_for;

/// The version of the driver's interface that contexts report.
const API_VERSION: u32 = 3020;

thread_local! {
    /// The last one is current. Never dropped, because programs call the driver from destructors of their
    /// thread-locals.
    static CONTEXT_STACK: ManuallyDrop<RefCell<Vec<Handle>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

fn with_stack<T>(action: impl FnOnce(&mut Vec<Handle>) -> T) -> T {
    CONTEXT_STACK.with(|stack| action(&mut stack.borrow_mut()))
}

/// Returns the current context of the thread.
pub(super) fn current_context() -> Result<Handle, u32> {
    let gpu = gpu();
    if !gpu.initialised {
        return Err(codes::NOT_INITIALIZED);
    }
    let handle = with_stack(|stack| stack.last().copied()).filter(|handle| *handle != 0);
    handle.filter(|handle| gpu.contexts.contains_key(handle)).ok_or(codes::INVALID_CONTEXT)
}

/// Returns the stream that a handle denotes in the current context.
pub(super) fn stream_of(handle: Handle) -> Result<Handle, u32> {
    let context = current_context()?;
    gpu().stream_of(context, handle).ok_or(codes::INVALID_HANDLE)
}

/// Returns whether the process has a context on any device.
pub(crate) fn has_context() -> bool {
    !gpu().contexts.is_empty()
}

fn device_index(device: i32) -> Result<usize, u32> {
    let gpu = gpu();
    match usize::try_from(device) {
        _ if !gpu.initialised => Err(codes::NOT_INITIALIZED),
        Ok(device) if device < gpu.primary_contexts.len() => Ok(device),
        _ => Err(codes::INVALID_DEVICE),
    }
}

pub(super) extern "C" fn cuDevicePrimaryCtxRetain(out: Out<Handle>, ordinal: i32) -> u32 {
    let device = match device_index(ordinal) {
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
    out.write(handle)
}

pub(super) extern "C" fn cuDevicePrimaryCtxRelease_v2(ordinal: i32) -> u32 {
    result_code(device_index(ordinal).and_then(|device| {
        let mut gpu = gpu();
        let handle = gpu.primary_contexts[device].ok_or(codes::INVALID_CONTEXT)?;
        let remaining = gpu.contexts.get_mut(&handle).map_or(0, |context| {
            context.retain_count = context.retain_count.saturating_sub(1);
            context.retain_count
        });
        if remaining == 0 {
            gpu.remove_context(handle);
            gpu.primary_contexts[device] = None;
        }
        Ok(())
    }))
}

pub(super) extern "C" fn cuDevicePrimaryCtxReset_v2(ordinal: i32) -> u32 {
    result_code(device_index(ordinal).map(|device| {
        let mut gpu = gpu();
        if let Some(handle) = gpu.primary_contexts[device].take() {
            gpu.remove_context(handle);
        }
    }))
}

pub(super) extern "C" fn cuDevicePrimaryCtxSetFlags_v2(ordinal: i32, _flags: u32) -> u32 {
    result_code(device_index(ordinal).map(|_| ()))
}

pub(super) extern "C" fn cuDevicePrimaryCtxGetState(ordinal: i32, flags: Out<u32>, active: Out<i32>) -> u32 {
    match device_index(ordinal) {
        Ok(device) => {
            let is_active = i32::from(gpu().primary_contexts[device].is_some());
            flags.write(0) | active.write(is_active)
        }
        Err(code) => code,
    }
}

fn create_context(out: Out<Handle>, flags: u32, ordinal: i32) -> u32 {
    match device_index(ordinal) {
        Ok(device) => {
            let handle = gpu().add_context(device, flags);
            with_stack(|stack| stack.push(handle));
            out.write(handle)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuCtxCreate_v2(out: Out<Handle>, flags: u32, ordinal: i32) -> u32 {
    create_context(out, flags, ordinal)
}

pub(super) extern "C" fn cuCtxCreate_v3(
    out: Out<Handle>,
    _affinity: *mut c_void,
    _count: i32,
    flags: u32,
    ordinal: i32,
) -> u32 {
    create_context(out, flags, ordinal)
}

pub(super) extern "C" fn cuCtxCreate_v4(
    out: Out<Handle>,
    _parameters: *mut c_void,
    flags: u32,
    ordinal: i32,
) -> u32 {
    create_context(out, flags, ordinal)
}

pub(super) extern "C" fn cuCtxDestroy_v2(context: Handle) -> u32 {
    let mut gpu = gpu();
    if !gpu.contexts.contains_key(&context) {
        return codes::INVALID_CONTEXT;
    }
    gpu.remove_context(context);
    with_stack(|stack| stack.retain(|handle| *handle != context));
    codes::SUCCESS
}

pub(super) extern "C" fn cuCtxSetCurrent(context: Handle) -> u32 {
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

pub(super) extern "C" fn cuCtxGetCurrent(out: Out<Handle>) -> u32 {
    match current_context() {
        Ok(handle) => out.write(handle),
        Err(codes::NOT_INITIALIZED) => codes::NOT_INITIALIZED,
        Err(_) => out.write(0),
    }
}

pub(super) extern "C" fn cuCtxPushCurrent_v2(context: Handle) -> u32 {
    if !gpu().contexts.contains_key(&context) {
        return codes::INVALID_CONTEXT;
    }
    with_stack(|stack| stack.push(context));
    codes::SUCCESS
}

pub(super) extern "C" fn cuCtxPopCurrent_v2(out: Out<Handle>) -> u32 {
    match with_stack(Vec::pop) {
        Some(_) if out.is_null() => codes::SUCCESS,
        Some(handle) => out.write(handle),
        None => codes::INVALID_CONTEXT,
    }
}

pub(super) extern "C" fn cuCtxGetDevice(out: Out<i32>) -> u32 {
    match current_context() {
        Ok(handle) => {
            let device = gpu().contexts.get(&handle).map_or(0, |context| context.device);
            out.write(device as i32)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuCtxSynchronize() -> u32 {
    result_code(current_context().and_then(|context| {
        let positions = gpu().pending_in(Some(context));
        wait_for(fault_state(), &positions)
    }))
}

pub(super) extern "C" fn cuCtxGetApiVersion(_context: Handle, version: Out<u32>) -> u32 {
    version.write(API_VERSION)
}

pub(super) extern "C" fn cuCtxGetId(context: Handle, id: Out<u64>) -> u32 {
    id.write(context)
}

pub(super) extern "C" fn cuCtxGetFlags(out: Out<u32>) -> u32 {
    match current_context() {
        Ok(handle) => {
            let flags = gpu().contexts.get(&handle).map_or(0, |context| context.flags);
            out.write(flags)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuCtxSetFlags(flags: u32) -> u32 {
    result_code(current_context().map(|handle| {
        if let Some(context) = gpu().contexts.get_mut(&handle) {
            context.flags = flags;
        }
    }))
}

pub(super) extern "C" fn cuCtxGetLimit(out: Out<usize>, limit: u32) -> u32 {
    match current_context() {
        Ok(handle) => {
            let value = gpu().contexts.get(&handle).and_then(|context| context.limits.get(&limit).copied());
            value.map_or(codes::NOT_SUPPORTED, |value| out.write(value))
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuCtxSetLimit(limit: u32, value: usize) -> u32 {
    result_code(current_context().map(|handle| {
        if let Some(context) = gpu().contexts.get_mut(&handle) {
            context.limits.insert(limit, value);
        }
    }))
}

pub(super) extern "C" fn cuCtxGetCacheConfig(out: Out<u32>) -> u32 {
    out.write(0)
}

pub(super) extern "C" fn cuCtxSetCacheConfig(_config: u32) -> u32 {
    result_code(current_context().map(|_| ()))
}

pub(super) extern "C" fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) -> u32 {
    if let Err(code) = current_context() {
        return code;
    }
    // The caller may want only one of them.
    least.try_write(LEAST_PRIORITY);
    greatest.try_write(GREATEST_PRIORITY);
    codes::SUCCESS
}
