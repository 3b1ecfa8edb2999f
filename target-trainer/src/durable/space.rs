//! Checks before a save whether the file system has enough bytes and inodes, and whether it is writable.

use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

/// The space that a save needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredSpace {
    /// Bytes, with the overhead of the file system.
    pub bytes: u64,
    /// One per file and directory.
    pub inodes: u64,
}

/// Why a save should not begin yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeferReason {
    /// The file system is mounted read-only.
    #[error("`{path}` is on a read-only file system; remount it writable", path = .path.display())]
    ReadOnly { path: PathBuf },
    /// Too few inodes are free.
    #[error(
        "no inodes left on `{path}`: need {required}, have {free}; remove small files",
        path = .path.display()
    )]
    NoInodes { path: PathBuf, required: u64, free: u64 },
    /// Too few bytes are free.
    #[error(
        "no space left on `{path}`: need {required} bytes, have {free}; free some space",
        path = .path.display()
    )]
    NoSpace { path: PathBuf, required: u64, free: u64 },
}

/// Checks the file system that holds `path`. If `statvfs` fails, the check passes: the write itself will
/// fail.
///
/// # Errors
/// If the file system is read-only, or has too few free bytes or inodes.
pub fn check_space(path: &Path, required: RequiredSpace) -> Result<(), DeferReason> {
    // Before the first save, the directory does not exist yet.
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let Ok(stat) = statvfs(existing) else { return Ok(()) };
    let path = path.to_path_buf();
    if stat.flags().contains(FsFlags::ST_RDONLY) {
        return Err(DeferReason::ReadOnly { path });
    }
    // Some file systems do not count inodes and report none at all.
    let free = stat.files_available();
    if stat.files() > 0 && free < required.inodes {
        return Err(DeferReason::NoInodes { path, required: required.inodes, free });
    }
    let free = stat.blocks_available() * stat.fragment_size();
    if stat.blocks() > 0 && free < required.bytes {
        return Err(DeferReason::NoSpace { path, required: required.bytes, free });
    }
    Ok(())
}

/// Whether an `ENOSPC` at this path means that there are no free inodes.
pub(super) fn is_out_of_inodes(path: &Path) -> bool {
    let dir = path.ancestors().find(|dir| dir.exists());
    dir.and_then(|dir| statvfs(dir).ok()).is_some_and(|stat| stat.files() > 0 && stat.files_available() == 0)
}
