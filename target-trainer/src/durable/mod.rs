//! The only code that writes files. What returns `Ok` with `Care::Full` survives a power cut.

mod space;

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

pub use space::{RequiredSpace, check_space};

/// Bytes handed to the kernel at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// How long a lock that somebody holds is tried.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// What all names of unfinished things contain.
pub const TEMPORARY_MARKER: &str = ".tmp";

/// How carefully files are written. Less than full only for what is worth nothing after a crash, or where a guard was
/// taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    Full,
    /// Neither files nor folders are synced.
    NoSync,
    /// Files are synced, the folders that name them are not: without the guard `directory_sync`.
    NoDirectorySync,
    /// Synced, and what the kernel answers is not heard: without the guard `sync_errors`.
    IgnoreSyncErrors,
    /// One write, whatever came of it: without the guard `whole_writes`.
    IgnoreShortWrites,
}

/// Why something could not be written, in words that say what to do.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} `{}`: {}", path.display(), self.reason())]
pub struct DurableError {
    pub action: &'static str,
    pub path: PathBuf,
    pub error: Error,
}

/// What kind of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskErrorKind {
    NoSpace,
    NoInodes,
    ReadOnly,
    Quota,
    Other,
}

impl DurableError {
    fn new(doing: &'static str, path: &Path) -> impl FnOnce(Error) -> DurableError {
        let path = path.to_path_buf();
        move |error| DurableError { action: doing, path, error }
    }

    pub fn kind(&self) -> DiskErrorKind {
        match self.error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC) if space::is_out_of_inodes(&self.path) => DiskErrorKind::NoInodes,
            Some(Errno::ENOSPC) => DiskErrorKind::NoSpace,
            Some(Errno::EROFS) => DiskErrorKind::ReadOnly,
            Some(Errno::EDQUOT) => DiskErrorKind::Quota,
            _ => DiskErrorKind::Other,
        }
    }

    fn reason(&self) -> String {
        match self.kind() {
            DiskErrorKind::NoSpace => "no space left; free some, the save is tried again".into(),
            DiskErrorKind::NoInodes => {
                "no inodes left although bytes may be free; remove small files, the save is tried again"
                    .into()
            }
            DiskErrorKind::ReadOnly => "the file system is read-only; remount it writable".into(),
            DiskErrorKind::Quota => "the disk quota is used up; free some or have it raised".into(),
            DiskErrorKind::Other => self.error.to_string(),
        }
    }
}

/// Writes a file that must not exist yet; with its content synced.
pub fn write_new(path: &Path, bytes: &[u8], care: SyncPolicy) -> Result<(), DurableError> {
    write(OpenOptions::new().write(true).create_new(true), path, bytes, care)
}

/// Overwrites a file in place: torn if the process dies within. Only for trees without the guard `atomic_save`.
pub fn write_in_place(path: &Path, bytes: &[u8], care: SyncPolicy) -> Result<(), DurableError> {
    write(OpenOptions::new().write(true).create(true).truncate(true), path, bytes, care)
}

fn write(how: &mut OpenOptions, path: &Path, bytes: &[u8], care: SyncPolicy) -> Result<(), DurableError> {
    let mut file = how
        .mode(0o644)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(DurableError::new("create", path))?;
    let put = |chunk: &[u8]| match care {
        SyncPolicy::IgnoreShortWrites => {
            let _ = file.write(chunk);
            Ok(())
        }
        _ => file.write_all(chunk),
    };
    bytes.chunks(CHUNK_BYTES).try_for_each(put).map_err(DurableError::new("write", path))?;
    sync_file(&file, path, care)
}

fn sync_file(file: &File, path: &Path, care: SyncPolicy) -> Result<(), DurableError> {
    match care {
        SyncPolicy::NoSync => Ok(()),
        SyncPolicy::IgnoreSyncErrors => {
            let _ = file.sync_all();
            Ok(())
        }
        SyncPolicy::Full | SyncPolicy::IgnoreShortWrites | SyncPolicy::NoDirectorySync => {
            file.sync_all().map_err(DurableError::new("sync", path))
        }
    }
}

/// Makes the entries of a folder durable.
pub fn sync_dir(path: &Path, care: SyncPolicy) -> Result<(), DurableError> {
    if care == SyncPolicy::NoDirectorySync {
        return Ok(());
    }
    let folder = File::open(path).map_err(DurableError::new("open", path))?;
    sync_file(&folder, path, care)
}

/// Replaces a small file as a whole: a reader sees the old one or the new one. Synced only if asked.
pub fn replace(path: &Path, bytes: &[u8], care: SyncPolicy) -> Result<(), DurableError> {
    let aside = temporary_sibling(path);
    remove_file(&aside)?;
    let written = write_new(&aside, bytes, care).and_then(|()| rename(&aside, path));
    if written.is_err() {
        // The error that is told is the first one.
        let _ = remove_file(&aside);
    }
    written?;
    path.parent().map_or(Ok(()), |parent| sync_dir(parent, care))
}

