//! Who waits carries the work out: as little of it as what is waited for asks, so that a missing wait shows. No unsafe.

use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::codes;
use crate::fibers::FiberPool;
use crate::hooks::hang;
use crate::rules::{Corruption, fault_state};

use super::state::{Handle, QueuedOperation, SimGpu, StreamPosition, gpu};
use super::work::{check_redzones, execute};

/// Held while work runs; never together with the state's lock while it runs.
fn work_lock() -> MutexGuard<'static, Option<FiberPool>> {
    static HANDS: OnceLock<Mutex<Option<FiberPool>>> = OnceLock::new();
    HANDS.get_or_init(|| Mutex::new(FiberPool::new())).lock().unwrap_or_else(|poison| poison.into_inner())
}

/// What comes next on the way to a place.
enum NextStep {
    Reached,
    Hang,
    Run(Handle, Box<QueuedOperation>),
}

/// Returns when all these places are reached; the first error of what had to be done.
pub(crate) fn wait_for(places: &[StreamPosition]) -> Result<(), u32> {
    let mut worked = false;
    for place in places {
        while step(*place)? {
            worked = true;
        }
    }
    if worked {
        let _fibers = work_lock();
        check_redzones()?;
    }
    match (fault_state().sticky(), fault_state().take_deferred_error()) {
        (0, None) => Ok(()),
        (0, Some(code)) | (code, _) => Err(code),
    }
}

/// Does one operation on the way to a place: whether there was one.
pub(crate) fn step(place: StreamPosition) -> Result<bool, u32> {
    let mut fibers = work_lock();
    let next = next_step(&mut gpu(), place);
    match next {
        NextStep::Reached => Ok(false),
        NextStep::Hang => {
            drop(fibers);
            hang()
        }
        NextStep::Run(stream, operation) => {
            let fibers = fibers.as_mut().ok_or(codes::OUT_OF_MEMORY)?;
            let ended = execute(operation.work, &operation.corruptions, fibers);
            gpu().finish((stream, operation.number));
            if let Err(code) = ended {
                fault_state().set_sticky(code);
            }
            ended.map(|()| true)
        }
    }
}

/// Whether the work on the way to a place stands still for good.
pub(crate) fn is_hung(place: StreamPosition) -> bool {
    let _fibers = work_lock();
    let mut gpu = gpu();
    let (stream, _) = blocking_stream(&gpu, place);
    let queue = gpu.streams.get_mut(&stream).and_then(|stream| stream.queue.front());
    queue.is_some_and(|operation| operation.corruptions.contains(&Corruption::Hang))
}

/// The operation that has to come first: the place's own stream, or one that it waits for.
fn blocking_stream(gpu: &SimGpu, mut place: StreamPosition) -> (Handle, bool) {
    loop {
        let front = gpu.streams.get(&place.0).and_then(|stream| stream.queue.front());
        let Some(front) = front else { return (place.0, false) };
        match front.dependencies.iter().find(|before| !gpu.is_done(**before)) {
            // Only what was given out earlier is waited for, so this ends.
            Some(before) => place = *before,
            None => return (place.0, true),
        }
    }
}

fn next_step(gpu: &mut SimGpu, place: StreamPosition) -> NextStep {
    if gpu.is_done(place) {
        return NextStep::Reached;
    }
    let (stream, found) = blocking_stream(gpu, place);
    let Some(queue) = gpu.streams.get_mut(&stream).filter(|_| found) else { return NextStep::Reached };
    match queue.queue.front() {
        Some(front) if front.corruptions.contains(&Corruption::Hang) => NextStep::Hang,
        _ => match queue.queue.pop_front() {
            Some(operation) => NextStep::Run(stream, Box::new(operation)),
            None => NextStep::Reached,
        },
    }
}
