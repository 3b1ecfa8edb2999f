//! One file per family of faults. A fault is armed on a scene, strikes when the run says so, and is disarmed by its drop.

mod call_fault;
mod disk;
mod gpu_fault;
mod hostile_data;
mod memory_limit;
mod plant;
mod poison;
mod read_only;
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

/// Why a fault could not be made. Always the harness's failure, never the target's.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("{0}")]
    Workload(String),
}

impl FaultError {
    fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FaultError {
        let path = path.to_path_buf();
        move |error| FaultError::File { doing, path, error }
    }
}

/// Where a fault strikes.
#[derive(Clone, Copy)]
pub struct FaultContext<'a> {
    pub sandbox: &'a Sandbox,
    pub trainer: &'a Trainer<'a>,
    /// A folder that the target is not told of, reached through the room's mounts.
    pub staging_dir: &'a Path,
    pub baseline_peak_bytes: Option<u64>,
    pub gpu: Option<&'a Arc<Shim>>,
}

impl FaultContext<'_> {
    /// A place as the harness reaches it.
    fn place_path(&self, place: &str) -> PathBuf {
        self.sandbox.host_path_in_root(&self.trainer.place_below_root(place))
    }
}

/// What a fault needs to hear of the target's lines to know whether it landed.
#[derive(Clone, Copy, Default)]
pub struct TargetReaction {
    /// The target has begun or ended a phase in the fault's place since the strike.
    pub phase_in_place: bool,
    /// The target's main process has ended since the strike, and not as it should.
    pub ended_abnormally: bool,
}

/// A fault in place. Dropping it disarms it.
pub trait InjectableFault: Send {
    /// What does it, in a few words.
    fn mechanism(&self) -> String;

    /// Strikes. May be called again where the strike repeats.
    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError>;

    /// Evidence, once the fault took effect on the target.
    fn effective_evidence(&mut self, scene: &FaultContext<'_>, since: TargetReaction) -> Option<String>;

    /// Called every few milliseconds while it strikes, for faults that are a race.
    fn tick(&mut self, _scene: &FaultContext<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    /// Takes it back; says how. Nothing where nothing is left to take back.
    fn revert(&mut self, _scene: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        Ok(None)
    }

    /// Place whose phases tell that the target met it.
    fn place(&self) -> Option<&str> {
        None
    }
}

/// The fault, ready to strike. None for those that the run itself carries out (a crash, a changed workload).
pub fn arm(planned: &PlannedFault) -> Option<Box<dyn InjectableFault>> {
    Some(match &planned.fault.effect {
        Effect::Crash { .. } | Effect::Terminate { .. } | Effect::CrashStates(_) => return None,
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
