//! The only code that writes files. A write with [`SyncPolicy::Full`] that returned `Ok` survives a power
//! loss. Knows nothing of training.

mod error;
mod free_name;
mod lock;
mod lock_holders;
mod space;

use std::fs::{File, OpenOptions};
use std::io::{Error, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::progress;
pub use error::{DiskError, DurableError};
pub use free_name::{rename_to_free_name, unique_number};
pub use lock::{LockError, lock};
pub use space::{DeferReason, RequiredSpace, check_space};

/// Bytes of one `write` call.
const CHUNK_BYTES: usize = 64 * 1024;
/// How the name of each unfinished file and directory of this trainer begins. Other programs make temporary names that
/// begin with `.tmp`, too, and theirs are not removed.
pub const TEMPORARY_MARKER: &str = ".tmp-";
/// Part of the name of what was moved aside, before a number.
const OLD_MARKER: &str = "-old-";

/// What a write syncs, and which errors it reports. Anything but `Full` is for files that have no value after
/// a crash, or for a guard that is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// Files and directories are synced; every error is reported.
    Full,
    /// Neither files nor directories are synced.
    NoSync,
    /// Files are synced, their directories are not: the guard `directory_sync` is off.
    NoDirectorySync,
    /// Files and directories are synced, but errors of the sync are ignored: the guard `sync_errors` is off.
    IgnoreSyncErrors,
    /// Short writes are not continued, and write errors are ignored: the guard `whole_writes` is off.
    IgnoreShortWrites,
}

/// Writes a file that must not exist. Does not sync its directory.
///
/// # Errors
/// If the file exists, or can't be written or synced.
pub fn write_new(path: &Path, bytes: &[u8], sync: SyncPolicy) -> Result<(), DurableError> {
    write(OpenOptions::new().write(true).create_new(true), path, bytes, sync)
}

/// Writes a file that must not exist, and that only its owner may read, whatever the umask. It appears as a
/// whole.
///
/// # Errors
/// If the file exists, or can't be written or synced.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
    let temporary = temporary_sibling(path);
    remove_file(&temporary)?;
    let written = write(OpenOptions::new().write(true).create_new(true), &temporary, b"", SyncPolicy::NoSync)
        .and_then(|()| {
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            std::fs::set_permissions(&temporary, private)
                .map_err(DurableError::new("make private", &temporary))
        })
        .and_then(|()| write_in_place(&temporary, bytes, SyncPolicy::Full))
        .and_then(|()| rename_new(&temporary, path));
    if !matches!(written, Ok(true)) {
        // The first error is the one that is reported.
        let _ = remove_file(&temporary);
    }
    match written? {
        true => Ok(()),
        false => Err(DurableError::new("create", path)(std::io::ErrorKind::AlreadyExists.into())),
    }
}

/// Overwrites a file in place. A crash in between leaves a torn file. Only for guards that are off.
///
/// # Errors
/// If the file can't be written or synced.
pub fn write_in_place(path: &Path, bytes: &[u8], sync: SyncPolicy) -> Result<(), DurableError> {
    write(OpenOptions::new().write(true).create(true).truncate(true), path, bytes, sync)
}

fn write(options: &mut OpenOptions, path: &Path, bytes: &[u8], sync: SyncPolicy) -> Result<(), DurableError> {
    let mut file = options
        .mode(0o644)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
        .map_err(DurableError::new("create", path))?;
    let write_chunk = |chunk: &[u8]| {
        progress::advance_save();
        match sync {
            SyncPolicy::IgnoreShortWrites => {
                let _ = file.write(chunk);
                Ok(())
            }
            _ => file.write_all(chunk),
        }
    };
    bytes.chunks(CHUNK_BYTES).try_for_each(write_chunk).map_err(DurableError::new("write", path))?;
    sync_file(&file, path, sync)
}

