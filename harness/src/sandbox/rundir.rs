//! A run's own folder, and the sweep of what a killed run left behind.
//!
//! A run's folder holds a file that its harness keeps locked. Where the lock is free, the run is dead: its processes
//! and mounts went with its wardens, its folders and cgroups are removed here.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::SandboxError;
use super::cgroup::{NAME_PREFIX, candidate_parents, remove_empty};

const OWNER_FILE: &str = "owner";

/// The folder of a run under way.
pub struct RunDir {
    path: PathBuf,
    _owner_file: File,
}

/// Something that a killed run had left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedLeftover {
    pub path: PathBuf,
}

impl std::fmt::Display for RemovedLeftover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl RunDir {
    /// A new one, below TMPDIR or /tmp.
    pub fn create() -> Result<RunDir, SandboxError> {
        let top = runs_dir()?;
        for number in 0u32.. {
            let path = top.join(format!("run-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(SandboxError::file("create", &path)(error)),
                Ok(()) => return RunDir::lock(path),
            }
        }
        Err(SandboxError::file("create a folder in", &top)(std::io::Error::other("every name is taken")))
    }

    fn lock(path: PathBuf) -> Result<RunDir, SandboxError> {
        let owner = path.join(OWNER_FILE);
        let file = File::create_new(&owner).map_err(SandboxError::file("create", &owner))?;
        file.lock().map_err(SandboxError::file("lock", &owner))?;
        Ok(RunDir { path, _owner_file: file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it.
    pub fn close(self) -> Result<(), SandboxError> {
        std::fs::remove_dir_all(&self.path).map_err(SandboxError::file("remove", &self.path))
    }
}

/// Our own folder in the temporary one: nobody else's, and no link.
fn runs_dir() -> Result<PathBuf, SandboxError> {
    let path = std::env::temp_dir().join(format!("trainwreck-{}", geteuid()));
    match DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(SandboxError::file("create", &path)(error))
        }
        _ => {
            let facts = path.symlink_metadata().map_err(SandboxError::file("look at", &path))?;
            let ours = facts.is_dir() && facts.uid() == geteuid().as_raw() && facts.mode() & 0o022 == 0;
            if ours { Ok(path) } else { Err(SandboxError::NotOwned { path }) }
        }
    }
}

/// Sweeps what killed runs left behind.
pub fn remove_leftovers() -> Result<Vec<RemovedLeftover>, SandboxError> {
    let top = runs_dir()?;
    let mut swept = Vec::new();
    for entry in std::fs::read_dir(&top).map_err(SandboxError::file("read", &top))?.flatten() {
        if !entry.file_name().to_string_lossy().starts_with("run-") {
            continue;
        }
        let Some(_sweeping) = lock_if_abandoned(&entry.path()) else { continue };
        match std::fs::remove_dir_all(entry.path()) {
            // Another sweeper was there first.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => {
                removed.map_err(SandboxError::file("remove", &entry.path()))?;
                swept.push(RemovedLeftover { path: entry.path() });
            }
        }
    }
    swept.extend(remove_abandoned_cgroups()?);
    Ok(swept)
}

/// What shows that a run's harness is gone; where it is its owner's lock, it is held from now on, so that of several who sweep only one does.
/// A folder without an owner's file is one that its harness is about to lock, or that is being swept: left alone unless it is old.
fn lock_if_abandoned(run: &Path) -> Option<Option<File>> {
    let owner = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(run.join(OWNER_FILE));
    match owner {
        Ok(file) => file.try_lock().is_ok().then_some(Some(file)),
        Err(_) => {
            let modified = run.symlink_metadata().and_then(|facts| facts.modified()).ok();
            let age = modified.and_then(|time| time.elapsed().ok());
            age.filter(|age| age.as_secs() > 60).map(|_| None)
        }
    }
}

/// Cgroups of ours whose maker is gone. They are empty, since its wardens went with it.
fn remove_abandoned_cgroups() -> Result<Vec<RemovedLeftover>, SandboxError> {
    let ours = format!("{NAME_PREFIX}{}-", geteuid());
    let mut swept = Vec::new();
    for (parent, _) in candidate_parents() {
        for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let maker = name.strip_prefix(&ours).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                remove_empty(&entry.path())?;
                swept.push(RemovedLeftover { path: entry.path() });
            }
        }
    }
    Ok(swept)
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
