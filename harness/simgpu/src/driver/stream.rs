//! Streams and events: they define the order of work, and wait for it. Must not know how work runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::c_void;

use crate::codes;
use crate::faults::fault_state;

use super::context::{current_context, stream_of};
use super::operations::{Handle, StreamPosition, StreamWork};
use super::state::{SimEvent, StreamProperties, gpu};
use super::sys::{result_code, write_out};
use super::wait::{is_hung, step, wait_for};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

pub(super) unsafe extern "C" fn cuStreamCreate(out: *mut Handle, flags: u32) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuStreamCreateWithPriority`.
    unsafe { cuStreamCreateWithPriority(out, flags, 0) }
}

pub(super) unsafe extern "C" fn cuStreamCreateWithPriority(
    out: *mut Handle,
    flags: u32,
    priority: i32,
) -> u32 {
    if flags > NON_BLOCKING {
        return codes::INVALID_VALUE;
    }
    match current_context() {
        Ok(context) => {
            let (blocking, priority) = (flags & NON_BLOCKING == 0, priority.clamp(-5, 0));
            let handle = gpu().add_stream(context, StreamProperties { blocking, flags, priority });
            // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(out, handle) }
        }
        Err(code) => code,
    }
}

/// Queued work of the stream still runs when a caller waits for its context.
pub(super) unsafe extern "C" fn cuStreamDestroy_v2(stream: Handle) -> u32 {
    if stream <= 2 {
        return codes::INVALID_HANDLE;
    }
    result_code(stream_of(stream).map(|handle| gpu().destroy_stream(handle)))
}

/// Returns the position after all operations that are queued now. Does not keep the state locked.
fn last_position(stream: Handle) -> StreamPosition {
    gpu().last_position(stream)
}

pub(super) unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> u32 {
    result_code(stream_of(stream).and_then(|stream| wait_for(fault_state(), &[last_position(stream)])))
}

/// Runs one operation, so that a loop of queries ends.
fn query(position: StreamPosition) -> u32 {
    if !is_hung(position)
        && let Err(code) = step(fault_state(), position)
    {
        return code;
    }
    if gpu().is_done(position) { codes::SUCCESS } else { codes::NOT_READY }
}

pub(super) unsafe extern "C" fn cuStreamQuery(stream: Handle) -> u32 {
    match stream_of(stream) {
        Ok(stream) => query(last_position(stream)),
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) -> u32 {
    result_code(stream_of(stream).and_then(|stream| {
        let recorded = gpu().events.get(&event).ok_or(codes::INVALID_HANDLE)?.position;
        // CUDA treats an event that was never recorded as completed.
        if let Some(position) = recorded {
            gpu().enqueue_dependency(stream, position);
        }
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuStreamGetCtx(stream: Handle, out: *mut Handle) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let context = gpu().streams.get(&stream).map_or(0, |stream| stream.context);
            // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(out, context) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetFlags(stream: Handle, out: *mut u32) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let flags = gpu().streams.get(&stream).map_or(0, |stream| stream.flags);
            // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(out, flags) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetPriority(stream: Handle, out: *mut i32) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let priority = gpu().streams.get(&stream).map_or(0, |stream| stream.priority);
            // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(out, priority) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetId(stream: Handle, out: *mut u64) -> u32 {
    match stream_of(stream) {
        // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
        Ok(stream) => unsafe { write_out(out, stream) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, out: *mut u32) -> u32 {
    match stream_of(stream) {
        // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
        Ok(_) => unsafe { write_out(out, 0) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> u32 {
    let Some(function) = function else { return codes::INVALID_VALUE };
    result_code(stream_of(stream).map(|stream| {
        gpu().enqueue(stream, StreamWork::HostCall { function, data: data as usize });
    }))
}

pub(super) unsafe extern "C" fn cuEventCreate(out: *mut Handle, flags: u32) -> u32 {
    match current_context() {
        Ok(context) => {
            let handle = {
                let mut gpu = gpu();
                let handle = gpu.new_handle();
                let event =
                    SimEvent { context, has_timing: flags & DISABLE_TIMING == 0, ..SimEvent::default() };
                gpu.events.insert(handle, event);
                handle
            };
            // SAFETY: CUDA requires `out` to be valid for a write; `write_out` checks for null.
            unsafe { write_out(out, handle) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> u32 {
    result_code(stream_of(stream).and_then(|stream| {
        if !gpu().events.contains_key(&event) {
            return Err(codes::INVALID_HANDLE);
        }
        let position = gpu().enqueue(stream, StreamWork::RecordEvent { event });
        if let Some(event) = gpu().events.get_mut(&event) {
            event.position = Some(position);
        }
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: u32) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuEventRecord`.
    unsafe { cuEventRecord(event, stream) }
}

fn recorded_position(event: Handle) -> Result<Option<StreamPosition>, u32> {
    current_context()?;
    gpu().events.get(&event).map(|event| event.position).ok_or(codes::INVALID_HANDLE)
}

pub(super) unsafe extern "C" fn cuEventQuery(event: Handle) -> u32 {
    match recorded_position(event) {
        Ok(Some(position)) => query(position),
        Ok(None) => codes::SUCCESS,
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    result_code(recorded_position(event).and_then(|position| match position {
        Some(position) => wait_for(fault_state(), &[position]),
        None => Ok(()),
    }))
}

pub(super) unsafe extern "C" fn cuEventDestroy_v2(event: Handle) -> u32 {
    match gpu().events.remove(&event) {
        Some(_) => codes::SUCCESS,
        None => codes::INVALID_HANDLE,
    }
}

pub(super) unsafe extern "C" fn cuEventElapsedTime(
    milliseconds: *mut f32,
    start: Handle,
    end: Handle,
) -> u32 {
    let elapsed = {
        let gpu = gpu();
        let (Some(start), Some(end)) = (gpu.events.get(&start), gpu.events.get(&end)) else {
            return codes::INVALID_HANDLE;
        };
        let (Some(from), Some(to)) = (start.position, end.position) else { return codes::INVALID_HANDLE };
        if !start.has_timing || !end.has_timing {
            return codes::INVALID_HANDLE;
        }
        if !gpu.is_done(from) || !gpu.is_done(to) {
            return codes::NOT_READY;
        }
        let (Some(start), Some(end)) = (start.recorded_at, end.recorded_at) else { return codes::NOT_READY };
        end.saturating_duration_since(start).as_secs_f32() * 1e3
    };
    // SAFETY: CUDA requires `milliseconds` to be valid for a write; `write_out` checks for null.
    unsafe { write_out(milliseconds, elapsed) }
}

pub(super) unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: *mut f32,
    start: Handle,
    end: Handle,
) -> u32 {
    // SAFETY: CUDA requires the same of the caller as for `cuEventElapsedTime`.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}
