//! The temporary directory of a run, and the removal of what killed runs have left behind.
//!
//! A run's directory contains a file that its harness keeps locked. If the lock is free, the harness has
//! ended. Its processes and mounts ended with its sandboxes' init processes; its directories and cgroups are
//! removed here.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::geteuid;

use super::cgroup::{NAME_PREFIX, candidate_parents, remove_empty};
use super::error::SandboxError;

/// The file that the harness keeps locked.
const OWNER_FILE: &str = "owner";

/// How old a directory without an owner file must be to count as abandoned.
const OWNERLESS_TIME: Duration = Duration::from_secs(60);

/// The directory of a run in progress. It stays locked until this value is dropped.
pub struct RunDir {
    path: PathBuf,
    _owner_file: File,
}

/// A directory that a killed run had left behind, and that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedLeftover {
    /// The removed directory or cgroup.
    pub path: PathBuf,
}

impl std::fmt::Display for RemovedLeftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl RunDir {
    /// Creates a directory below TMPDIR (default: /tmp).
    ///
    /// # Errors
    /// If it can't be created or locked, or if the directory above it belongs to another user.
    pub fn create() -> Result<RunDir, SandboxError> {
        let parent = runs_dir()?;
        for number in 0u32.. {
            let path = parent.join(format!("run-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(SandboxError::file("create", &path)(error)),
                Ok(()) => return RunDir::lock(path),
            }
        }
        Err(SandboxError::file("create a directory in", &parent)(std::io::Error::other(
            "all names are in use",
        )))
    }

    fn lock(path: PathBuf) -> Result<RunDir, SandboxError> {
        let owner = path.join(OWNER_FILE);
        let file = File::create_new(&owner).map_err(SandboxError::file("create", &owner))?;
        file.lock().map_err(SandboxError::file("lock", &owner))?;
        Ok(RunDir { path, _owner_file: file })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory.
    ///
    /// # Errors
    /// If it can't be removed.
    pub fn close(self) -> Result<(), SandboxError> {
        std::fs::remove_dir_all(&self.path).map_err(SandboxError::file("remove", &self.path))
    }
}

/// The parent directory of all runs of this user. Fails if it is a link, or if other users own it or can
/// write to it.
fn runs_dir() -> Result<PathBuf, SandboxError> {
    let path = std::env::temp_dir().join(format!("trainwreck-{}", geteuid()));
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(SandboxError::file("create", &path)(error))
        }
        _ => {
            let metadata =
                path.symlink_metadata().map_err(SandboxError::file("read the metadata of", &path))?;
            let is_ours =
                metadata.is_dir() && metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o022 == 0;
            if is_ours { Ok(path) } else { Err(SandboxError::NotOwned { path }) }
        }
    }
}

/// Removes the directories and cgroups that killed runs have left behind. Returns what it removed.
///
/// # Errors
/// If a leftover can't be removed, or if the directory for runs belongs to another user.
pub fn remove_leftovers() -> Result<Vec<RemovedLeftover>, SandboxError> {
    let parent = runs_dir()?;
    let mut leftovers = Vec::new();
    for entry in std::fs::read_dir(&parent).map_err(SandboxError::file("read", &parent))?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with("run-") {
            continue;
        }
        // Holds the run's lock until its directory has been removed.
        let Some(_abandoned) = lock_if_abandoned(&entry.path()) else { continue };
        match std::fs::remove_dir_all(entry.path()) {
            // Another process has removed it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => {
                removed.map_err(SandboxError::file("remove", &entry.path()))?;
                leftovers.push(RemovedLeftover { path: entry.path() });
            }
        }
    }
    leftovers.extend(remove_abandoned_cgroups()?);
    Ok(leftovers)
}

/// A run whose harness has ended. While this value exists, no other process removes the same run.
struct AbandonedRun {
    /// The owner file, locked. `None` if the directory has none.
    _locked_owner: Option<File>,
}

/// Returns `Some` if the harness of a run has ended. A directory without an owner file is about to be locked,
/// or is being removed. It counts as abandoned only after a while, and there is nothing to lock then.
fn lock_if_abandoned(run: &Path) -> Option<AbandonedRun> {
    let owner = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(run.join(OWNER_FILE));
    match owner {
        Ok(file) => file.try_lock().is_ok().then_some(AbandonedRun { _locked_owner: Some(file) }),
        Err(_) => {
            let modified = run.symlink_metadata().and_then(|metadata| metadata.modified()).ok();
            let age = modified.and_then(|time| time.elapsed().ok());
            age.filter(|age| *age > OWNERLESS_TIME).map(|_| AbandonedRun { _locked_owner: None })
        }
    }
}

/// Removes the cgroups of this user whose creator has ended. They are empty: its sandboxes ended with it.
fn remove_abandoned_cgroups() -> Result<Vec<RemovedLeftover>, SandboxError> {
    let prefix = format!("{NAME_PREFIX}{}-", geteuid());
    let mut leftovers = Vec::new();
    for parent in candidate_parents() {
        for entry in std::fs::read_dir(&parent.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let creator_pid =
                name.strip_prefix(&prefix).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            if creator_pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                remove_empty(&entry.path())?;
                leftovers.push(RemovedLeftover { path: entry.path() });
            }
        }
    }
    Ok(leftovers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_of_several_sweepers_gets_an_abandoned_run() -> Result<(), std::io::Error> {
        let run = tempfile::tempdir()?;
        std::fs::write(run.path().join(OWNER_FILE), "")?;
        let first = lock_if_abandoned(run.path());
        assert!(first.is_some() && lock_if_abandoned(run.path()).is_none());
        drop(first);
        assert!(lock_if_abandoned(run.path()).is_some());
        Ok(())
    }
}
