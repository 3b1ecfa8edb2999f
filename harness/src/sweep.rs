//! Removes what killed runs have left behind, on a thread of its own: it delays no start, says so if it takes
//! long, and ends at the first signal. Knows nothing of what runs meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use engine::sandbox::{SandboxError, SweptLeftovers, remove_leftovers};

use crate::{interrupt, print};

/// After so long, a waiting user is told what the command waits for.
const SILENT_TIME: Duration = Duration::from_secs(1);
/// How long the end of a run is delayed by it.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// How often a signal is looked for meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

type SweepResult = Result<SweptLeftovers, SandboxError>;

/// The removal of leftovers, in progress.
pub(crate) struct Sweep {
    is_cancelled: Arc<AtomicBool>,
    result: Receiver<SweepResult>,
    thread: Option<JoinHandle<()>>,
}

/// How long to wait for the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SweepWait {
    /// Until everything is removed, or a signal comes.
    ToTheEnd,
    /// For a moment: the next run removes the rest.
    Bounded,
}

impl Sweep {
    /// Starts to remove. Without a thread, the next run does it.
    pub(crate) fn start() -> Sweep {
        let (sender, result) = channel();
        let is_cancelled = Arc::<AtomicBool>::default();
        let cancelled = Arc::clone(&is_cancelled);
        let sweep = move || {
            let swept = remove_leftovers(&|| cancelled.load(Ordering::Relaxed) || interrupt::requested());
            // Nobody waits for it after a failure.
            let _ = sender.send(swept);
        };
        let thread = std::thread::Builder::new().name("sweep".into()).spawn(sweep).ok();
        Sweep { is_cancelled, result, thread }
    }

    /// Waits for the end. `None`: there was no thread.
    ///
    /// # Errors
    /// If the directory for runs cannot be read, or belongs to another user.
    pub(crate) fn finish(self, wait: SweepWait) -> Result<Option<SweptLeftovers>, SandboxError> {
        let mut waited = Duration::ZERO;
        loop {
            match self.result.recv_timeout(POLL_INTERVAL) {
                Ok(swept) => return swept.map(Some),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if waited < SILENT_TIME && waited + POLL_INTERVAL >= SILENT_TIME {
                print::notice("removing what killed runs have left behind; a signal ends this");
            }
            waited += POLL_INTERVAL;
            if wait == SweepWait::Bounded && waited > MAX_DELAY {
                self.is_cancelled.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        self.is_cancelled.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
