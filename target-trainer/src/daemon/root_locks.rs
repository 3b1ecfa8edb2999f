//! The locks with which one daemon has a root, and the place of its checkpoints, for itself.

use std::fs::File;
use std::path::Path;

use super::daemon_config::DaemonConfig;
use super::error::DaemonError;
use crate::durable::{self, LockError};

/// Locks the root. `None`: a guard is off.
///
/// # Errors
/// If another daemon uses the root, or the lock file can't be opened, locked or written.
pub(super) fn lock_root(config: &DaemonConfig<'_>) -> Result<Option<File>, DaemonError> {
    let (path, guards) = (config.layout.lock(), &config.settings.guards);
    let locked_by = |holder: &str| DaemonError::Locked {
        root: config.layout.root().into(),
        holder: holder.trim().into(),
    };
    if !guards.kernel_lock
        && let Some(holder) = noted_holder(&path)
    {
        return Err(locked_by(&holder));
    }
    let note = format!("pid {}\n", std::process::id());
    let lock = guards.root_lock.then(|| durable::lock(&path, &note));
    lock.transpose().map_err(|error| match error {
        LockError::HeldBy(note) => locked_by(&note),
        LockError::Disk(error) => DaemonError::Disk(error),
    })
}

/// The note in the lock file, if a process has the number in it. Only for the guard `kernel_lock`.
fn noted_holder(lock: &Path) -> Option<String> {
    let note = std::fs::read_to_string(lock).ok()?;
    let pid: u32 = note.trim().strip_prefix("pid ")?.parse().ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(note)
}

/// Locks a checkpoint directory that the settings name.
///
/// # Errors
/// If the daemon of another root uses it, or it can't be locked.
pub(super) fn lock_checkpoints(path: &Path, root: &Path) -> Result<File, DaemonError> {
    let note = format!("pid {} of `{}`\n", std::process::id(), root.display());
    durable::lock(path, &note).map_err(|error| match error {
        LockError::HeldBy(holder) => DaemonError::CheckpointsLocked {
            dir: path.parent().unwrap_or(path).into(),
            holder: holder.trim().into(),
        },
        LockError::Disk(error) => DaemonError::Disk(error),
    })
}
