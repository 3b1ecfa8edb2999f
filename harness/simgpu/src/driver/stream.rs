//! Streams and events: they define the order of work, and wait for it. Must not know how work runs.
#![expect(non_snake_case, reason = "CUDA's own names")]

use crate::codes;
use crate::faults::fault_state;

use super::context::{current_context, stream_of};
use super::operations::{Handle, StreamPosition, StreamWork};
use super::state::{
    GREATEST_PRIORITY, LAST_RESERVED_STREAM, LEAST_PRIORITY, SimEvent, StreamProperties, gpu,
};
use super::sys::{Out, result_code};
use super::wait::{is_hung, step, wait_for};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

pub(super) extern "C" fn cuStreamCreate(out: Out<Handle>, flags: u32) -> u32 {
    cuStreamCreateWithPriority(out, flags, 0)
}

pub(super) extern "C" fn cuStreamCreateWithPriority(out: Out<Handle>, flags: u32, priority: i32) -> u32 {
    if flags > NON_BLOCKING {
        return codes::INVALID_VALUE;
    }
    match current_context() {
        Ok(context) => {
            let (blocking, priority) =
                (flags & NON_BLOCKING == 0, priority.clamp(GREATEST_PRIORITY, LEAST_PRIORITY));
            let handle = gpu().add_stream(context, StreamProperties { blocking, flags, priority });
            out.write(handle)
        }
        Err(code) => code,
    }
}

/// Queued work of the stream still runs when a caller waits for its context.
pub(super) extern "C" fn cuStreamDestroy_v2(stream: Handle) -> u32 {
    if stream <= LAST_RESERVED_STREAM {
        return codes::INVALID_HANDLE;
    }
    result_code(stream_of(stream).map(|handle| gpu().destroy_stream(handle)))
}

/// Returns the position after all operations that are queued now. Does not keep the state locked.
fn last_position(stream: Handle) -> StreamPosition {
    gpu().last_position(stream)
}

pub(super) extern "C" fn cuStreamSynchronize(stream: Handle) -> u32 {
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

pub(super) extern "C" fn cuStreamQuery(stream: Handle) -> u32 {
    match stream_of(stream) {
        Ok(stream) => query(last_position(stream)),
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) -> u32 {
    result_code(stream_of(stream).and_then(|stream| {
        let recorded = gpu().events.get(&event).ok_or(codes::INVALID_HANDLE)?.position;
        // CUDA treats an event that was never recorded as completed.
        if let Some(position) = recorded {
            gpu().enqueue_dependency(stream, position);
        }
        Ok(())
    }))
}

pub(super) extern "C" fn cuStreamGetCtx(stream: Handle, out: Out<Handle>) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let context = gpu().streams.get(&stream).map_or(0, |stream| stream.context);
            out.write(context)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuStreamGetFlags(stream: Handle, out: Out<u32>) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let flags = gpu().streams.get(&stream).map_or(0, |stream| stream.flags);
            out.write(flags)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuStreamGetPriority(stream: Handle, out: Out<i32>) -> u32 {
    match stream_of(stream) {
        Ok(stream) => {
            let priority = gpu().streams.get(&stream).map_or(0, |stream| stream.priority);
            out.write(priority)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuStreamGetId(stream: Handle, out: Out<u64>) -> u32 {
    out.write_result(stream_of(stream))
}

pub(super) extern "C" fn cuStreamIsCapturing(stream: Handle, out: Out<u32>) -> u32 {
    out.write_result(stream_of(stream).map(|_| 0))
}

pub(super) extern "C" fn cuEventCreate(out: Out<Handle>, flags: u32) -> u32 {
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
            out.write(handle)
        }
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> u32 {
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

pub(super) extern "C" fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: u32) -> u32 {
    cuEventRecord(event, stream)
}

fn recorded_position(event: Handle) -> Result<Option<StreamPosition>, u32> {
    current_context()?;
    gpu().events.get(&event).map(|event| event.position).ok_or(codes::INVALID_HANDLE)
}

pub(super) extern "C" fn cuEventQuery(event: Handle) -> u32 {
    match recorded_position(event) {
        Ok(Some(position)) => query(position),
        Ok(None) => codes::SUCCESS,
        Err(code) => code,
    }
}

pub(super) extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    result_code(recorded_position(event).and_then(|position| match position {
        Some(position) => wait_for(fault_state(), &[position]),
        None => Ok(()),
    }))
}

pub(super) extern "C" fn cuEventDestroy_v2(event: Handle) -> u32 {
    match gpu().events.remove(&event) {
        Some(_) => codes::SUCCESS,
        None => codes::INVALID_HANDLE,
    }
}

pub(super) extern "C" fn cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) -> u32 {
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
    milliseconds.write(elapsed)
}

pub(super) extern "C" fn cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) -> u32 {
    cuEventElapsedTime(milliseconds, start, end)
}