fn sync_file(file: &File, path: &Path, sync: SyncPolicy) -> Result<(), DurableError> {
    progress::advance_save();
    match sync {
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

/// Syncs a directory, so that its entries are durable.
///
/// # Errors
/// If the directory can't be opened or synced.
pub fn sync_dir(path: &Path, sync: SyncPolicy) -> Result<(), DurableError> {
    if sync == SyncPolicy::NoDirectorySync {
        return Ok(());
    }
    let dir = File::open(path).map_err(DurableError::new("open", path))?;
    sync_file(&dir, path, sync)
}

/// Replaces a file as a whole: a reader sees the old content or the new one, never a part.
///
/// # Errors
/// If the new content can't be written, synced or renamed; the old file then stays. Or if the directory's
/// sync fails.
pub fn replace(path: &Path, bytes: &[u8], sync: SyncPolicy) -> Result<(), DurableError> {
    let temporary = temporary_sibling(path);
    remove_file(&temporary)?;
    let written = write_new(&temporary, bytes, sync).and_then(|()| rename(&temporary, path));
    if written.is_err() {
        // The first error is the one that is reported.
        let _ = remove_file(&temporary);
    }
    written?;
    path.parent().map_or(Ok(()), |parent| sync_dir(parent, sync))
}

fn temporary_sibling(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{TEMPORARY_MARKER}{name}"))
}

/// Renames a file or a directory. Does not sync.
///
/// # Errors
/// If the rename fails.
pub fn rename(from: &Path, to: &Path) -> Result<(), DurableError> {
    std::fs::rename(from, to).map_err(DurableError::new("rename to", to))
}

/// Renames a file to a name that must not exist. Returns `false`, and changes nothing, if it does. Does not
/// sync.
///
/// # Errors
/// If the rename fails for another reason.
pub fn rename_new(from: &Path, to: &Path) -> Result<bool, DurableError> {
    let renamed = match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Some file systems do not know the flag. A link does not replace a file either.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            match std::fs::hard_link(from, to) {
                // Some have no links either.
                Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::EPERM) => {
                    rename_to_claimed(from, to)
                }
                linked => linked.and_then(|()| std::fs::remove_file(from)),
            }
        }
        renamed => renamed.map_err(Error::from),
    };
    match renamed {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        renamed => renamed.map(|()| true).map_err(DurableError::new("rename to", to)),
    }
}

/// Takes a name by creating something empty there, then renames over that.
fn rename_to_claimed(from: &Path, to: &Path) -> Result<(), Error> {
    let is_dir = from.symlink_metadata()?.is_dir();
    match is_dir {
        true => std::fs::create_dir(to)?,
        false => drop(OpenOptions::new().write(true).create_new(true).open(to)?),
    }
    std::fs::rename(from, to).inspect_err(|_| {
        // The first error is the one that is reported.
        let _ = if is_dir { std::fs::remove_dir(to) } else { std::fs::remove_file(to) };
    })
}

/// Creates a directory and its parents. Existing ones are left as they are.
///
/// # Errors
/// If a directory can't be created.
pub fn create_dir(path: &Path) -> Result<(), DurableError> {
    // A call that makes no difference must not fail either.
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(DurableError::new("create directory", path))
}

/// Removes a directory and everything below it. Does nothing if it does not exist.
///
/// # Errors
/// If something below it can't be removed.
pub fn remove_tree(path: &Path) -> Result<(), DurableError> {
    ignore_not_found(std::fs::remove_dir_all(path), "remove", path)
}

/// Removes a directory so that it is never seen with only some of its files. Does nothing if it does not
/// exist.
///
/// The directory is renamed first, and the rename is synced: POSIX guarantees no order between a rename and
/// later removals below it.
///
/// # Errors
/// If the rename, the sync or a removal fails.
pub fn remove_atomically(path: &Path, sync: SyncPolicy) -> Result<(), DurableError> {
    let temporary = temporary_sibling(path);
    remove_tree(&temporary)?;
    match std::fs::rename(path, &temporary) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(DurableError::new("rename before removing", path))?,
    }
    path.parent().map_or(Ok(()), |parent| sync_dir(parent, sync))?;
    remove_tree(&temporary)
}

/// Renames what has this path to a free name beside it, `NAME-old-1` and so on, and returns that path. Does
/// nothing if there is nothing, or an empty directory, over which a directory can be renamed. Does not sync.
///
/// # Errors
/// If it can't be renamed.
pub fn move_aside(path: &Path) -> Result<Option<PathBuf>, DurableError> {
    let is_in_the_way = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(DurableError::new("look for", path)(error)),
        Ok(metadata) if metadata.is_dir() => {
            std::fs::read_dir(path).map_err(DurableError::new("list", path))?.next().is_some()
        }
        Ok(_) => true,
    };
    if !is_in_the_way {
        return Ok(None);
    }
    move_to_old(path, path).map(Some)
}

