//! The table of all faults, and one file for each fault or family of faults: its keys in a scenario file,
//! their checks, and what it tells the rest of Trainwreck about itself. Knows nothing of how a fault is
//! injected.

mod bound_port;
mod call;
mod call_injection;
pub(crate) mod checker;
mod clock;
mod crash;
mod crash_model;
mod crash_states;
mod damage_files;
mod data_kind;
mod disk;
mod environment;
mod file_selection;
mod file_system;
mod flip_memory;
mod gpu_call;
mod gpu_injection;
mod gpu_state;
mod http_request;
pub(crate) mod keys;
mod landlock;
mod limits;
mod measurements;
mod memory_limit;
mod plant;
mod poison_sample;
mod proc_file;
mod read_only;
mod run_command;
mod signal;
mod spec;
pub(crate) mod target_need;
mod vanish;

use schemars::JsonSchema;
use serde::Deserialize;

use checker::Checker;
use keys::CommonKeys;
use spec::CheckEffect;

pub use bound_port::BoundPort;
pub use call::{DelayCall, FailCall, ShortCall, SwapFile, SweepErrno};
pub use call_injection::{CallInjection, CallSite, Replacement};
pub use clock::{Clock, ClockChange};
pub use crash::{Crash, KillPoint};
pub use crash_model::{CrashModel, CrashStates};
pub use damage_files::{DamageFiles, FileDamage, FilePart, NewestCount};
pub use data_kind::{DataKind, HexBytes};
pub use disk::{ExhaustInodes, FillDisk, PAGE_BYTES};
pub use environment::Environment;
pub use file_selection::FileSelection;
pub use file_system::FileSystem;
pub use flip_memory::FlipMemory;
pub use gpu_call::{GpuError, GpuFlipBit, GpuFragment, GpuHang, GpuOverwrite};
pub use gpu_injection::{GpuCallTrigger, GpuInjection};
pub use gpu_state::GpuState;
pub use http_request::{ClientAct, HttpRequest};
pub use landlock::{DeniedRight, Landlock};
pub use limits::{Limits, ProcessCount, ResourceLimit};
pub use measurements::Measurements;
pub use memory_limit::{MemoryCap, MemoryLimit};
pub use plant::{FileEncoding, Plant, PlantedContent, PlantedFile, SpecialFile, WriteStyle};
pub use poison_sample::PoisonSample;
pub use proc_file::ProcFile;
pub use read_only::ReadOnly;
pub use run_command::{CommandToRun, RunCommand};
pub use signal::{SentSignal, Signal, SignalName, SignalRecipient};
pub use spec::{EffectSpec, GpuNeed};
pub use vanish::Vanish;

