//! The exit codes of the trainer's processes, in one enum. `docs/trainer.md` documents the numbers.

use std::process::ExitCode;

/// Why a process exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command did everything it was asked to do.
    Done,
    /// `verify` found a damaged checkpoint, adapter or data file.
    Findings,
    /// The arguments or the settings are invalid.
    Usage,
    /// A failure without an exit code of its own.
    Failed,
    /// Another daemon uses this root.
    Locked,
    /// The base model can't be read, or differs from the one that a job was trained on.
    BaseModel,
    /// Checkpoints exist but none of them is valid. Nothing is deleted, and training does not restart at step
    /// 0.
    NoValidCheckpoint,
    /// A write failed: the file system is full, read-only, over quota or gone.
    Disk,
    /// A step was not finite, and `train.on_non_finite` is `stop` or its budget is exceeded.
    NonFinite,
    /// A signal stopped the daemon or the worker while there was work left; its progress is saved.
    Interrupted,
    /// A CUDA error destroyed the context. A new process may succeed.
    GpuFailed,
    /// The GPU is missing. It may come back.
    GpuMissing,
    /// There is no driver, the driver is too old, or it has no such device. Waiting does not help.
    GpuUnsupported,
    /// The GPU's results differ from the CPU's, or from its own when it repeats a computation.
    GpuWrongResult,
    /// The daemon has worked on everything, and a job failed, or a data file or a queued job can't be read.
    JobsFailed,
    /// The machine refuses what every job needs: a process, a thread, memory, a file that can be read; or a
    /// worker hangs in the kernel. The jobs stay in the queue.
    Machine,
    /// A newer version of the trainer has written a checkpoint. The job stays in the queue.
    NewerFormat,
    /// The monitor can't listen at its port, and no other one may be used.
    PortTaken,
}

impl Exit {
    /// The exit code as the shell sees it.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Findings => 1,
            Exit::Usage => 2,
            Exit::Failed => 3,
            Exit::Locked => 10,
            Exit::BaseModel => 11,
            Exit::NoValidCheckpoint => 12,
            Exit::Disk => 13,
            Exit::NonFinite => 14,
            Exit::Interrupted => 15,
            Exit::GpuFailed => 16,
            Exit::GpuMissing => 17,
            Exit::GpuUnsupported => 18,
            Exit::GpuWrongResult => 19,
            Exit::JobsFailed => 20,
            Exit::Machine => 21,
            Exit::NewerFormat => 22,
            Exit::PortTaken => 23,
        }
    }

    /// The inverse of [`Exit::code`]. Returns `None` for a code that the trainer never uses.
    pub fn from_code(code: i32) -> Option<Exit> {
        let all = [
            Exit::Done,
            Exit::Findings,
            Exit::Usage,
            Exit::Failed,
            Exit::Locked,
            Exit::BaseModel,
            Exit::NoValidCheckpoint,
            Exit::Disk,
            Exit::NonFinite,
            Exit::Interrupted,
            Exit::GpuFailed,
            Exit::GpuMissing,
            Exit::GpuUnsupported,
            Exit::GpuWrongResult,
            Exit::JobsFailed,
            Exit::Machine,
            Exit::NewerFormat,
            Exit::PortTaken,
        ];
        all.into_iter().find(|exit| i32::from(exit.code()) == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}
