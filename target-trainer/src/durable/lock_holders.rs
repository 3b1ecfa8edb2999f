//! Which processes have the file of a lock open. A process that is stopped between fork and exec has it from the
//! daemon that started it, and keeps it when that daemon is dead.

use std::fs::{File, Metadata};
use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Lets the stopped processes that have the file open go on, so that they reach their exec, which closes it. Does
/// nothing while `owner` has it open, the process that has taken the lock.
///
/// # Errors
/// The metadata of the file cannot be read.
pub(super) fn let_heirs_go_on(file: &File, owner: Option<i32>) -> Result<(), Error> {
    let metadata = file.metadata()?;
    let own = std::process::id().cast_signed();
    let holders: Vec<i32> = processes().filter(|pid| *pid != own && has_open(*pid, &metadata)).collect();
    if owner.is_none_or(|owner| holders.contains(&owner)) {
        return Ok(());
    }
    for pid in holders.into_iter().filter(|pid| is_stopped(*pid)) {
        tracing::warn!("process {pid} was stopped while the daemon that is dead now started it; it goes on");
        // If it has ended meanwhile, the lock is free.
        let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
    }
    Ok(())
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process of this user has the file open. Those of others cannot be seen.
fn has_open(pid: i32, file: &Metadata) -> bool {
    let descriptors = std::fs::read_dir(proc_path(pid, "fd")).into_iter().flatten().flatten();
    descriptors
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .any(|opened| (opened.dev(), opened.ino()) == (file.dev(), file.ino()))
}

/// Whether a signal has stopped it, and no debugger.
fn is_stopped(pid: i32) -> bool {
    let status = std::fs::read_to_string(proc_path(pid, "status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tT"))
}

fn proc_path(pid: i32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}
