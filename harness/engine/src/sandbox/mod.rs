//! Builds a sandbox for a target and guarantees that nothing in it outlives the harness: namespaces, mounts,
//! memory limits. Knows none of its neighbours.
//!
//! Each sandbox has an init process: our own binary, started as pid 1 of a pid namespace, with its own user,
//! mount and IPC namespaces. When init ends, for whatever reason, the kernel kills every process in the
//! sandbox. Init ends when its socket to the harness is closed, so killing the harness also ends its
//! sandboxes.

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
pub use protocol::{
    BindMount, CompletedCommand, LaunchSpec, MountChange, ProcessExit, SeccompFilter, check_packet_round_trip,
};
pub use rundir::{RemovedLeftover, RunDir, remove_leftovers};

/// First argument that makes our own binary run as a sandbox's init.
const INIT_ARGUMENT: &str = "__sandbox-init";
/// First argument that makes our own binary run as a memory balloon.
const BALLOON_ARGUMENT: &str = "__balloon";

/// Why a sandbox could not be built, used or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// An operation on a file failed.
    #[error("could not {doing} `{path}`: {error}", path = .path.display())]
    File { doing: &'static str, path: PathBuf, error: std::io::Error },
    /// A system call failed.
    #[error("could not {doing}: {error}")]
    System { doing: &'static str, error: std::io::Error },
    /// The sandbox's init reported a failure.
    #[error("the sandbox's init could not {doing}: {detail}")]
    Init { doing: String, detail: String },
    /// The sandbox's init ended, or did not reply in time.
    #[error("the sandbox's init does not reply any more; was it killed?")]
    InitGone,
    /// The directory for runs can be changed by other users.
    #[error(
        "`{path}` is a link, belongs to another user, or is writable for others; remove it, or set TMPDIR \
         to a directory of your own",
        path = .path.display()
    )]
    NotOwned { path: PathBuf },
    /// Processes survived SIGKILL.
    #[error(
        "processes in the sandbox did not end within {seconds} s of SIGKILL; are they stuck in the kernel?"
    )]
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

/// Runs as a sandbox's init or balloon, and never returns, if this process was started as one.
///
/// `main` must call it before anything else, in each binary that builds sandboxes.
pub fn run_init_if_requested() {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(argument) if argument == INIT_ARGUMENT => init::main(),
        Some(argument) if argument == BALLOON_ARGUMENT => balloon::main(),
        _ => {}
    }
}
