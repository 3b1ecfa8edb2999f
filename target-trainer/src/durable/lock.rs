//! A lock on a file, for one process at a time. The lock ends with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::DurableError;
use super::lock_holders::let_heirs_go_on;

/// How long [`lock`] retries while another process holds the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// After this time, and as long again each time, [`lock`] looks whether processes that have inherited the lock are
/// stopped.
const HEIR_CHECK_INTERVAL: Duration = Duration::from_millis(500);

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
    let mut check_heirs_at = Instant::now() + HEIR_CHECK_INTERVAL;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // The child of a killed daemon may still hold it, between fork and exec.
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                if Instant::now() >= check_heirs_at {
                    check_heirs_at += HEIR_CHECK_INTERVAL;
                    let_heirs_go_on(&file, noted_owner(path)).map_err(DurableError::new("read", path))?;
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

/// The process that has taken the lock last, if its note tells it.
fn noted_owner(path: &Path) -> Option<i32> {
    let note = std::fs::read_to_string(path).ok()?;
    note.strip_prefix("pid ")?.split(|end: char| !end.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    /// A process that has inherited the lock and is stopped. When it goes on, it gives it up.
    fn stopped_heir(lock: File) -> Child {
        let heir = Command::new("sh").args(["-c", "kill -STOP $$"]).stdin(Stdio::from(lock)).spawn().unwrap();
        let status = format!("/proc/{}/status", heir.id());
        let is_stopped = || std::fs::read_to_string(&status).unwrap().contains("State:\tT");
        while !is_stopped() {
            std::thread::sleep(LOCK_RETRY_INTERVAL);
        }
        heir
    }

    #[test]
    fn a_stopped_child_of_a_dead_owner_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut dead = Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let mut heir = stopped_heir(lock(&path, &format!("pid {}\n", dead.id())).unwrap());
        drop(lock(&path, "pid 1\n").unwrap());
        assert!(heir.wait().unwrap().success());
    }

    #[test]
    fn a_stopped_owner_keeps_the_lock_and_stays_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut owner = stopped_heir(lock(&path, "").unwrap());
        // Without a note, nobody knows who has taken it.
        for note in [String::new(), format!("pid {}\n", owner.id())] {
            std::fs::write(&path, &note).unwrap();
            let refused = lock(&path, "pid 1\n");
            assert!(matches!(&refused, Err(LockError::HeldBy(holder)) if *holder == note), "{refused:?}");
        }
        kill(Pid::from_raw(owner.id().cast_signed()), Signal::SIGKILL).unwrap();
        assert_eq!(owner.wait().unwrap().signal(), Some(9));
    }
}