fn temporary_sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{TEMPORARY_MARKER}-{name}"))
}

pub fn rename(from: &Path, to: &Path) -> Result<(), DurableError> {
    std::fs::rename(from, to).map_err(DurableError::new("rename to", to))
}

/// Creates a folder and those above it; existing ones are fine.
pub fn create_dir(path: &Path) -> Result<(), DurableError> {
    std::fs::create_dir_all(path).map_err(DurableError::new("create folder", path))
}

/// A folder that was not there is as good as removed.
pub fn remove_tree(path: &Path) -> Result<(), DurableError> {
    ignore_not_found(std::fs::remove_dir_all(path), "remove", path)
}

/// A folder that was not there is as good as removed; one that was is never seen with only some of its files: it loses its
/// name first, also on the disk: POSIX promises no order between a rename and what is removed below it.
pub fn remove_atomically(path: &Path, care: SyncPolicy) -> Result<(), DurableError> {
    let aside = temporary_sibling(path);
    remove_tree(&aside)?;
    match std::fs::rename(path, &aside) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(DurableError::new("rename before removing", path))?,
    }
    path.parent().map_or(Ok(()), |parent| sync_dir(parent, care))?;
    remove_tree(&aside)
}

/// A file that was not there is as good as removed.
pub fn remove_file(path: &Path) -> Result<(), DurableError> {
    ignore_not_found(std::fs::remove_file(path), "remove", path)
}

fn ignore_not_found(result: Result<(), Error>, doing: &'static str, path: &Path) -> Result<(), DurableError> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(DurableError::new(doing, path)),
    }
}

/// Files that appear together or not at all: written aside, synced, renamed, the parent synced.
/// `cleanup`: what an aborted attempt leaves is removed.
pub fn write_dir(
    dir: &Path,
    files: &[(&str, Vec<u8>)],
    care: SyncPolicy,
    cleanup: bool,
) -> Result<(), DurableError> {
    let aside = temporary_sibling(dir);
    remove_tree(&aside)?;
    let written = write_files(&aside, files, care).and_then(|()| rename(&aside, dir));
    if written.is_err() && cleanup {
        // The error that is told is the first one; what can't be removed now is removed at the next start.
        let _ = remove_tree(&aside);
    }
    written?;
    dir.parent().map_or(Ok(()), |parent| sync_dir(parent, care))
}

fn write_files(dir: &Path, files: &[(&str, Vec<u8>)], care: SyncPolicy) -> Result<(), DurableError> {
    std::fs::create_dir(dir).map_err(DurableError::new("create folder", dir))?;
    files.iter().try_for_each(|(name, bytes)| write_new(&dir.join(name), bytes, care))?;
    sync_dir(dir, care)
}

/// A file that grows: a copy being taken in, a log. Removed by its owner if it comes to nothing.
pub struct AppendFile {
    file: File,
    path: PathBuf,
}

impl AppendFile {
    pub fn create(path: &Path) -> Result<AppendFile, DurableError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path);
        Ok(AppendFile { file: file.map_err(DurableError::new("create", path))?, path: path.into() })
    }

    /// Goes on at the end of a file that may exist.
    pub fn open_to_append(path: &Path) -> Result<AppendFile, DurableError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path);
        Ok(AppendFile { file: file.map_err(DurableError::new("open", path))?, path: path.into() })
    }

    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), DurableError> {
        self.file.write_all(bytes).map_err(DurableError::new("write", &self.path))
    }

    pub fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |facts| facts.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn finish(self, care: SyncPolicy) -> Result<(), DurableError> {
        sync_file(&self.file, &self.path, care)
    }
}

/// A lock on a file, held until dropped. `Err(Some(text))`: somebody else has it, and wrote that into it.
pub fn lock(path: &Path, note: &str) -> Result<File, Result<String, DurableError>> {
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path);
    let file = open.map_err(DurableError::new("open", path)).map_err(Err)?;
    let until = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            // A killed daemon's child may hold it for a moment more, between fork and exec.
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_RETRY_INTERVAL)
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Ok(std::fs::read_to_string(path).unwrap_or_default()));
            }
            Err(TryLockError::Error(error)) => return Err(Err(DurableError::new("lock", path)(error))),
        }
    }
    // The lock decides; the note only helps a person.
    let noted = file.set_len(0).and_then(|()| (&file).write_all(note.as_bytes()));
    noted.map_err(DurableError::new("write", path)).map_err(Err)?;
    Ok(file)
}
