//! Builds a sandbox for a target and guarantees that nothing in it outlives the harness: namespaces, mounts,
//! memory limits. Knows none of its neighbours.
//!
//! Each sandbox has an init process: our own binary, started as pid 1 of a pid namespace, with its own user,
//! mount, IPC and network namespaces. It sees the host through overlays: `host_view`. When init ends, for
//! whatever reason, the kernel kills every process in the sandbox. Init ends when its socket to the harness is
//! closed, so killing the harness also ends its sandboxes.
//!
//! On the ground `protocol` holds what the two sides say to each other, and `packet` carries it. The harness's
//! side is `handle`, above `init_client`, above `inbox`. `init` is the other side: it calls `init_setup` once, then
//! `init_requests`, above `command_runs`, above `run_command` and `fork_server`.

mod balloon;
mod beneath;
mod captured_output;
mod cgroup;
mod command_runs;
mod confinement;
mod error;
mod fork_server;
mod fuse_mounts;
mod handle;
mod hints;
mod host_access;
mod host_mounts;
mod host_view;
mod id_map;
mod inbox;
mod init;
mod init_children;
mod init_client;
mod init_error;
mod init_requests;
mod init_setup;
mod interruption;
mod kernel_objects;
mod launchable_command;
mod limits_filter;
mod mechanisms;
mod memory;
mod mounts;
mod output_pause;
mod overlay_layers;
mod overlay_mounts;
mod packet;
mod pass_through;
mod path_bytes;
mod private_root;
mod proc_files;
mod process_limits;
mod process_pipes;
mod processes;
mod protocol;
mod remove_tree;
mod run_command;
mod rundir;
mod spawn_request;
mod spawned_process;
mod start_changes;
mod sys;
mod unmapped_files;
mod watched_lines;

pub use beneath::OpenDirectory;
pub use cgroup::Controller;
pub use confinement::Confinement;
pub use error::SandboxError;
pub use handle::{
    AppliedMountChange, FileSystemSpace, PlantedProcFile, RunTimes, Sandbox, SandboxSpec, TmpfsSpec,
    connect_to, listen_at,
};
pub use host_access::{HostAccess, NetworkAccess, current_dir, unused_top_directory};
pub use host_mounts::HostMounts;
pub use init_client::KillSwitch;
pub use interruption::{fail_if_interrupted, interrupt_sandboxes, is_interrupted};
pub use mechanisms::doctor;
pub use memory::ActiveMemoryLimit;
pub use output_pause::{OutputPause, UnreadBytes};
pub use packet::check_packet_round_trip;
pub use pass_through::{FileSystemServer, FileSystemTraits};
pub use process_limits::ActiveProcessCount;
pub use process_pipes::ProcessPipes;
pub use processes::{ProcessInfo, ProcessUse};
pub use protocol::{
    BindMount, CommandRunner, CompletedCommand, LaunchSpec, LimitedResource, MountChange, OverlayMount,
    ProcessExit, ProcessLimit, StartConditions, StoredCommand,
};
pub use remove_tree::remove_tree;
pub use rundir::{KeptLeftover, RemovedLeftover, RunDir, SweptLeftovers, remove_leftovers, runs_path};
pub use spawned_process::{ProcessOutputs, SpawnedProcess};
pub use start_changes::StartChanges;

use protocol::{BALLOON_ARGUMENT, FILE_SYSTEM_ARGUMENT, INIT_ARGUMENT};

/// Runs as a sandbox's init or balloon, or serves a file system, and never returns, if this process was started as one.
///
/// `main` must call it before anything else, in each binary that builds sandboxes.
pub fn run_init_if_requested() {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(argument) if argument == INIT_ARGUMENT => init::main(),
        Some(argument) if argument == BALLOON_ARGUMENT => balloon::main(),
        Some(argument) if argument == FILE_SYSTEM_ARGUMENT => pass_through::main(),
        _ => {}
    }
}
