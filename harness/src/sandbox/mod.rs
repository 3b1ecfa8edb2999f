//! Builds a room to wreck and guarantees its end: namespaces, mounts, memory limits. Knows none of its neighbours.
//!
//! Each room has a warden: our own binary started anew as pid 1 of a pid namespace, in a user and a mount namespace of
//! its own. When the warden ends, for whatever reason, the kernel ends everything in the room. It ends when the
//! socket to the harness closes, so a harness that is killed takes its rooms with it.

mod balloon;
mod cgroup;
mod fork_server;
mod handle;
mod init;
mod mechanisms;
mod memory;
mod mounts;
mod processes;
mod protocol;
mod run_command;
mod rundir;
mod sys;

use std::path::PathBuf;

pub use handle::{
    AppliedMountChange, FileSystemSpace, KillSwitch, Sandbox, SandboxSpec, SpawnedProcess, TmpfsSpec,
};
pub use mechanisms::doctor;
pub use memory::ActiveMemoryLimit;
pub use processes::ProcessInfo;
pub use protocol::{BindMount, CompletedCommand, LaunchSpec, MountChange, ProcessExit, SeccompFilter};
pub use rundir::{RemovedLeftover, RunDir, remove_leftovers};

/// First argument with which our own binary becomes a warden.
const INIT_ARGUMENT: &str = "__warden";
/// First argument with which it becomes a balloon.
const BALLOON_ARGUMENT: &str = "__balloon";

/// Why a room could not be built or used.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    #[error("could not {doing}: {error}")]
    System { doing: &'static str, error: std::io::Error },
    #[error("the warden could not {doing}: {detail}")]
    Init { doing: String, detail: String },
    #[error("the warden of the room is gone; was it killed?")]
    InitGone,
    #[error("`{path}` belongs to somebody else or is a link; remove it, or set TMPDIR to a folder of yours", path = .path.display())]
    NotOwned { path: PathBuf },
    #[error("processes of the room did not die within {seconds} s of SIGKILL: are they stuck in the kernel?")]
    Unkillable { seconds: u64 },
}

impl SandboxError {
    fn file(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> SandboxError {
        let path = path.to_path_buf();
        move |error| SandboxError::File { doing, path, error }
    }

    fn system<E: Into<std::io::Error>>(doing: &'static str) -> impl FnOnce(E) -> SandboxError {
        move |error| SandboxError::System { doing, error: error.into() }
    }
}

/// To be called first thing in `main`: where this process was started as a part of a room, it never returns.
pub fn run_init_if_requested() {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(word) if word == INIT_ARGUMENT => init::main(),
        Some(word) if word == BALLOON_ARGUMENT => balloon::main(),
        _ => {}
    }
}
