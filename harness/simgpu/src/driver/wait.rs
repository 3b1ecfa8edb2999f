//! Who waits carries the work out: as little of it as what is waited for asks, so that a missing wait shows. No unsafe.

use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::codes;
use crate::fibers::Fibers;
use crate::hooks::hang;
use crate::rules::{Twist, world};

use super::state::{Gpu, Handle, Operation, Place, gpu};
use super::work::{carry_out, check_surroundings};

/// Held while work runs; never together with the state's lock while it runs.
fn hands() -> MutexGuard<'static, Option<Fibers>> {
    static HANDS: OnceLock<Mutex<Option<Fibers>>> = OnceLock::new();
    HANDS.get_or_init(|| Mutex::new(Fibers::new())).lock().unwrap_or_else(|poison| poison.into_inner())
}

/// What comes next on the way to a place.
enum Next {
    Arrived,
    Hangs,
    Do(Handle, Box<Operation>),
}

/// Returns when all these places are reached; the first error of what had to be done.
pub(crate) fn wait_for(places: &[Place]) -> Result<(), u32> {
    let mut worked = false;
    for place in places {
        while step(*place)? {
            worked = true;
        }
    }
    if worked {
        let _fibers = hands();
        check_surroundings()?;
    }
    match (world().sticky(), world().told_to_who_waits()) {
        (0, None) => Ok(()),
        (0, Some(code)) | (code, _) => Err(code),
    }
}

/// Does one operation on the way to a place: whether there was one.
pub(crate) fn step(place: Place) -> Result<bool, u32> {
    let mut fibers = hands();
    let next = next(&mut gpu(), place);
    match next {
        Next::Arrived => Ok(false),
        Next::Hangs => {
            drop(fibers);
            hang()
        }
        Next::Do(stream, operation) => {
            let fibers = fibers.as_mut().ok_or(codes::OUT_OF_MEMORY)?;
            let ended = carry_out(operation.work, &operation.twists, fibers);
            gpu().finish((stream, operation.number));
            if let Err(code) = ended {
                world().stick(code);
            }
            ended.map(|()| true)
        }
    }
}

/// Whether the work on the way to a place stands still for good.
pub(crate) fn hangs(place: Place) -> bool {
    let _fibers = hands();
    let mut gpu = gpu();
    let (stream, _) = head(&gpu, place);
    let queue = gpu.streams.get_mut(&stream).and_then(|stream| stream.queue.front());
    queue.is_some_and(|operation| operation.twists.contains(&Twist::Hang))
}

/// The operation that has to come first: the place's own stream, or one that it waits for.
fn head(gpu: &Gpu, mut place: Place) -> (Handle, bool) {
    loop {
        let front = gpu.streams.get(&place.0).and_then(|stream| stream.queue.front());
        let Some(front) = front else { return (place.0, false) };
        match front.after.iter().find(|before| !gpu.is_done(**before)) {
            // Only what was given out earlier is waited for, so this ends.
            Some(before) => place = *before,
            None => return (place.0, true),
        }
    }
}

fn next(gpu: &mut Gpu, place: Place) -> Next {
    if gpu.is_done(place) {
        return Next::Arrived;
    }
    let (stream, found) = head(gpu, place);
    let Some(queue) = gpu.streams.get_mut(&stream).filter(|_| found) else { return Next::Arrived };
    match queue.queue.front() {
        Some(front) if front.twists.contains(&Twist::Hang) => Next::Hangs,
        _ => match queue.queue.pop_front() {
            Some(operation) => Next::Do(stream, Box::new(operation)),
            None => Next::Arrived,
        },
    }
}
