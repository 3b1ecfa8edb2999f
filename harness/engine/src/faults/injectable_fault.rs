//! What a fault is to the run: a value that can be injected and reverted, or one that ends the target. Knows
//! no mechanism, no trigger and no expectation.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use scenarios::CallKind;

use crate::faults::server_answer::ServerAnswer;
use crate::faults::target_clock::TargetClock;
use crate::file_error::FileError;
use crate::gpu::{GpuError, Shim};
use crate::sandbox::{OpenDirectory, ProcessExit, Sandbox, SandboxError};
use crate::target::Trainer;

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
    #[error(transparent)]
    File(#[from] FileError),
    /// What a command prints could not be read.
    #[error("could not read what a command prints")]
    Output(#[source] std::io::Error),
    /// The fault does not fit the workload.
    #[error("{0}")]
    Workload(String),
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
    /// Peak memory of the baseline run, if it could be read.
    pub baseline_peak_bytes: Option<u64>,
    /// The target's GPU, if it has one.
    pub gpu: Option<&'a Arc<Shim>>,
    /// The wall clock by which the gate answers the target's calls for the time.
    pub clock: &'a Arc<TargetClock>,
    /// Whether the scenario says how commands of faults end. Else one that fails has done nothing.
    pub expects_command_codes: bool,
}

impl FaultContext<'_> {
    /// The directory of a place. `None`: the target has removed it, or has put something else there, such as a
    /// link, which could lead out of the sandbox. No fault can take effect there then.
    pub(super) fn open_place(&self, place: &str) -> Option<OpenDirectory> {
        let root = self.sandbox.host_path_in_root(Path::new(""));
        OpenDirectory::beneath(&root, &self.trainer.place_below_root(place)).ok()
    }
}

/// Calls that fail under a fault. A failure that the gate sees is the fault's evidence.
#[derive(Debug, Clone, Copy)]
pub struct RefusedCalls<'a> {
    /// The place in which they fail. `None`: anywhere below the root.
    pub place: Option<&'a str>,
    /// The errnos with which they fail.
    pub errnos: &'static [Errno],
    /// Kinds of calls that may fail with it, and that the gate does not stop otherwise.
    pub extra_kinds: &'static [CallKind],
    /// A failure counts only if the modes of the files allow the call.
    pub although_modes_allow: bool,
}

/// What the target did after the fault was injected. Some faults need this to know whether they are
/// effective.
#[derive(Clone, Copy, Default)]
pub struct TargetReaction {
    /// The target's main process has ended by itself, not with exit code 0.
    pub ended_abnormally: bool,
    /// The target's main process was ended by SIGBUS, as by a page of a mapped file that the disk has no room
    /// for.
    pub ended_by_sigbus: bool,
    /// The target's main process was ended by SIGXFSZ, as by a write beyond the largest size of a file.
    pub ended_by_sigxfsz: bool,
}

/// A fault that can be injected and reverted. Dropping it reverts it.
pub trait InjectableFault: Send {
    /// What injects it, for the record.
    fn mechanism(&self) -> String;

    /// Changes a data file before it is submitted to the target, for faults in the data.
    ///
    /// # Errors
    /// If the file cannot be changed.
    fn alter_submitted_file(&self, _file: &Path) -> Result<(), FaultError> {
        Ok(())
    }

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

    /// Whether the thread that printed the trigger's line waits until it is done.
    fn is_awaited(&self) -> bool {
        false
    }

    /// The thread that printed the trigger's line has waited for it, and goes on although it is not done.
    fn on_waited_in_vain(&mut self) {}

    /// How commands have ended that it runs. Each is returned once.
    fn take_command_exits(&mut self) -> Vec<ProcessExit> {
        Vec::new()
    }

    /// What its clients of the target have been answered. Each is returned once.
    fn take_answers(&mut self) -> Vec<ServerAnswer> {
        Vec::new()
    }

    /// The calls that fail under it, if their failure is the evidence of its effect.
    fn refused_calls(&self) -> Option<RefusedCalls<'_>> {
        None
    }

    /// Why the evidence of its effect does not count after all. Asked when the run is over.
    fn withdrawn_evidence(&self) -> Option<String> {
        None
    }

    /// What is missing for evidence, once the fault was injected and the run is over.
    fn missing_evidence(&self) -> String {
        "it was injected, and nothing showed an effect".into()
    }
}

/// A fault that ends the target. The run starts the target again afterwards.
pub trait EndingFault: Send {
    /// What ends it, for the record.
    fn mechanism(&self) -> String;

    /// Ends the target, or asks it to exit. `main_pid`: of the target's main process within the sandbox.
    /// Returns `None` if no process was there to receive it.
    ///
    /// # Errors
    /// If the sandbox fails.
    fn end_target(&self, sandbox: &Sandbox, main_pid: i32) -> Result<Option<TargetEnd>, FaultError>;

    /// Asks the target to exit a second time. Returns what was done, or `None` if no process was there to
    /// receive it.
    ///
    /// # Errors
    /// If the sandbox fails.
    fn ask_again(&self, _sandbox: &Sandbox, _main_pid: i32) -> Result<Option<String>, FaultError> {
        Ok(None)
    }
}

/// What was done to end the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetEnd {
    /// What was done, such as `every process was killed`.
    pub evidence: String,
    /// The time within which the target must exit. `None`: it has no choice.
    pub exit_time: Option<Duration>,
    /// The time after which the target is asked a second time.
    pub again_after: Option<Duration>,
    /// Whether a target that has not exited in time is killed as a part of the fault.
    pub then_kill: bool,
}

/// What injects a fault.
pub(super) enum FaultMechanism {
    Injects(Box<dyn InjectableFault>),
    EndsTarget(Box<dyn EndingFault>),
    /// Nothing is injected: the target is started on other files.
    None,
}

/// The mechanism of a fault that can be injected and reverted.
pub(super) fn injects(fault: impl InjectableFault + 'static) -> FaultMechanism {
    FaultMechanism::Injects(Box::new(fault))
}
