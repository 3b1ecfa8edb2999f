//! Streams and events: in which order work is done, and who waits for it.
#![expect(non_snake_case, reason = "CUDA's own names")]

use std::ffi::c_void;

use crate::codes;
use crate::driver::{code, put};

use super::context::current;
use super::launch::give_out;
use super::state::{Event, Handle, Place, gpu};
use super::wait::{hangs, step, wait_for};
use super::work::Work;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const UNTIMED: u32 = 2;

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
    match current() {
        Ok(context) => {
            let handle = gpu().add_stream(context, flags & NON_BLOCKING == 0, flags, priority.clamp(-5, 0));
            // SAFETY: an answer's place is the caller's to choose, here and below.
            unsafe { put(place, handle) }
        }
        Err(code) => code,
    }
}

/// The stream that a handle means here.
pub(super) fn stream_of(handle: Handle) -> Result<Handle, u32> {
    let context = current()?;
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
        if stream.done == stream.issued {
            gpu.streams.remove(&handle);
        }
    }))
}

fn end_of(stream: Handle) -> Place {
    (stream, gpu().streams.get(&stream).map_or(0, |stream| stream.issued))
}

pub(super) unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> u32 {
    code(stream_of(stream).and_then(|stream| wait_for(&[end_of(stream)])))
}

/// Who asks gets some work done: a loop around this ends.
fn asked(place: Place) -> u32 {
    if !hangs(place)
        && let Err(code) = step(place)
    {
        return code;
    }
    if gpu().is_done(place) { codes::SUCCESS } else { codes::NOT_READY }
}

pub(super) unsafe extern "C" fn cuStreamQuery(stream: Handle) -> u32 {
    match stream_of(stream) {
        Ok(stream) => asked(end_of(stream)),
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) -> u32 {
    code(stream_of(stream).and_then(|stream| {
        let recorded = gpu().events.get(&event).ok_or(codes::INVALID_HANDLE)?.recorded;
        // An event that was never recorded is over.
        if let Some(place) = recorded {
            gpu().give_out(stream, vec![place], Work::Nothing, Vec::new());
        }
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuStreamGetCtx(stream: Handle, place: *mut Handle) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let context = gpu().streams.get(&stream).map_or(0, |stream| stream.context);
            // SAFETY: as above.
            unsafe { put(place, context) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetFlags(stream: Handle, place: *mut u32) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let flags = gpu().streams.get(&stream).map_or(0, |stream| stream.flags);
            // SAFETY: as above.
            unsafe { put(place, flags) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetPriority(stream: Handle, place: *mut i32) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let priority = gpu().streams.get(&stream).map_or(0, |stream| stream.priority);
            // SAFETY: as above.
            unsafe { put(place, priority) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamGetId(stream: Handle, place: *mut u64) -> u32 {
    match stream_of(stream) {
        // SAFETY: as above.
        Ok(stream) => unsafe { put(place, stream) },
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, place: *mut u32) -> u32 {
    match stream_of(stream) {
        // SAFETY: as above.
        Ok(_) => unsafe { put(place, 0) },
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
        gpu().give_out(stream, Vec::new(), Work::Call { function, data: data as usize }, Vec::new());
    }))
}

pub(super) unsafe extern "C" fn cuEventCreate(place: *mut Handle, flags: u32) -> u32 {
    match current() {
        Ok(context) => {
            let handle = {
                let mut gpu = gpu();
                let handle = gpu.handle();
                let event = Event { context, timed: flags & UNTIMED == 0, ..Event::default() };
                gpu.events.insert(handle, event);
                handle
            };
            // SAFETY: as above.
            unsafe { put(place, handle) }
        }
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> u32 {
    code(stream_of(stream).and_then(|stream| {
        if !gpu().events.contains_key(&event) {
            return Err(codes::INVALID_HANDLE);
        }
        let place = give_out(stream, Work::Record { event })?;
        if let Some(event) = gpu().events.get_mut(&event) {
            event.recorded = Some(place);
        }
        Ok(())
    }))
}

pub(super) unsafe extern "C" fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: u32) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuEventRecord(event, stream) }
}

fn recorded(event: Handle) -> Result<Option<Place>, u32> {
    current()?;
    gpu().events.get(&event).map(|event| event.recorded).ok_or(codes::INVALID_HANDLE)
}

pub(super) unsafe extern "C" fn cuEventQuery(event: Handle) -> u32 {
    match recorded(event) {
        Ok(Some(place)) => asked(place),
        Ok(None) => codes::SUCCESS,
        Err(code) => code,
    }
}

pub(super) unsafe extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    code(recorded(event).and_then(|place| match place {
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
        let (Some(from), Some(to)) = (start.recorded, end.recorded) else { return codes::INVALID_HANDLE };
        if !start.timed || !end.timed {
            return codes::INVALID_HANDLE;
        }
        if !gpu.is_done(from) || !gpu.is_done(to) {
            return codes::NOT_READY;
        }
        let (Some(start), Some(end)) = (start.at, end.at) else { return codes::NOT_READY };
        end.saturating_duration_since(start).as_secs_f32() * 1e3
    };
    // SAFETY: as above.
    unsafe { put(milliseconds, elapsed) }
}

pub(super) unsafe extern "C" fn cuEventElapsedTime_v2(
    milliseconds: *mut f32,
    start: Handle,
    end: Handle,
) -> u32 {
    // SAFETY: the caller's arguments go on as they are.
    unsafe { cuEventElapsedTime(milliseconds, start, end) }
}
