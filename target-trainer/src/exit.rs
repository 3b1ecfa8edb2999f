//! How a process of the trainer ends. One enum; the numbers are the documented ones.

use std::process::ExitCode;

/// An ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything asked for is done.
    Done,
    /// `verify` found something that is not sound.
    Findings,
    /// Arguments or settings that can't be used.
    Usage,
    /// Something failed that has no number of its own.
    Failed,
    /// Another daemon has this root.
    Locked,
    /// The base model can't be used, or is not the one that a job was trained on.
    BaseModel,
    /// Checkpoints are there and none of them verifies: nothing is deleted, nothing begins from scratch in silence.
    NoValidCheckpoint,
    /// The disk refuses what must be written: full, read-only, over quota, or gone.
    Disk,
    /// The policy on numbers that are not finite says stop, or its budget is spent.
    NonFinite,
    /// Asked to end by a signal, before the job was done; its progress is saved.
    Interrupted,
    /// A CUDA error has taken the context with it; a fresh process may go on.
    GpuFailed,
    /// The GPU is not there, or no longer; it may come back.
    GpuMissing,
    /// There is no driver, it is too old for this program, or it has no such device: waiting is of no use.
    GpuUnsupported,
    /// The GPU does not compute what the CPU computes, or not the same twice.
    GpuWrongResult,
}

impl Exit {
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
        }
    }

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
        ];
        all.into_iter().find(|exit| i32::from(exit.code()) == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}