/// Renames `from` to a free name made from `beside`: `NAME-old-1` and so on. Returns its path. Does not sync.
///
/// # Errors
/// If it can't be renamed.
pub fn move_to_old(from: &Path, beside: &Path) -> Result<PathBuf, DurableError> {
    let name = beside.file_name().unwrap_or_default().to_string_lossy();
    let mut number = 1u64;
    loop {
        let old = beside.with_file_name(format!("{name}{OLD_MARKER}{number}"));
        if rename_new(from, &old)? {
            return Ok(old);
        }
        number += 1;
    }
}

/// Whether [`move_aside`] has given this name.
pub fn is_moved_aside(name: &str) -> bool {
    let number = name.rsplit_once(OLD_MARKER).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Removes a file. Does nothing if it does not exist.
///
/// # Errors
/// If the file can't be removed.
pub fn remove_file(path: &Path) -> Result<(), DurableError> {
    ignore_not_found(std::fs::remove_file(path), "remove", path)
}

fn ignore_not_found(result: Result<(), Error>, doing: &'static str, path: &Path) -> Result<(), DurableError> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(DurableError::new(doing, path)),
    }
}

/// Writes a directory whose files appear together or not at all: writes them into a temporary directory,
/// syncs it, renames it, and syncs the parent. An existing directory is replaced as a whole. With `cleanup`,
/// a failed attempt removes its temporary directory.
///
/// # Errors
/// If a file can't be written or synced, or the directory can't get its name.
pub fn write_dir(
    dir: &Path,
    files: &[(&str, Vec<u8>)],
    sync: SyncPolicy,
    cleanup: bool,
) -> Result<(), DurableError> {
    write_dir_checked(dir, files, sync, cleanup, |_| Ok(()))
}

/// Like [`write_dir`]. The directory gets its name only if `check` accepts it under its temporary path.
///
/// # Errors
/// As for [`write_dir`], or that of the check.
pub fn write_dir_checked<E: From<DurableError>>(
    dir: &Path,
    files: &[(&str, Vec<u8>)],
    sync: SyncPolicy,
    cleanup: bool,
    check: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = temporary_sibling(dir);
    remove_tree(&temporary)?;
    let written = write_files(&temporary, files, sync).map_err(E::from);
    let written =
        written.and_then(|()| check(&temporary)).and_then(|()| Ok(move_into_place(&temporary, dir)?));
    if written.is_err() && cleanup {
        // The first error is the one that is reported. What stays here is removed at the next start.
        let _ = remove_tree(&temporary);
    }
    let replaced = written?;
    dir.parent().map_or(Ok(()), |parent| sync_dir(parent, sync))?;
    match replaced {
        Replaced::Nothing => Ok(()),
        // What stays here is removed at the next start.
        Replaced::Old(old) => Ok(remove_tree(&old)?),
    }
}

/// What a directory has replaced.
enum Replaced {
    Nothing,
    /// The old directory, which now has this path.
    Old(PathBuf),
}

/// Gives a directory its name. If there is a directory with that name, they are exchanged: a crash leaves one
/// of the two, never none.
fn move_into_place(from: &Path, to: &Path) -> Result<Replaced, DurableError> {
    match std::fs::rename(from, to).map_err(|error| (error.raw_os_error(), error)) {
        Ok(()) => return Ok(Replaced::Nothing),
        Err((Some(nix::libc::ENOTEMPTY | nix::libc::EEXIST), _)) => {}
        Err((_, error)) => return Err(DurableError::new("rename to", to)(error)),
    }
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(Replaced::Old(from.into())),
        // Some file systems do not know the flag.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
            let old = temporary_sibling(&from.with_file_name("replaced"));
            remove_tree(&old)?;
            rename(to, &old)?;
            rename(from, to)?;
            Ok(Replaced::Old(old))
        }
        Err(error) => Err(DurableError::new("exchange with", to)(error.into())),
    }
}

/// Fails if a symbolic link has this path. What does not exist is no link.
///
/// # Errors
/// If it is one.
pub fn refuse_link(path: &Path) -> Result<(), DurableError> {
    if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) {
        return Ok(());
    }
    let text = "it is a symbolic link, which is not followed; mount the place there (for checkpoints and logs, \
                settings can name another one)";
    Err(DurableError::new("use", path)(Error::other(text)))
}

