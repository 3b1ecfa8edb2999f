//! The mechanisms of faults, one file for each family. A fault is armed, injected when the run decides, and
//! reverted at the latest when it is dropped. Knows no trigger and no expectation.

mod bound_port;
mod call_fault;
mod clock;
mod crash;
mod damaged_files;
mod disk;
mod environment;
mod file_damage;
mod file_system;
mod gpu_state;
mod hostile_data;
mod http_request;
mod injectable_fault;
mod landlock;
mod limits;
mod memory_bit;
mod memory_limit;
mod plant;
mod poison;
mod proc_file;
mod read_only;
mod run_command;
mod server_answer;
mod shim_fault;
mod shim_rule;
mod signal;
mod target_clock;
mod target_files;
mod vanish;

use std::path::Path;

use scenarios::{Effect, Until};

use crate::plan::PlannedFault;

use injectable_fault::{FaultMechanism, injects};

pub use injectable_fault::{
    EndingFault, FaultContext, FaultError, InjectableFault, RefusedCalls, TargetEnd, TargetReaction,
};
pub use server_answer::ServerAnswer;
pub(crate) use shim_rule::GpuCallCounter;
pub use target_clock::TargetClock;
pub(crate) use target_files::list_files;

/// The mechanism of each fault: one row for each.
fn mechanism_of(planned: &PlannedFault) -> FaultMechanism {
    match &planned.fault.effect {
        Effect::Crash(_) => FaultMechanism::EndsTarget(Box::new(crash::KillAll)),
        Effect::Signal(fault) => signal::mechanism(fault),
        Effect::FillDisk(fault) => injects(disk::ExhaustedDisk::of_bytes(fault)),
        Effect::ExhaustInodes(fault) => injects(disk::ExhaustedDisk::of_inodes(fault)),
        Effect::FileSystem(fault) => injects(file_system::OtherFileSystem::new(fault)),
        Effect::ReadOnly(fault) => injects(read_only::ReadOnlyPlace::new(&fault.place)),
        Effect::MemoryLimit(fault) => injects(memory_limit::MemoryLimitFault::new(fault.limit)),
        Effect::Limits(fault) => {
            let is_final = matches!(planned.fault.until, Until::Never);
            injects(limits::LimitedUse::new(fault.limit, is_final))
        }
        Effect::Landlock(fault) => injects(landlock::DeniedAccess::new(fault)),
        Effect::Environment(fault) => injects(environment::ChangedEnvironment::new(fault)),
        Effect::Clock(fault) => injects(clock::ChangedClock::new(fault)),
        Effect::RunCommand(fault) => injects(run_command::RunningCommands::new(fault)),
        Effect::BoundPort(fault) => injects(bound_port::TakenPort::new(fault.port)),
        Effect::HttpRequest(fault) => injects(http_request::AskingClients::new(fault)),
        Effect::Plant(fault) => injects(plant::PlantedFiles::new(&fault.place, &fault.files)),
        Effect::ProcFile(fault) => injects(proc_file::ChangedProcFile::new(fault)),
        Effect::DamageFiles(fault) => injects(damaged_files::DamagedFiles::new(fault)),
        Effect::FlipMemory(fault) => injects(memory_bit::FlippedMemory::new(fault)),
        Effect::Vanish(fault) => injects(vanish::VanishingFiles::new(fault)),
        Effect::PoisonSample(fault) => injects(poison::PoisonedSample::new(fault)),
        Effect::FailCall(_)
        | Effect::ShortCall(_)
        | Effect::DelayCall(_)
        | Effect::SwapFile(_)
        | Effect::SweepErrno(_) => injects(call_fault::CallFault),
        Effect::CrashStates(_) => FaultMechanism::None,
        Effect::GpuError(_)
        | Effect::GpuHang(_)
        | Effect::GpuOverwrite(_)
        | Effect::GpuFlipBit(_)
        | Effect::GpuFragment(_) => shim_rule::mechanism(planned),
        Effect::GpuState(fault) => injects(gpu_state::changed_state(fault)),
    }
}

/// Arms the fault. Returns `None` for one that ends the target, and for crash states.
pub fn arm(planned: &PlannedFault) -> Option<Box<dyn InjectableFault>> {
    match mechanism_of(planned) {
        FaultMechanism::Injects(fault) => Some(fault),
        FaultMechanism::EndsTarget(_) | FaultMechanism::None => None,
    }
}

/// Arms a fault that ends the target. Returns `None` for any other.
pub fn arm_ending(planned: &PlannedFault) -> Option<Box<dyn EndingFault>> {
    match mechanism_of(planned) {
        FaultMechanism::EndsTarget(fault) => Some(fault),
        FaultMechanism::Injects(_) | FaultMechanism::None => None,
    }
}

/// Lets each fault change a data file before it is submitted to the target.
///
/// # Errors
/// If the file cannot be changed as a fault states.
pub fn alter_submitted_file(faults: &[PlannedFault], file: &Path) -> Result<(), FaultError> {
    faults.iter().filter_map(arm).try_for_each(|fault| fault.alter_submitted_file(file))
}