/// Makes the types of a fault of any kind from the table: its key in a scenario file, its type, and the type
/// of its keys. The doc comments are the editor's help.
macro_rules! effects {
    ($($(#[$doc:meta])* $key:literal => $name:ident($draft:path),)*) => {
        /// A fault. Its single key names what is done.
        #[derive(Debug, Deserialize, JsonSchema)]
        pub(crate) enum FaultDraft {
            $($(#[$doc])* #[serde(rename = $key)] $name($draft),)*
        }

        impl FaultDraft {
            /// The keys that every fault has.
            pub(crate) fn common(&self) -> CommonKeys<'_> {
                match self {
                    $(FaultDraft::$name(draft) => draft.common(),)*
                }
            }

            /// The checked fault. It is only valid if no problem is added.
            pub(crate) fn check(&self, checker: &mut Checker) -> Effect {
                match self {
                    $(FaultDraft::$name(draft) => Effect::$name(draft.check(checker)),)*
                }
            }
        }

        /// What a fault does.
        #[derive(Debug, Clone)]
        pub enum Effect {
            $($(#[$doc])* $name($name),)*
        }

        impl Effect {
            /// Its key in a scenario file.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Effect::$name(_) => $key,)*
                }
            }

            /// What it tells about itself.
            pub fn spec(&self) -> &dyn EffectSpec {
                match self {
                    $(Effect::$name(effect) => effect,)*
                }
            }

            /// The fault with each of its own choices made, one trial each: each of several signals, each
            /// number of free pages. `measured`: by the baseline run.
            pub fn choices(&self, measured: Measurements<'_>) -> Vec<Effect> {
                match self {
                    $(Effect::$name(effect) => {
                        effect.choices(measured).into_iter().map(Effect::$name).collect()
                    })*
                }
            }
        }
    };
}

effects! {
    /// Kills every process of the target at once with SIGKILL, then resumes the target.
    "crash" => Crash(crash::CrashDraft),
    /// Sends a signal: TERM as a scheduler does before it kills, or STOP, followed by CONT.
    "signal" => Signal(signal::SignalDraft),
    /// Makes the place's tmpfs too small for what comes next: ENOSPC.
    "fill-disk" => FillDisk(disk::FillDiskDraft),
    /// Leaves the place's tmpfs without a free inode: ENOSPC although bytes are free.
    "exhaust-inodes" => ExhaustInodes(disk::ExhaustInodesDraft),
    /// Puts a place on another file system: one that ignores case, or that has coarse times.
    "file-system" => FileSystem(file_system::FileSystemDraft),
    /// Makes the place read-only: EROFS.
    "read-only" => ReadOnly(read_only::ReadOnlyDraft),
    /// Gives the target less memory than it needs, so that it is OOM-killed: by the kernel in a memory
    /// cgroup, or by Trainwreck where this machine does not allow one.
    "memory-limit" => MemoryLimit(memory_limit::MemoryLimitDraft),
    /// Gives the target less of a resource than it needs: open files, processes, or the size of a file.
    "limits" => Limits(limits::LimitsDraft),
    /// Starts the target under a policy of the kernel that denies calls below the root: EACCES although the modes of the
    /// files allow them, as with SELinux or AppArmor.
    "landlock" => Landlock(landlock::LandlockDraft),
    /// Starts the target with other variables, another umask, fewer processors or without a standard stream, or leaves
    /// its output unread.
    "environment" => Environment(environment::EnvironmentDraft),
    /// Gives the target another wall clock: set back, set ahead, or set to a time.
    "clock" => Clock(clock::ClockDraft),
    /// Runs commands beside the target, once or several times at once, or a second copy of the target.
    "run-command" => RunCommand(run_command::RunCommandDraft),
    /// Listens at a port that the target wants, as another program does.
    "bound-port" => BoundPort(bound_port::BoundPortDraft),
    /// Asks a server that is a part of the target, with well-formed requests or others, or connects to it and says
    /// nothing.
    "http-request" => HttpRequest(http_request::HttpRequestDraft),
    /// Puts files into a place: with hostile contents or names, of another kind, or by a slow writer.
    "plant" => Plant(plant::PlantDraft),
    /// Lets the target read another text in a file of `/proc`, as on a machine that swaps. The machine itself stays
    /// as it is.
    "proc-file" => ProcFile(proc_file::ProcFileDraft),
    /// Damages files of the target where they lie: flips a bit, truncates, zeroes, empties, removes, swaps, mixes
    /// two generations, renames or ages them.
    "damage-files" => DamageFiles(damage_files::DamageFilesDraft),
    /// Flips one bit in the memory of the target's processes, in their copies of what a file holds.
    "flip-memory" => FlipMemory(flip_memory::FlipMemoryDraft),
    /// Puts files into a place and removes them after the target has listed them and before it opens them.
    "vanish" => Vanish(vanish::VanishDraft),
    /// Gives one sample of each submitted file a weight with which its loss overflows.
    "poison-sample" => PoisonSample(poison_sample::PoisonSampleDraft),
    /// Makes a file system call fail. With `persistence: persistent` each later matching call fails too,
    /// until the target has exited by itself.
    "fail-call" => FailCall(call::FailCallDraft),
    /// Makes a read or a write transfer fewer bytes than requested, as after a signal, on a full disk or on a
    /// network file system.
    "short-call" => ShortCall(call::ShortCallDraft),
    /// Makes a file system call take long. Other calls go on meanwhile.
    "delay-call" => DelayCall(call::DelayCallDraft),
    /// Replaces the file at a path just before a call uses it: a race between check and use.
    "swap-file" => SwapFile(call::SwapFileDraft),
    /// Makes each matching call fail with each errno that it can plausibly return, once (transient) and from
    /// then on (persistent), one trial each.
    "sweep-errno" => SweepErrno(call::SweepErrnoDraft),
    /// Records one undisturbed run, rebuilds each file tree that a crash in it may leave, and resumes the
    /// target from it, one trial each.
    "crash-states" => CrashStates(crash_states::CrashStatesDraft),
    /// Makes a call of the GPU driver fail.
    "gpu-error" => GpuError(gpu_call::GpuErrorDraft),
    /// Makes a GPU kernel run forever, so that every wait for it hangs.
    "gpu-hang" => GpuHang(gpu_call::GpuHangDraft),
    /// Overwrites a value in the output of a kernel. Simulated GPU only.
    "gpu-overwrite" => GpuOverwrite(gpu_call::GpuOverwriteDraft),
    /// Flips one bit in the largest allocation of GPU memory. Simulated GPU only.
    "gpu-flip-bit" => GpuFlipBit(gpu_call::GpuFlipBitDraft),
    /// Fragments the free GPU memory: a large allocation fails although enough memory is free. Simulated GPU
    /// only.
    "gpu-fragment" => GpuFragment(gpu_call::GpuFragmentDraft),
    /// Changes what the GPU reports about itself: lost, hot, throttled, memory errors, XIDs. Lasts from when
    /// the fault is injected until it is reverted.
    "gpu-state" => GpuState(gpu_state::GpuStateDraft),
}
