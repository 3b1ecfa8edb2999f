//! A lock on a file, for one process at a time. The lock ends with the process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::DurableError;

/// How long [`lock`] retries while another process holds the lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);

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
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // The child of a killed daemon may still hold it, between fork and exec.
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
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