fn write_files(dir: &Path, files: &[(&str, Vec<u8>)], sync: SyncPolicy) -> Result<(), DurableError> {
    std::fs::create_dir(dir).map_err(DurableError::new("create directory", dir))?;
    files.iter().try_for_each(|(name, bytes)| write_new(&dir.join(name), bytes, sync))?;
    sync_dir(dir, sync)
}

/// A file that is written piece by piece, such as a copy of a data file or a log. Dropping it does not remove
/// it.
pub struct AppendFile {
    file: File,
    path: PathBuf,
}

impl AppendFile {
    /// Creates a file that must not exist.
    ///
    /// # Errors
    /// If the file exists or can't be created.
    pub fn create(path: &Path) -> Result<AppendFile, DurableError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path);
        Ok(AppendFile { file: file.map_err(DurableError::new("create", path))?, path: path.into() })
    }

    /// Opens a file to append to it, and creates it if it does not exist.
    ///
    /// # Errors
    /// If the file can't be opened.
    pub fn open_to_append(path: &Path) -> Result<AppendFile, DurableError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            // Nobody may read what could be a pipe.
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path);
        Ok(AppendFile { file: file.map_err(DurableError::new("open", path))?, path: path.into() })
    }

    /// Writes all bytes at the end.
    ///
    /// # Errors
    /// If the write fails. A part may have been written.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<(), DurableError> {
        self.file.write_all(bytes).map_err(DurableError::new("write", &self.path))
    }

    /// Takes the write permission from everybody. The file stays open for writing here.
    ///
    /// # Errors
    /// If the permissions can't be changed.
    pub fn make_read_only(&self) -> Result<(), DurableError> {
        let read_only = std::os::unix::fs::PermissionsExt::from_mode(0o444);
        self.file.set_permissions(read_only).map_err(DurableError::new("make read-only", &self.path))
    }

    /// Length in bytes; 0 if it can't be read.
    pub fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Whether the length is 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Syncs the file's content.
    ///
    /// # Errors
    /// If the sync fails.
    pub fn sync(&self, sync: SyncPolicy) -> Result<(), DurableError> {
        sync_file(&self.file, &self.path, sync)
    }

    /// Syncs the file's content and closes it.
    ///
    /// # Errors
    /// If the sync fails.
    pub fn finish(self, sync: SyncPolicy) -> Result<(), DurableError> {
        sync_file(&self.file, &self.path, sync)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_way_is_moved_aside_and_never_over_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert_eq!(move_aside(&path).unwrap(), None);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(move_aside(&path).unwrap(), None);
        std::fs::write(path.join("notes"), "mine").unwrap();
        assert_eq!(move_aside(&path).unwrap(), Some(dir.path().join("a-old-1")));
        std::fs::write(&path, "a file").unwrap();
        assert_eq!(move_aside(&path).unwrap(), Some(dir.path().join("a-old-2")));
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_eq!(move_aside(&path).unwrap(), Some(dir.path().join("a-old-3")));
        assert_eq!(std::fs::read_to_string(dir.path().join("a-old-1/notes")).unwrap(), "mine");
        assert!(is_moved_aside("a-old-12") && !is_moved_aside("a-old-") && !is_moved_aside("a-old-x1"));
    }

    #[test]
    fn a_claimed_name_is_taken_once_for_files_and_for_directories() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b"] {
            std::fs::write(path(name), name).unwrap();
            std::fs::create_dir_all(path(&format!("{name}-dir")).join(name)).unwrap();
        }
        for end in ["", "-dir"] {
            let target = path(&format!("target{end}"));
            rename_to_claimed(&path(&format!("a{end}")), &target).unwrap();
            let error = rename_to_claimed(&path(&format!("b{end}")), &target).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
            assert!(path(&format!("b{end}")).exists() && !path(&format!("a{end}")).exists());
        }
        assert_eq!(std::fs::read_to_string(path("target")).unwrap(), "a");
        assert!(path("target-dir/a").exists());
        assert!(rename_to_claimed(&path("none"), &path("free")).is_err() && !path("free").exists());
    }
}
