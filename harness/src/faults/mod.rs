//! One file per family of faults. A fault is armed on a scene, strikes when the run says so, and is disarmed by its drop.

mod at_call;
mod disk;
mod gpu;
mod hostile;
mod memory;
mod plant;
mod poison;
mod read_only;
mod vanish;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use scenarios::Effect;

use crate::gpu::{GpuError, StandIn};
use crate::plan::Planned;
use crate::sandbox::{Room, SandboxError};
use crate::target::Trainer;

pub(crate) use gpu::Counting;
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
pub struct Scene<'a> {
    pub room: &'a Room,
    pub trainer: &'a Trainer<'a>,
    /// A folder that the target is not told of, reached through the room's mounts.
    pub backstage: &'a Path,
    pub steady_peak_bytes: Option<u64>,
    pub gpu: Option<&'a Arc<StandIn>>,
}

impl Scene<'_> {
    /// A place as the harness reaches it.
    fn outside(&self, place: &str) -> PathBuf {
        self.room.outside(&self.trainer.place_below_root(place))
    }
}

/// What a fault needs to hear of the target's lines to know whether it landed.
#[derive(Clone, Copy, Default)]
pub struct Since {
    /// The target has begun or ended a phase in the fault's place since the strike.
    pub met_in_place: bool,
    /// The target's main process has ended since the strike, and not as it should.
    pub ended_badly: bool,
}

/// A fault in place. Dropping it disarms it.
pub trait Armed: Send {
    /// What does it, in a few words.
    fn mechanism(&self) -> String;

    /// Strikes. May be called again where the strike repeats.
    fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError>;

    /// Evidence, once the fault took effect on the target.
    fn landed(&mut self, scene: &Scene<'_>, since: Since) -> Option<String>;

    /// Called every few milliseconds while it strikes, for faults that are a race.
    fn press(&mut self, _scene: &Scene<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    /// Takes it back; says how. Nothing where nothing is left to take back.
    fn lift(&mut self, _scene: &Scene<'_>) -> Result<Option<String>, FaultError> {
        Ok(None)
    }

    /// Place whose phases tell that the target met it.
    fn place(&self) -> Option<&str> {
        None
    }
}

/// The fault, ready to strike. None for those that the run itself carries out (a crash, a changed workload).
pub fn arm(planned: &Planned) -> Option<Box<dyn Armed>> {
    Some(match &planned.fault.effect {
        Effect::Crash { .. } | Effect::Terminate { .. } | Effect::CrashStates(_) => return None,
        Effect::PoisonSample { .. } => Box::new(poison::Poisoned),
        Effect::FillDisk { place, .. } => {
            Box::new(disk::Starved::of_bytes(place, planned.leave_bytes.unwrap_or(0)))
        }
        Effect::ExhaustInodes { place } => Box::new(disk::Starved::of_inodes(place)),
        Effect::ReadOnly { place } => Box::new(read_only::ReadOnly::new(place)),
        Effect::MemoryLimit { limit } => Box::new(memory::Limited::new(*limit)),
        Effect::Plant { place, files } => Box::new(plant::Plant::new(place, files)),
        Effect::Vanish { place, files, kind } => Box::new(vanish::Vanish::new(place, *files, kind)),
        Effect::FailCall { .. }
        | Effect::ShortCall { .. }
        | Effect::DelayCall { .. }
        | Effect::SwapFile { .. }
        | Effect::SweepErrno => Box::new(at_call::AtCall),
        Effect::GpuError { .. }
        | Effect::GpuHang { .. }
        | Effect::GpuOverwrite { .. }
        | Effect::GpuFlipBit { .. }
        | Effect::GpuFragment { .. }
        | Effect::GpuState(_) => gpu::arm(planned)?,
    })
}
