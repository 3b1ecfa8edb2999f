//! The temporary directory of a run, and the removal of what killed runs have left behind.
//!
//! A run's directory contains a file that its harness keeps locked. If the lock is free, the harness has
//! ended. Its processes and mounts ended with its sandboxes' init processes; its directories and cgroups are
//! removed here. Another lock, on the directory around all runs, is held while a run's directory is created
//! and locked, and while it is decided which ones are abandoned: no harness sees another's half-made one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use super::cgroup::{creator_has_ended, remove_abandoned, sibling_cgroups};
use super::error::SandboxError;
use super::remove_tree::{remedy, remove_tree_keeping_last};

/// The beginning of the name of a directory of runs. The number of its user follows.
const RUNS_PREFIX: &str = "trainwreck-";
/// The file that the harness keeps locked.
const OWNER_FILE: &str = "owner";
/// The file beside all runs that is locked for moments.
const PARENT_LOCK_FILE: &str = "lock";
/// The names of the directories of runs, and of abandoned ones that are being removed.
const RUN_PREFIXES: [&str; 2] = ["run-", "dead-"];
/// How old a directory without an owner file must be to count as abandoned.
const OWNERLESS_TIME: Duration = Duration::from_secs(60);
/// How long to wait for the lock. Its holders need microseconds, but one of them may be stopped.
const PARENT_LOCK_WAIT: Duration = Duration::from_secs(5);
const PARENT_LOCK_POLL: Duration = Duration::from_millis(2);

/// The directory of a run in progress. It stays locked until this value is dropped.
pub struct RunDir {
    path: PathBuf,
    _owner_file: File,
}

/// A directory or cgroup that a killed run had left behind, and that was removed.
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

/// A directory or cgroup that a killed run had left behind, and that could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("could not remove what an earlier run left at `{path}`; {remedy}", path = .path.display())]
pub struct KeptLeftover {
    /// The directory or cgroup.
    pub path: PathBuf,
    /// What to do about it.
    pub remedy: String,
    /// Why it is still there.
    pub source: SandboxError,
}

impl KeptLeftover {
    fn new(path: PathBuf, source: SandboxError) -> KeptLeftover {
        let remedy = match &source {
            SandboxError::File(error) => remedy(&error.path, &error.source),
            _ => "remove it by hand".into(),
        };
        KeptLeftover { path, remedy, source }
    }
}

/// What was done about the leftovers of killed runs.
#[derive(Debug, Default)]
pub struct SweptLeftovers {
    /// What is gone.
    pub removed: Vec<RemovedLeftover>,
    /// What is still there. It harms no later run.
    pub kept: Vec<KeptLeftover>,
    /// Whether it was cancelled before the end.
    pub is_unfinished: bool,
}

impl SweptLeftovers {
    fn add(&mut self, path: PathBuf, removed: Result<(), SandboxError>) {
        match removed {
            Ok(()) => self.removed.push(RemovedLeftover { path }),
            Err(error) => self.kept.push(KeptLeftover::new(path, error)),
        }
    }
}

impl RunDir {
    /// Creates a directory below TMPDIR (default: /tmp).
    ///
    /// # Errors
    /// If it can't be created or locked, or if the directory above it belongs to another user.
    pub fn create() -> Result<RunDir, SandboxError> {
        let parent = runs_dir()?;
        let _lock = lock_parent(&parent)?;
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
    /// If something in it can't be removed. A later run tries that again.
    pub fn close(self) -> Result<(), KeptLeftover> {
        let removed = remove_tree_keeping_last(&self.path, Some(OsStr::new(OWNER_FILE)), &|| false);
        removed.map_err(|error| KeptLeftover::new(self.path.clone(), error))
    }
}

/// TMPDIR, or `/tmp` if that is not set or empty. Absolute.
fn temp_dir() -> PathBuf {
    let dir = std::env::temp_dir();
    let dir = if dir.as_os_str().is_empty() { PathBuf::from("/tmp") } else { dir };
    std::path::absolute(&dir).unwrap_or(dir)
}

/// TMPDIR without links.
fn real_temp_dir() -> PathBuf {
    let dir = temp_dir();
    dir.canonicalize().unwrap_or(dir)
}

/// The path of the directory in which all runs of this user build their sandboxes. It may not exist yet.
pub fn runs_path() -> PathBuf {
    real_temp_dir().join(format!("{RUNS_PREFIX}{}", geteuid()))
}

/// The directories in which the runs of all users build their sandboxes.
pub(super) fn runs_paths_of_all_users() -> Vec<PathBuf> {
    let is_runs = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix(RUNS_PREFIX).is_some_and(|uid| uid.parse::<u32>().is_ok())
    };
    // Another run may have another TMPDIR, or none.
    let dirs = BTreeSet::from([real_temp_dir(), "/tmp".into()]);
    let entries = dirs.into_iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).filter(is_runs).collect()
}

