//! The mechanisms of faults, one file for each family. A fault is armed, injected when the run decides, and
//! reverted at the latest when it is dropped. Knows no trigger and no expectation.

mod call_fault;
mod disk;
mod gpu_fault;
mod hostile_data;
mod memory_limit;
mod plant;
mod poison;
mod read_only;
mod signal;
mod vanish;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scenarios::Effect;

use crate::gpu::{GpuError, Shim};
use crate::plan::PlannedFault;
use crate::sandbox::{Sandbox, SandboxError};
use crate::target::Trainer;

pub(crate) use gpu_fault::GpuCallCounter;
pub use poison::poison;
pub use signal::send_signal;

/// Why a fault could not be injected or reverted. This is a failure of the harness, never of the target.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The shim's plan or evidence could not be written or read.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A file operation failed.
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    /// The fault does not fit the workload.
    #[error("{0}")]
    Workload(String),
}

impl FaultError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FaultError {
        let path = path.to_path_buf();
        move |error| FaultError::File { doing, path, error }
    }
}

/// What a fault needs to know of the trial in which it is injected.
#[derive(Clone, Copy)]
pub struct FaultContext<'a> {
    /// The sandbox of the target.
    pub sandbox: &'a Sandbox,
    /// The target.
    pub trainer: &'a Trainer<'a>,
    /// Pid of the target's main process within the sandbox, while it runs.
    pub main_pid: Option<i32>,
    /// A directory that the target does not know, reached through the sandbox's mounts.
    pub staging_dir: &'a Path,
    /// Peak memory of the baseline run, if it could be read.
    pub baseline_peak_bytes: Option<u64>,
    /// The target's GPU, if it has one.
    pub gpu: Option<&'a Arc<Shim>>,
}

impl FaultContext<'_> {
    /// The path of a place as the harness reaches it.
    fn place_path(&self, place: &str) -> PathBuf {
        self.sandbox.host_path_in_root(&self.trainer.place_below_root(place))
    }
}

/// What the target did after the fault was injected. Some faults need this to know whether they are
/// effective.
#[derive(Clone, Copy, Default)]
pub struct TargetReaction {
    /// The target has begun or ended a phase in the fault's place.
    pub phase_in_place: bool,
    /// The target's main process has ended by itself, not with exit code 0.
    pub ended_abnormally: bool,
}

/// A fault that can be injected and reverted. Dropping it reverts it.
pub trait InjectableFault: Send {
    /// What injects it, for the record.
    fn mechanism(&self) -> String;

    /// Injects the fault. Called again if the fault is persistent.
    ///
    /// # Errors
    /// If the mechanism fails.
    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError>;

    /// Returns evidence once the fault is effective, that is, once it can have affected the target.
    fn effective_evidence(&mut self, context: &FaultContext<'_>, reaction: TargetReaction) -> Option<String>;

    /// Called every few milliseconds from the injection until the revert, for faults that must act
    /// repeatedly.
    ///
    /// # Errors
    /// If the mechanism fails.
    fn tick(&mut self, _context: &FaultContext<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    /// Reverts the fault and returns how. Returns `None` if there is nothing to revert.
    ///
    /// # Errors
    /// If the mechanism fails.
    fn revert(&mut self, _context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        Ok(None)
    }

    /// Whether the fault has stopped the target, so that time limits on its progress must not run.
    fn pauses_target(&self) -> bool {
        false
    }

    /// The place that it affects, if any. A phase there shows that the target used the place.
    fn place(&self) -> Option<&str> {
        None
    }
}

/// Arms the fault. Returns `None` for a fault that the run itself injects: a crash, a signal that asks the
/// target to exit, crash states.
pub fn arm(planned: &PlannedFault) -> Option<Box<dyn InjectableFault>> {
    Some(match &planned.fault.effect {
        Effect::Crash { .. } | Effect::CrashStates(_) => return None,
        Effect::Signal { signals } => match signals.first() {
            Some(sent) if sent.exit_time().is_none() => Box::new(signal::SignalFault::new(*sent)),
            _ => return None,
        },
        Effect::PoisonSample { .. } => Box::new(poison::PoisonedSample),
        Effect::FillDisk { place, .. } => {
            Box::new(disk::ExhaustedDisk::of_bytes(place, planned.leave_bytes.unwrap_or(0)))
        }
        Effect::ExhaustInodes { place } => Box::new(disk::ExhaustedDisk::of_inodes(place)),
        Effect::ReadOnly { place } => Box::new(read_only::ReadOnlyPlace::new(place)),
        Effect::MemoryLimit { limit } => Box::new(memory_limit::MemoryLimitFault::new(*limit)),
        Effect::Plant { place, files } => Box::new(plant::PlantedFiles::new(place, files)),
        Effect::Vanish { place, files, kind } => Box::new(vanish::VanishingFiles::new(place, *files, kind)),
        Effect::FailCall { .. }
        | Effect::ShortCall { .. }
        | Effect::DelayCall { .. }
        | Effect::SwapFile { .. }
        | Effect::SweepErrno => Box::new(call_fault::CallFault),
        Effect::GpuError { .. }
        | Effect::GpuHang { .. }
        | Effect::GpuOverwrite { .. }
        | Effect::GpuFlipBit { .. }
        | Effect::GpuFragment { .. }
        | Effect::GpuState(_) => gpu_fault::arm(planned)?,
    })
}
