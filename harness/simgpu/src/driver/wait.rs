//! A caller that waits runs the queued work, but only as much as the wait requires, so that a missing wait
//! shows. No unsafe. Must not know what an operation does.

use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::codes;
use crate::fibers::FiberPool;
use crate::hooks::hang;
use crate::rules::{Corruption, fault_state};

use super::state::{Handle, QueuedOperation, SimGpu, StreamPosition, gpu};
use super::work::{check_redzones, execute};

/// Locks the execution of work. While work runs, the lock of the driver's state is not held.
fn work_lock() -> MutexGuard<'static, Option<FiberPool>> {
    static WORK_LOCK: OnceLock<Mutex<Option<FiberPool>>> = OnceLock::new();
    WORK_LOCK.get_or_init(|| Mutex::new(FiberPool::new())).lock().unwrap_or_else(|poison| poison.into_inner())
}

/// The next step towards a position.
enum NextStep {
    /// The position is reached.
    Reached,
    /// The next operation never ends.
    Hang,
    /// The next operation, and its stream.
    Run(Handle, Box<QueuedOperation>),
}

/// Runs work until all positions are reached. Returns the first error of that work, or an error that a rule
/// deferred.
pub(crate) fn wait_for(positions: &[StreamPosition]) -> Result<(), u32> {
    let mut has_worked = false;
    for position in positions {
        while step(*position)? {
            has_worked = true;
        }
    }
    if has_worked {
        let _fibers = work_lock();
        check_redzones()?;
    }
    match (fault_state().sticky(), fault_state().take_deferred_error()) {
        (0, None) => Ok(()),
        (0, Some(code)) | (code, _) => Err(code),
    }
}

/// Runs the next operation towards a position. Returns false if the position was already reached.
pub(crate) fn step(position: StreamPosition) -> Result<bool, u32> {
    let mut fibers = work_lock();
    let next = next_step(&mut gpu(), position);
    match next {
        NextStep::Reached => Ok(false),
        NextStep::Hang => {
            drop(fibers);
            hang()
        }
        NextStep::Run(stream, operation) => {
            let fibers = fibers.as_mut().ok_or(codes::OUT_OF_MEMORY)?;
            let result = execute(operation.work, &operation.corruptions, fibers);
            gpu().finish((stream, operation.number));
            if let Err(code) = result {
                fault_state().set_sticky(code);
            }
            result.map(|()| true)
        }
    }
}

/// Returns whether the next operation towards a position never ends.
pub(crate) fn is_hung(position: StreamPosition) -> bool {
    let _fibers = work_lock();
    let mut gpu = gpu();
    let (stream, _) = blocking_stream(&gpu, position);
    let first = gpu.streams.get_mut(&stream).and_then(|stream| stream.queue.front());
    first.is_some_and(|operation| operation.corruptions.contains(&Corruption::Hang))
}

/// Returns the stream whose first operation must run next: the position's own, or one that it depends on. The
/// flag is false if that stream has no queued operation.
fn blocking_stream(gpu: &SimGpu, mut position: StreamPosition) -> (Handle, bool) {
    loop {
        let front = gpu.streams.get(&position.0).and_then(|stream| stream.queue.front());
        let Some(front) = front else { return (position.0, false) };
        match front.dependencies.iter().find(|dependency| !gpu.is_done(**dependency)) {
            // An operation depends only on operations that were queued before it, so this ends.
            Some(dependency) => position = *dependency,
            None => return (position.0, true),
        }
    }
}

fn next_step(gpu: &mut SimGpu, position: StreamPosition) -> NextStep {
    if gpu.is_done(position) {
        return NextStep::Reached;
    }
    let (stream, has_operation) = blocking_stream(gpu, position);
    let state = gpu.streams.get_mut(&stream).filter(|_| has_operation);
    let Some(state) = state else { return NextStep::Reached };
    match state.queue.front() {
        Some(front) if front.corruptions.contains(&Corruption::Hang) => NextStep::Hang,
        _ => match state.queue.pop_front() {
            Some(operation) => NextStep::Run(stream, Box::new(operation)),
            None => NextStep::Reached,
        },
    }
}