/// The parent directory of all runs of this user. Fails if it is a link, or if other users own it or can
/// write to it.
fn runs_dir() -> Result<PathBuf, SandboxError> {
    let path = runs_path();
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

/// Locks the directory around all runs until the returned value is dropped. `None`: whoever holds the lock
/// does not go on, so nobody decides meanwhile which runs are abandoned.
fn lock_parent(parent: &Path) -> Result<Option<File>, SandboxError> {
    let path = parent.join(PARENT_LOCK_FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.custom_flags(nix::libc::O_NOFOLLOW).open(&path);
    let file = file.map_err(SandboxError::file("open", &path))?;
    let deadline = Instant::now() + PARENT_LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(PARENT_LOCK_POLL);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(SandboxError::file("lock", &path)(error)),
        }
    }
}

/// Removes the directories and cgroups that killed runs have left behind, which takes minutes for millions of
/// files. What cannot be removed is returned too, and is no error. Once `is_cancelled` returns `true`, the rest
/// is left to the next run.
///
/// # Errors
/// If the directory for runs cannot be read, or belongs to another user.
pub fn remove_leftovers(is_cancelled: &dyn Fn() -> bool) -> Result<SweptLeftovers, SandboxError> {
    let parent = runs_dir()?;
    let mut swept = SweptLeftovers::default();
    for abandoned in claim_abandoned_runs(&parent)? {
        let removed = remove_tree_keeping_last(&abandoned.dir, Some(OsStr::new(OWNER_FILE)), is_cancelled);
        if matches!(removed, Err(SandboxError::Interrupted)) {
            swept.is_unfinished = true;
            return Ok(swept);
        }
        swept.add(abandoned.dir.clone(), removed);
    }
    for cgroup in sibling_cgroups().into_iter().filter(|cgroup| creator_has_ended(cgroup)) {
        let removed = remove_abandoned(&cgroup);
        swept.add(cgroup, removed);
    }
    Ok(swept)
}

/// A run whose harness has ended. While this value exists, no other process removes the same run.
struct AbandonedRun {
    dir: PathBuf,
    /// The owner file, locked. `None` if the directory has none.
    _locked_owner: Option<File>,
}

/// All runs whose harness has ended, each locked, and renamed so that people see that it is dead.
fn claim_abandoned_runs(parent: &Path) -> Result<Vec<AbandonedRun>, SandboxError> {
    let Some(_lock) = lock_parent(parent)? else { return Ok(Vec::new()) };
    let entries = std::fs::read_dir(parent).map_err(SandboxError::file("read", parent))?;
    let is_run = |name: &OsStr| RUN_PREFIXES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
    let mut abandoned = Vec::new();
    for entry in entries.flatten().filter(|entry| is_run(&entry.file_name())) {
        let Some(mut run) = lock_if_abandoned(&entry.path()) else { continue };
        let dead = entry.file_name().to_string_lossy().replacen("run-", "dead-", 1);
        if std::fs::rename(&run.dir, parent.join(&dead)).is_ok() {
            run.dir = parent.join(dead);
        }
        abandoned.push(run);
    }
    Ok(abandoned)
}

/// Returns `Some` if the harness of a run has ended. A directory without an owner file is being removed, or
/// its harness was killed while it created it; it counts as abandoned after a while.
fn lock_if_abandoned(run: &Path) -> Option<AbandonedRun> {
    let metadata = run.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?;
    if metadata.mode() & 0o700 != 0o700 {
        // If its owner may not do that either, nobody can remove it, which is reported.
        let _ = std::fs::set_permissions(run, std::fs::Permissions::from_mode(0o700));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(nix::libc::O_NOFOLLOW);
    let abandoned = |locked_owner| AbandonedRun { dir: run.to_path_buf(), _locked_owner: locked_owner };
    match options.open(run.join(OWNER_FILE)) {
        Ok(file) => file.try_lock().is_ok().then(|| abandoned(Some(file))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let age = metadata.modified().ok()?.elapsed().ok()?;
            (age > OWNERLESS_TIME).then(|| abandoned(None))
        }
        // No harness makes what is there.
        Err(_) => Some(abandoned(None)),
    }
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

    #[test]
    fn a_stopped_holder_of_the_lock_blocks_nobody_for_ever() -> Result<(), Box<dyn std::error::Error>> {
        let parent = tempfile::tempdir()?;
        std::fs::create_dir(parent.path().join("run-1-0"))?;
        std::fs::write(parent.path().join("run-1-0").join(OWNER_FILE), "")?;
        let held = lock_parent(parent.path())?;
        assert!(held.is_some() && claim_abandoned_runs(parent.path())?.is_empty());
        drop(held);
        assert_eq!(claim_abandoned_runs(parent.path())?.len(), 1);
        Ok(())
    }
}
