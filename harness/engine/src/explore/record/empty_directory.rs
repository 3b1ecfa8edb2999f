//! Empties a directory, whatever modes and depth the directories in it have. Never follows a symbolic link.

use std::ffi::{CStr, CString};
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory_walk::{InodeId, parent_of};

/// What this user needs in a directory to empty it.
const NEEDED_BITS: u32 = 0o700;

/// A directory on the way to the current one.
struct EmptiedLevel {
    id: InodeId,
    /// Its name in the directory above.
    name: CString,
    subdirectories: Vec<CString>,
}

/// Removes a file: the directory, the name in it, and the inode number.
pub(in crate::explore) type RemoveFile<'a> = dyn FnMut(&OwnedFd, &CStr, u64) -> Result<(), Error> + 'a;

/// Removes everything in a directory. `remove_file` removes what is no directory.
///
/// # Errors
/// Something cannot be removed.
pub(in crate::explore) fn empty_directory(
    top: OwnedFd,
    remove_file: &mut RemoveFile<'_>,
) -> Result<(), Error> {
    make_accessible(&top)?;
    let mut current = top;
    let mut levels = vec![EmptiedLevel::enter(&current, CString::default(), remove_file)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.subdirectories.pop() {
            current = open_subdirectory(&current, &name)?;
            levels.push(EmptiedLevel::enter(&current, name, remove_file)?);
            continue;
        }
        let emptied = levels.pop();
        if let (Some(emptied), Some(above)) = (emptied, levels.last()) {
            current = parent_of(&current, above.id)?;
            unlinkat(&current, emptied.name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
    }
    Ok(())
}

struct FoundFile {
    name: CString,
    ino: u64,
}

impl EmptiedLevel {
    /// Removes everything in the directory but its subdirectories.
    fn enter(dir: &OwnedFd, name: CString, remove_file: &mut RemoveFile<'_>) -> Result<EmptiedLevel, Error> {
        let (mut files, mut subdirectories) = (Vec::new(), Vec::new());
        for entry in Dir::from_fd(dir.try_clone()?)?.iter() {
            let entry = entry?;
            match entry.file_type() {
                _ if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Type::Directory) => subdirectories.push(entry.file_name().to_owned()),
                _ => files.push(FoundFile { name: entry.file_name().to_owned(), ino: entry.ino() }),
            }
        }
        for file in files {
            remove_file(dir, &file.name, file.ino)?;
        }
        Ok(EmptiedLevel { id: InodeId::of(&fstat(dir)?), name, subdirectories })
    }
}

/// Opens a subdirectory, and makes it accessible if it is not.
/// Opens a directory to empty it, whatever mode it has.
///
/// # Errors
/// It belongs to another user, or is a link.
pub(in crate::explore) fn open_subdirectory(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = match openat(dir, name, flags, Mode::empty()) {
        Err(Errno::EACCES) => {
            let path_flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            make_accessible(&openat(dir, name, path_flags, Mode::empty())?)?;
            openat(dir, name, flags, Mode::empty())?
        }
        opened => opened?,
    };
    make_accessible(&opened)?;
    Ok(opened)
}

fn make_accessible(dir: &OwnedFd) -> Result<(), Error> {
    let mode = fstat(dir)?.st_mode;
    if mode & NEEDED_BITS == NEEDED_BITS {
        return Ok(());
    }
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mode = Mode::from_bits_truncate(mode | NEEDED_BITS);
    Ok(fchmodat(AT_FDCWD, path.as_str(), mode, FchmodatFlags::FollowSymlink)?)
}
