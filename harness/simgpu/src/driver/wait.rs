//! A caller that waits runs the queued work, but only as much as the wait requires, so that a missing wait
//! shows. Must not know what an operation does.

use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::codes;
use crate::faults::{FaultState, hang};
use crate::fibers::FiberPool;
use crate::locks::MutexExt;

use super::operations::{Handle, QueuedOperation, StreamPosition};
use super::state::{SimGpu, gpu};
use super::work::{check_redzones, execute};

/// Locks the execution of work. While work runs, the lock of the driver's state is not held.
fn work_lock() -> MutexGuard<'static, Option<FiberPool>> {
    static WORK_LOCK: OnceLock<Mutex<Option<FiberPool>>> = OnceLock::new();
    WORK_LOCK.get_or_init(|| Mutex::new(FiberPool::new())).locked()
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

/// Runs work until all positions are reached.
///
/// # Errors
/// The code of the first error of that work, or of an error that a rule deferred.
pub(crate) fn wait_for(faults: &FaultState, positions: &[StreamPosition]) -> Result<(), u32> {
    let mut has_worked = false;
    for position in positions {
        while step(faults, *position)? {
            has_worked = true;
        }
    }
    if has_worked {
        let _fibers = work_lock();
        check_redzones(faults)?;
    }
    faults.take_error_after_wait().map_or(Ok(()), Err)
}

/// Runs the next operation towards a position. Returns false if the position was already reached.
///
/// # Errors
/// The code of the operation's error, which is sticky.
pub(crate) fn step(faults: &FaultState, position: StreamPosition) -> Result<bool, u32> {
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
            let result = execute(faults, operation.work, &operation.corruptions, fibers);
            gpu().finish(StreamPosition { stream, number: operation.number });
            if let Err(code) = result {
                faults.set_sticky(code);
            }
            result.map(|()| true)
        }
    }
}

/// Returns whether the next operation towards a position never ends.
pub(crate) fn is_hung(position: StreamPosition) -> bool {
    let _fibers = work_lock();
    let gpu = gpu();
    let first = blocking_stream(&gpu, position).and_then(|stream| gpu.streams.get(&stream)?.queue.front());
    first.is_some_and(QueuedOperation::hangs)
}

/// Returns the stream whose first operation must run next: the position's own, or one that it depends on.
/// Returns `None` if that stream has no queued operation.
fn blocking_stream(gpu: &SimGpu, mut position: StreamPosition) -> Option<Handle> {
    loop {
        let front = gpu.streams.get(&position.stream)?.queue.front()?;
        match front.dependencies.iter().find(|dependency| !gpu.is_done(**dependency)) {
            // An operation depends only on operations that were queued before it, so this ends.
            Some(dependency) => position = *dependency,
            None => return Some(position.stream),
        }
    }
}

fn next_step(gpu: &mut SimGpu, position: StreamPosition) -> NextStep {
    if gpu.is_done(position) {
        return NextStep::Reached;
    }
    let Some(stream) = blocking_stream(gpu, position) else { return NextStep::Reached };
    let Some(state) = gpu.streams.get_mut(&stream) else { return NextStep::Reached };
    match state.queue.front() {
        Some(front) if front.hangs() => NextStep::Hang,
        _ => match state.queue.pop_front() {
            Some(operation) => NextStep::Run(stream, Box::new(operation)),
            None => NextStep::Reached,
        },
    }
}
