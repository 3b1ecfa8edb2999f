//! How many processes and threads a user has, which `ulimit -u` (RLIMIT_NPROC) limits. What this process cannot see in
//! `/proc` is not counted.

use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::getuid;

use super::condition::Finding;
use super::limited_use::LimitedUse;
use crate::bounded_read::read_regular;

/// Largest `/proc/PID/status` that is read. Those of usual kernels have less than 2 KiB.
const MAX_STATUS_BYTES: u64 = 1 << 14;
/// Processes that are looked at, at most.
const MAX_PROCESSES: usize = 1 << 15;

/// The use of this process's limit. `None`: there is no limit, or `/proc` can't be read.
pub(super) fn user_processes() -> Option<Finding> {
    let (max, _) = getrlimit(Resource::RLIMIT_NPROC).ok()?;
    if max == RLIM_INFINITY {
        return None;
    }
    let used = count(Path::new("/proc"), getuid().as_raw())?;
    Some(LimitedUse { used, max }.finding("processes and threads of this user"))
}

/// The threads of all processes below `proc` that run for this user.
fn count(proc: &Path, user: u32) -> Option<u64> {
    let entries = std::fs::read_dir(proc).ok()?.flatten();
    let processes =
        entries.filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let statuses = processes
        .take(MAX_PROCESSES)
        .filter_map(|entry| read_regular(&entry.path().join("status"), MAX_STATUS_BYTES).ok());
    Some(statuses.filter_map(|text| threads_of(&text, user)).sum())
}

/// The number of threads in a `/proc/PID/status`, if its process runs for this user.
fn threads_of(status: &[u8], user: u32) -> Option<u64> {
    let lines = || status.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    let first_word =
        |key: &str| lines().find_map(|line| line.strip_prefix(key)?.split_ascii_whitespace().next());
    let real_user: u32 = first_word("Uid:")?.parse().ok()?;
    (real_user == user).then(|| first_word("Threads:")?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_processes_of_one_user_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let status = |user: &str, threads: &str| {
            format!("Name:\tThreads:\nUid:\t{user}\t0\t0\t0\nThreads:\t{threads}\nSigQ:\t1/2\n")
        };
        for (pid, text) in [
            ("1", status("7", "3")),
            ("20", status("8", "100")),
            ("300", status("7", "40")),
            ("4000", "Uid:\t7\n".into()),
            ("50000", status("7", "no number")),
            ("self", status("7", "1000")),
        ] {
            std::fs::create_dir(dir.path().join(pid)).unwrap();
            std::fs::write(dir.path().join(pid).join("status"), text).unwrap();
        }
        std::fs::create_dir(dir.path().join("6")).unwrap();
        std::fs::write(dir.path().join("7"), "a file").unwrap();
        assert_eq!(count(dir.path(), 7), Some(43));
        assert_eq!(count(dir.path(), 9), Some(0));
        assert_eq!(count(&dir.path().join("none"), 7), None);
    }

    #[test]
    fn own_threads_are_counted() {
        let (ended, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..5).map(|_| scope.spawn(|| drop(wait.lock().map(|wait| wait.recv())))).collect();
            assert!(count(Path::new("/proc"), getuid().as_raw()) >= Some(6));
            drop(ended);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }
}
