//! A lock on a file, for one process at a time. The lock ends with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::DurableError;
use super::lock_holders::continue_stopped_children;

/// How long [`lock`] retries while another process holds the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// After this time, and as long again each time, [`lock`] looks whether processes that have inherited the lock are
/// stopped.
const CHILD_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Why a file could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock. The text is the note of that process.
    #[error("locked by another process ({0})")]
    HeldBy(String),
    /// The file can't be opened, locked or written.
    #[error(transparent)]
    Disk(#[from] DurableError),
}

/// Locks a file until the returned value is dropped, and writes `note` into it.
///
/// # Errors
/// If another process still holds the lock after two seconds, or the file can't be opened, locked or written.
pub fn lock(path: &Path, note: &str) -> Result<File, LockError> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path);
    let file = open.map_err(DurableError::new("open", path))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    let mut check_children_at = Instant::now() + CHILD_CHECK_INTERVAL;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // The child of a killed daemon may still hold it, between fork and exec.
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                if Instant::now() >= check_children_at {
                    check_children_at += CHILD_CHECK_INTERVAL;
                    continue_stopped_children(&file).map_err(DurableError::new("read", path))?;
                }
                std::thread::sleep(LOCK_RETRY_INTERVAL)
            }
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::HeldBy(std::fs::read_to_string(path).unwrap_or_default()));
            }
            Err(TryLockError::Error(error)) => return Err(DurableError::new("lock", path)(error).into()),
        }
    }
    // Only the lock counts. The note is for people.
    let written = file.set_len(0).and_then(|()| (&file).write_all(note.as_bytes()));
    written.map_err(DurableError::new("write", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// A stopped process that has this file open as its standard input. When it goes on, it ends.
    fn stopped_with(file: File) -> Child {
        let child =
            Command::new("sh").args(["-c", "kill -STOP $$"]).stdin(Stdio::from(file)).spawn().unwrap();
        while !is_stopped(&child) {
            std::thread::sleep(LOCK_RETRY_INTERVAL);
        }
        child
    }

    fn is_stopped(child: &Child) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        status.contains("State:\tT")
    }

    fn end(mut child: Child) {
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn a_stopped_child_of_a_dead_owner_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        // Another process that only reads the file is none of the lock's.
        let reader = stopped_with(File::create(&path).unwrap());
        let mut child = stopped_with(lock(&path, "").unwrap());
        drop(lock(&path, "pid 1\n").unwrap());
        assert!(child.wait().unwrap().success());
        assert!(is_stopped(&reader));
        end(reader);
    }

    #[test]
    fn a_stopped_owner_keeps_the_lock_and_stays_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "somebody").unwrap();
        // It takes the lock itself, and runs a command that stops it.
        let owner = Command::new("flock").arg(&path).args(["-c", "kill -STOP $PPID"]).spawn().unwrap();
        while !is_stopped(&owner) {
            std::thread::sleep(LOCK_RETRY_INTERVAL);
        }
        let refused = lock(&path, "pid 1\n");
        assert!(matches!(&refused, Err(LockError::HeldBy(holder)) if holder == "somebody"), "{refused:?}");
        assert!(is_stopped(&owner));
        end(owner);
        drop(lock(&path, "pid 1\n").unwrap());
    }
}
