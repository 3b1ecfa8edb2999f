//! Streams and events: in which order work is done, and who waits for it.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::c_void;

use crate::codes;
use crate::driver::{code, write_out};

use super::context::current_context;
use super::launch::enqueue;
use super::state::{Handle, SimEvent, StreamPosition, gpu};
use super::wait::{is_hung, step, wait_for};
use super::work::StreamWork;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

pub(super) unsafe extern "C" fn cuStreamCreate(place: *mut Handle, flags: u32) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuStreamCreateWithPriority(place, flags, 0) }
}

pub(super) unsafe extern "C" fn cuStreamCreateWithPriority(
    place: *mut Handle,
    flags: u32,
    priority: i32,
) -> u32 {
    if flags > NON_BLOCKING {
        return codes::INVALID_VALUE;
    }
    match current_context() {
        Ok(context) => {
            let handle = gpu().add_stream(context, flags & NON_BLOCKING == 0, flags, priority.clamp(-5, 0));
            // SAFETY: an answer's place is the caller's to choose, here and below.
            unsafe { write_out(place, handle) }
        }
        Err(code) => code,
    }
}

/// The stream that a handle means here.
pub(super) fn stream_of(handle: Handle) -> Result<Handle, u32> {
    let context = current_context()?;
    gpu().stream_of(context, handle).ok_or(codes::INVALID_HANDLE)
}

/// Work that was given out before is still done, by whoever waits for its context.
pub(super) unsafe extern "C" fn cuStreamDestroy_v2(stream: Handle) -> u32 {
    if stream <= 2 {
        return codes::INVALID_HANDLE;
    }
    code(stream_of(stream).map(|handle| {
        let mut gpu = gpu();
        let Some(stream) = gpu.streams.get_mut(&handle) else { return };
        stream.destroyed = true;
        if stream.last_done == stream.last_enqueued {
            gpu.streams.remove(&handle);
        }
    }))
}

fn last_position(stream: Handle) -> StreamPosition {
    (stream, gpu().streams.get(&stream).map_or(0, |stream| stream.last_enqueued))
}

pub(super) unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> u32 {
    code(stream_of(stream).and_then(|stream| wait_for(&[last_position(stream)])))
}

/// Who asks gets some work done: a loop around this ends.
fn query(place: StreamPosition) -> u32 {
    if !is_hung(place)
        && let Err(code) = step(place)
    {
        return code;
    }
    if gpu().is_done(place) { codes::SUCCESS } else { codes::NOT_READY }
}

pub(super) unsafe extern "C" fn cuStreamQuery(stream: Handle) -> u32 {
    match stream_of(stream) {
        Ok(stream) => query(last_position(stream)),
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) -> u32 {
    code(stream_of(stream).and_then(|stream| {
        let recorded = gpu().events.get(&event).ok_or(codes::INVALID_HANDLE)?.position;
        // An event that was never recorded is over.
        if let Some(place) = recorded {
            gpu().enqueue(stream, vec![place], StreamWork::Nothing, Vec::new());
        }
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuStreamGetCtx(stream: Handle, place: *mut Handle) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let context = gpu().streams.get(&stream).map_or(0, |stream| stream.context);
            // SAFETY: as above.
            unsafe { write_out(place, context) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetFlags(stream: Handle, place: *mut u32) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let flags = gpu().streams.get(&stream).map_or(0, |stream| stream.flags);
            // SAFETY: as above.
            unsafe { write_out(place, flags) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetPriority(stream: Handle, place: *mut i32) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let priority = gpu().streams.get(&stream).map_or(0, |stream| stream.priority);
            // SAFETY: as above.
            unsafe { write_out(place, priority) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetId(stream: Handle, place: *mut u64) -> u32 {
    match stream_of(stream) {
        // SAFETY: as above.
        Ok(stream) => unsafe { write_out(place, stream) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, place: *mut u32) -> u32 {
    match stream_of(stream) {
        // SAFETY: as above.
        Ok(_) => unsafe { write_out(place, 0) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> u32 {
    let Some(function) = function else { return codes::INVALID_VALUE };
    code(stream_of(stream).map(|stream| {
        gpu().enqueue(stream, Vec::new(), StreamWork::HostCall { function, data: data as usize }, Vec::new());
    }))
}

pub(super) unsafe extern "C" fn cuEventCreate(place: *mut Handle, flags: u32) -> u32 {
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
            // SAFETY: as above.
            unsafe { write_out(place, handle) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> u32 {
    code(stream_of(stream).and_then(|stream| {
        if !gpu().events.contains_key(&event) {
            return Err(codes::INVALID_HANDLE);
        }
        let place = enqueue(stream, StreamWork::RecordEvent { event })?;
        if let Some(event) = gpu().events.get_mut(&event) {
            event.position = Some(place);
        }
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: u32) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuEventRecord(event, stream) }
}

fn recorded_position(event: Handle) -> Result<Option<StreamPosition>, u32> {
    current_context()?;
    gpu().events.get(&event).map(|event| event.position).ok_or(codes::INVALID_HANDLE)
}

pub(super) unsafe extern "C" fn cuEventQuery(event: Handle) -> u32 {
    match recorded_position(event) {
        Ok(Some(place)) => query(place),
        Ok(None) => codes::SUCCESS,
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    code(recorded_position(event).and_then(|place| match place {
        Some(place) => wait_for(&[place]),
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
    // SAFETY: as above.
    unsafe { write_out(milliseconds, elapsed) }
}

pub(super) unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: *mut f32,
    start: Handle,
    end: Handle,
) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}
