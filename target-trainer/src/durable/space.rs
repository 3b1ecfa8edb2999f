//! Checks before a save whether the file system has enough bytes and inodes, and whether it is writable.

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

/// The space that a save needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredSpace {
    /// Bytes, with the overhead of the file system.
    pub bytes: u64,
    /// One per file and directory.
    pub inodes: u64,
}

/// Checks the file system that holds `path`. If `statvfs` fails, the check passes: the write itself will
/// fail.
///
/// # Errors
/// What is missing, and what to do.
pub fn check_space(path: &Path, required: RequiredSpace) -> Result<(), String> {
    let Ok(stat) = statvfs(path) else { return Ok(()) };
    let display = path.display();
    if stat.flags().contains(FsFlags::ST_RDONLY) {
        return Err(format!("`{display}` is on a read-only file system; remount it writable"));
    }
    // Some file systems do not count inodes and report none at all.
    if stat.files() > 0 && stat.files_available() < required.inodes {
        return Err(format!(
            "no inodes left on `{display}`: need {}, have {}; remove small files",
            required.inodes,
            stat.files_available()
        ));
    }
    let free = stat.blocks_available() * stat.fragment_size();
    if stat.blocks() > 0 && free < required.bytes {
        return Err(format!(
            "no space left on `{display}`: need {} bytes, have {free}; free some space",
            required.bytes
        ));
    }
    Ok(())
}

/// Whether an `ENOSPC` at this path means that there are no free inodes.
pub(super) fn is_out_of_inodes(path: &Path) -> bool {
    let dir = path.ancestors().find(|dir| dir.exists());
    dir.and_then(|dir| statvfs(dir).ok()).is_some_and(|stat| stat.files() > 0 && stat.files_available() == 0)
}
