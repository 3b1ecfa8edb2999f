//! Trainwreck's engine: runs a trainer in a sandbox, injects faults, and judges how it recovers. It prints
//! nothing: it emits events and returns values.
//!
//! From the ground up: `file_error`, `locks`, `seccomp`, `landlock` and `announcements` serve all others. `sandbox`, `gate`, `judge` and
//! `observe` know none of their neighbours. Above them are `explore`, `plan`, `target`, `gpu` and `faults`,
//! then `run`.

/// What a target announces in its output.
pub mod announcements;
/// Records a trainer's file operations and tries the crash states that they may leave.
pub mod explore;
/// The faults: how each is armed, injected and reverted.
pub mod faults;
/// The error of one file operation.
pub mod file_error;
/// Intercepts and alters the target's system calls.
pub mod gate;
/// The shim in place of the GPU driver, as seen by the harness.
pub mod gpu;
/// Derives outcomes and verdicts from recorded facts.
pub mod judge;
/// Rules of Landlock, under which a sandbox starts programs and the gate makes calls.
pub mod landlock;
/// Access to a mutex whose holder may have panicked.
pub mod locks;
/// Events of a run, and who receives them.
pub mod observe;
/// Expands a scenario into trials.
pub mod plan;
/// Runs scenarios, trial by trial.
pub mod run;
/// Namespaces, mounts and limits around a target.
pub mod sandbox;
/// Seccomp programs, as data that the gate builds and a sandbox installs.
pub mod seccomp;
/// Starts a target and understands its output.
pub mod target;

#[cfg(not(target_os = "linux"))]
compile_error!("trainwreck runs only on Linux: its faults need namespaces, cgroups, seccomp and inotify");
