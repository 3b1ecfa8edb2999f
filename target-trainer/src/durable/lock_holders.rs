//! Which processes hold the lock of a file. A process that is stopped between fork and exec has inherited the lock of
//! the daemon that started it, and keeps it when that daemon is dead.

use std::fs::{File, Metadata};
use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that holds the lock.
struct LockHolder {
    pid: i32,
    /// It has taken the lock itself. If not, it has inherited it.
    is_owner: bool,
}

/// Lets the stopped processes that have inherited the lock go on, so that they reach their exec, which closes the file.
/// Does nothing while the process holds it that has taken it.
///
/// # Errors
/// The metadata of the file cannot be read.
pub(super) fn continue_stopped_children(file: &File) -> Result<(), Error> {
    let metadata = file.metadata()?;
    let holders: Vec<LockHolder> = processes().filter_map(|pid| holder(pid, &metadata)).collect();
    if holders.iter().any(|holder| holder.is_owner) {
        return Ok(());
    }
    for pid in holders.into_iter().map(|holder| holder.pid).filter(|pid| is_stopped(*pid)) {
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

/// Whether a process of this user holds the lock. What those of others have open cannot be seen.
fn holder(pid: i32, file: &Metadata) -> Option<LockHolder> {
    let descriptors = std::fs::read_dir(proc_path(pid, "fd")).into_iter().flatten().flatten();
    let is_the_file = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|opened| (opened.dev(), opened.ino()) == (file.dev(), file.ino()))
    };
    let infos = descriptors
        .filter(|entry| is_the_file(&entry.path()))
        .filter_map(|entry| std::fs::read_to_string(proc_path(pid, "fdinfo").join(entry.file_name())).ok());
    let owner = infos.filter_map(|info| owner_of_flock(&info)).next()?;
    Some(LockHolder { pid, is_owner: owner == pid })
}

/// The process that has taken the lock, from a line such as `lock: 1: FLOCK  ADVISORY  WRITE 123 08:02:5 0 EOF`. It is
/// there only for the descriptors that hold the lock: the one with which it was taken, and those inherited from it.
fn owner_of_flock(fdinfo: &str) -> Option<i32> {
    let locks = fdinfo.lines().filter_map(|line| line.strip_prefix("lock:"));
    let mut flocks = locks.filter_map(|lock| {
        let words: Vec<&str> = lock.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, owner, ..] => owner.parse().ok(),
            _ => None,
        }
    });
    flocks.next()
}

/// Whether a signal has stopped it, and no debugger.
fn is_stopped(pid: i32) -> bool {
    let status = std::fs::read_to_string(proc_path(pid, "status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tT"))
}

fn proc_path(pid: i32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_flock_is_told_by_the_kernel() {
        let taken = "pos:\t0\nflags:\t0100002\nlock:\t1: FLOCK  ADVISORY  WRITE 123 08:02:5 0 EOF\n";
        assert_eq!(owner_of_flock(taken), Some(123));
        assert_eq!(owner_of_flock("pos:\t0\nlock:\t1: POSIX  ADVISORY  WRITE 123 08:02:5 0 EOF\n"), None);
        assert_eq!(owner_of_flock("pos:\t0\n"), None);
    }
}
