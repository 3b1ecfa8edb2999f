//! Files that are mounted over files of `/proc`, in the sandbox's own mount namespace. Several may lie over one file:
//! the last one is seen.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Error, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use super::sys::{attach_mount, clone_mount, make_read_only};

/// The files that lie over each path, the one that is seen last.
#[derive(Default)]
pub(super) struct ProcFiles {
    mounted: BTreeMap<PathBuf, Vec<MountedFile>>,
}

/// A file that lies over another one.
struct MountedFile {
    id: u64,
    /// It goes when nothing lies over it any more.
    is_removed: bool,
}

impl ProcFiles {
    /// Mounts a file with this text over a path. `dir`: an empty directory to which no path of the target leads.
    pub(super) fn plant(&mut self, dir: &Path, path: &Path, id: u64, text: &str) -> Result<(), Error> {
        let source = dir.join("text");
        // The mode of most files in /proc.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&source)?;
        file.write_all(text.as_bytes())?;
        let mount = clone_mount(&source)?;
        // Not even a target that runs as root can write to it.
        make_read_only(&mount)?;
        attach_mount(&mount, path)?;
        self.mounted.entry(path.into()).or_default().push(MountedFile { id, is_removed: false });
        Ok(())
    }

    /// Removes the file with this id, at the latest together with those that lie over it.
    pub(super) fn remove(&mut self, path: &Path, id: u64) -> Result<(), Error> {
        let Some(files) = self.mounted.get_mut(path) else { return Ok(()) };
        files.iter_mut().filter(|file| file.id == id).for_each(|file| file.is_removed = true);
        while files.last().is_some_and(|file| file.is_removed) {
            umount2(path, MntFlags::MNT_DETACH)?;
            files.pop();
        }
        Ok(())
    }

    /// Removes all.
    pub(super) fn remove_all(&mut self) -> Result<(), Error> {
        for (path, files) in std::mem::take(&mut self.mounted) {
            files.iter().try_for_each(|_| umount2(&path, MntFlags::MNT_DETACH))?;
        }
        Ok(())
    }
}
