//! Walks through directories without keeping those above open: a tree may be deeper than this process may have
//! files open. Knows nothing of what the walk is for.

use std::io::Error;
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};

/// Identifies a file while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct InodeId {
    dev: u64,
    ino: u64,
}

impl InodeId {
    /// That of a file with this metadata.
    pub(super) fn of(stat: &FileStat) -> InodeId {
        InodeId { dev: stat.st_dev, ino: stat.st_ino }
    }
}

/// Opens the directory above, which must be the one that the walk came from.
///
/// # Errors
/// It cannot be opened, or the directory was moved during the walk.
pub(super) fn parent_of(dir: &OwnedFd, expected: InodeId) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = openat(dir, c"..", flags, Mode::empty())?;
    if InodeId::of(&fstat(&parent)?) != expected {
        return Err(Error::other("a directory was moved while the tree was being read; try again"));
    }
    Ok(parent)
}
