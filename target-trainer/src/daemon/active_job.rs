//! The job that is being trained, and its workers so far. Decides nothing.

use std::time::Instant;

use super::jobs::Job;
use super::restart_policy::RestartPolicy;
use super::trouble::Trouble;
use super::worker_process::WorkerProcess;
use crate::settings::Settings;

/// The job that is being trained.
pub(super) struct ActiveJob {
    pub(super) job: Job,
    /// `None` while no worker runs, before the first start or a restart.
    pub(super) worker: Option<WorkerProcess>,
    /// Time at which the next worker may start.
    pub(super) earliest_start: Instant,
    pub(super) restart_policy: RestartPolicy,
    /// Why the current worker will exit, if it has reported that.
    pub(super) exit_reason: Option<String>,
    /// Bytes that its next saves need.
    pub(super) save_bytes: u64,
    /// Why no worker could be started.
    pub(super) start_trouble: Option<Trouble>,
}

impl ActiveJob {
    /// A job whose first worker can start at once.
    pub(super) fn new(job: Job, settings: &Settings) -> ActiveJob {
        ActiveJob {
            job,
            worker: None,
            earliest_start: Instant::now(),
            restart_policy: RestartPolicy::new(settings),
            exit_reason: None,
            save_bytes: 0,
            start_trouble: None,
        }
    }
}
