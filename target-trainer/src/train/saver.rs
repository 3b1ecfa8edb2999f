//! Writes checkpoints, one at a time: on the spot, or on a thread of its own while training goes on. Never says anything
//! itself: what came of a save is asked for by the worker, who says it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::{Snapshot, TrainState};
use crate::device::DeviceError;
use crate::store::{CheckpointStore, SaveError};

/// What has come of a save.
pub(super) enum SaverEvent {
    /// It is durable.
    Saved { step: u64 },
    /// Nothing of it is left.
    Failed { step: u64, error: SaveError },
    /// The state never came from the device.
    CopyFailed { error: DeviceError },
    /// Older checkpoints have been removed: the next save may begin.
    Pruned,
}

/// Who writes.
pub(super) enum Saver {
    Foreground,
    Background { snapshots: Sender<(u64, Snapshot)>, events: Receiver<SaverEvent>, busy: bool },
}

impl Saver {
    pub(super) fn start_background(checkpoints: Arc<CheckpointStore>) -> std::io::Result<Saver> {
        let (snapshots, to_write) = channel::<(u64, Snapshot)>();
        let (tell, told) = channel();
        std::thread::Builder::new().name("saver".into()).spawn(move || {
            for (step, snapshot) in to_write {
                let tell = |word| drop(tell.send(word));
                match snapshot.finish() {
                    Ok(state) => save_and_prune(&checkpoints, step, &state, tell),
                    Err(error) => tell(SaverEvent::CopyFailed { error }),
                }
            }
        })?;
        Ok(Saver::Background { snapshots, events: told, busy: false })
    }

    /// Hands a snapshot to the thread, which must not be busy.
    pub(super) fn start(&mut self, step: u64, snapshot: Snapshot) {
        if let Saver::Background { snapshots, busy, .. } = self {
            *busy = snapshots.send((step, snapshot)).is_ok();
        }
    }

    /// The next word; `wait`: for as long as a save is under way.
    pub(super) fn next_event(&mut self, wait: bool) -> Option<SaverEvent> {
        let Saver::Background { events: told, busy, .. } = self else { return None };
        let word = match wait && *busy {
            true => told.recv().ok(),
            false => told.try_recv().ok(),
        };
        // Without a word although one was waited for, the thread is gone.
        *busy &= match word {
            Some(SaverEvent::Pruned | SaverEvent::Failed { .. } | SaverEvent::CopyFailed { .. }) => false,
            Some(SaverEvent::Saved { .. }) => true,
            None => !wait,
        };
        word
    }
}

/// Saves and tidies up.
pub(super) fn save_and_prune(
    checkpoints: &CheckpointStore,
    step: u64,
    state: &TrainState,
    mut tell: impl FnMut(SaverEvent),
) {
    if let Err(error) = checkpoints.save(state) {
        return tell(SaverEvent::Failed { step, error });
    }
    tell(SaverEvent::Saved { step });
    if let Err(error) = checkpoints.prune(step) {
        tracing::warn!("old checkpoints stay for now: {error}");
    }
    tell(SaverEvent::Pruned);
}
