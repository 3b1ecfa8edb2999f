//! Writes checkpoints one at a time, either directly or on a background thread while training continues.
//! Reports nothing itself: the worker polls for events and reports them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};

use super::engine::Snapshot;
use crate::device::DeviceError;
use crate::file_error::chain;
use crate::state::TrainState;
use crate::store::{CheckpointStore, SaveError};

/// The progress of a save.
pub enum SaverEvent {
    /// The checkpoint is durable.
    Saved { step: u64 },
    /// The save failed.
    Failed { step: u64, error: SaveError },
    /// The state could not be copied from the device.
    CopyFailed { error: DeviceError },
    /// Old checkpoints were removed, or could not be. The next save may start.
    Pruned,
    /// The thread has ended before the save was done.
    ThreadEnded,
}

/// How checkpoints are written.
pub enum Saver {
    /// The worker calls [`save_and_prune`].
    Foreground,
    /// A thread writes. `busy` is true from the start of a save until its last event.
    Background { snapshots: Sender<(u64, Snapshot)>, events: Receiver<SaverEvent>, busy: bool },
}

impl Saver {
    /// Starts the background thread.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start_background(checkpoints: Arc<CheckpointStore>) -> std::io::Result<Saver> {
        let (snapshots, queue) = channel::<(u64, Snapshot)>();
        let (emit, events) = channel();
        std::thread::Builder::new().name("saver".into()).spawn(move || {
            for (step, snapshot) in queue {
                let emit = |event| drop(emit.send(event));
                match snapshot.finish() {
                    Ok(state) => save_and_prune(&checkpoints, step, &state, emit),
                    Err(error) => emit(SaverEvent::CopyFailed { error }),
                }
            }
        })?;
        Ok(Saver::Background { snapshots, events, busy: false })
    }

    /// Passes a snapshot to the thread, which must not be busy.
    pub fn start(&mut self, step: u64, snapshot: Snapshot) {
        if let Saver::Background { snapshots, busy, .. } = self {
            // If the thread has ended, the next event says so.
            let _ = snapshots.send((step, snapshot));
            *busy = true;
        }
    }

    /// The next event. With `wait`, waits for it while a save is running.
    pub fn next_event(&mut self, wait: bool) -> Option<SaverEvent> {
        let Saver::Background { events, busy, .. } = self else { return None };
        let event = match (wait && *busy, events.try_recv()) {
            (_, Ok(event)) => Some(event),
            (true, Err(TryRecvError::Empty)) => Some(events.recv().unwrap_or(SaverEvent::ThreadEnded)),
            (false, Err(TryRecvError::Empty)) => None,
            (_, Err(TryRecvError::Disconnected)) => busy.then_some(SaverEvent::ThreadEnded),
        };
        match event {
            Some(SaverEvent::Saved { .. }) | None => {}
            Some(
                SaverEvent::Pruned
                | SaverEvent::Failed { .. }
                | SaverEvent::CopyFailed { .. }
                | SaverEvent::ThreadEnded,
            ) => *busy = false,
        }
        event
    }
}

/// Saves a checkpoint, then removes old ones.
pub(super) fn save_and_prune(
    checkpoints: &CheckpointStore,
    step: u64,
    state: &TrainState,
    mut emit: impl FnMut(SaverEvent),
) {
    if let Err(error) = checkpoints.save(state) {
        return emit(SaverEvent::Failed { step, error });
    }
    emit(SaverEvent::Saved { step });
    if let Err(error) = checkpoints.prune(step) {
        tracing::warn!("old checkpoints could not be removed yet: {}", chain(&error));
    }
    emit(SaverEvent::Pruned);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saver_thread_that_has_died_is_reported_and_not_waited_for() {
        let (snapshots, _) = channel();
        let (emit, events) = channel();
        emit.send(SaverEvent::Saved { step: 5 }).unwrap();
        drop(emit);
        let mut saver = Saver::Background { snapshots, events, busy: true };
        // What it has done before counts.
        assert!(matches!(saver.next_event(true), Some(SaverEvent::Saved { step: 5 })));
        for wait in [true, false] {
            assert!(matches!(saver.next_event(wait), Some(SaverEvent::ThreadEnded)));
            assert!(saver.next_event(wait).is_none(), "it is reported once");
            let Saver::Background { busy, .. } = &mut saver else { unreachable!() };
            *busy = true;
        }
    }
}
