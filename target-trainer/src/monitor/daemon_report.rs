//! What the daemon reports to its monitor, as data.

use crate::device::GpuReading;
use crate::train::WorkerEvent;

/// What the daemon reports to its monitor.
#[derive(Debug, Clone)]
pub enum DaemonReport {
    /// A job of so many steps is being trained from now on.
    JobBegun { job: String, steps: u64 },
    /// An event of the worker.
    Worker { job: String, event: WorkerEvent },
    /// A worker is replaced.
    Restart { job: String, reason: String },
    /// A job has failed.
    JobFailed { job: String, reason: String },
    /// Something else that people should know.
    Trouble { reason: String },
    /// No job is being trained.
    Idle,
    /// The latest reading of the GPU.
    Gpu(Option<GpuReading>),
}
