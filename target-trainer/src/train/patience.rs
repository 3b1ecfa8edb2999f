//! Repeats what fails because of the machine: a file that can't be read at the moment, a disk that is full.
//! The job is not at fault, so its worker waits.

use std::error::Error;
use std::time::{Duration, Instant};

use super::worker_config::WorkerConfig;
use super::worker_event::WorkerEvent;
use crate::file_error::chain;
use crate::progress;

/// Wait before the second attempt. It doubles with each one.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Longest wait between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(2);

/// Repeats `attempt` for `train.save_patience_s` while it fails with an error that may pass, and reports each
/// failure. Ends early if a stop is requested. With the guard `machine_faults` off, there is one attempt.
///
/// # Errors
/// The error of the last attempt.
pub(super) fn with_patience<T, E: Error>(
    config: &WorkerConfig<'_>,
    may_pass: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    if !config.settings.guards.machine_faults {
        return attempt();
    }
    let deadline = Instant::now() + Duration::from_secs(config.settings.train.save_patience_s);
    let mut delay = FIRST_DELAY;
    loop {
        let error = match attempt() {
            Err(error) if may_pass(&error) => error,
            result => return result,
        };
        if Instant::now() >= deadline || (config.stop_requested)() {
            return Err(error);
        }
        (config.emit)(WorkerEvent::Waiting { reason: chain(&error) });
        progress::advance();
        std::thread::sleep(delay);
        delay = (delay * 2).min(MAX_DELAY);
    }
}
