//! Is there room for what is about to be written? Bytes, inodes, and a file system that can be written at all.

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

/// What a save needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredSpace {
    pub bytes: u64,
    pub inodes: u64,
}

/// `Err` says what is lacking. A file system that can't be asked is given the benefit of the doubt: the write will tell.
pub fn check_space(path: &Path, need: RequiredSpace) -> Result<(), String> {
    let Ok(facts) = statvfs(path) else { return Ok(()) };
    let shown = path.display();
    if facts.flags().contains(FsFlags::ST_RDONLY) {
        return Err(format!("`{shown}` is on a read-only file system; remount it writable"));
    }
    // Some file systems do not count inodes and report none at all.
    if facts.files() > 0 && facts.files_available() < need.inodes {
        return Err(format!(
            "no inodes left on `{shown}`: need {}, have {}; remove small files",
            need.inodes,
            facts.files_available()
        ));
    }
    let free = facts.blocks_available() * facts.fragment_size();
    if facts.blocks() > 0 && free < need.bytes {
        return Err(format!("no space left on `{shown}`: need {} bytes, have {free}; free some", need.bytes));
    }
    Ok(())
}

/// Whether ENOSPC there means inodes.
pub(super) fn is_out_of_inodes(path: &Path) -> bool {
    let folder = path.ancestors().find(|folder| folder.exists());
    folder
        .and_then(|folder| statvfs(folder).ok())
        .is_some_and(|facts| facts.files() > 0 && facts.files_available() == 0)
}
