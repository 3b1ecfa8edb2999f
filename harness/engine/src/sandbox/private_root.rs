//! The root directory of a sandbox: a directory in memory in place of the host's, so that a target may change
//! `/` too, and that the sandbox may have directories of its own there. Runs in the sandbox's init. Knows
//! nothing of targets.
//!
//! The host's root stays mounted below it, because overlays need it, and cannot be reached by any path.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::{chdir, chroot, fchdir};

use super::overlay_layers::{Layers, MAX_COPIED_FILE_BYTES, copy_file, open_lower, set_like};
use super::protocol::OutsideChange;
use super::remove_tree::remove_tree;
use super::sys::{attach_mount, clone_mount};

/// Directories of the host that are no ordinary file systems. They stay read-only.
pub(super) const KERNEL_DIRS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The root directory of a sandbox.
pub(super) struct PrivateRoot {
    /// The host's root directory.
    host: File,
    /// The directories of the host in it, but those of the kernel. They are empty until something is mounted
    /// there.
    dirs: Vec<PathBuf>,
    /// Links and copies of small files.
    copied: Vec<PathBuf>,
    /// The names while nothing has been changed.
    names: BTreeSet<OsString>,
}

/// A mount of the host that is shown at a path of the sandbox.
struct ShownMount {
    clone: OwnedFd,
    path: PathBuf,
}

impl PrivateRoot {
    /// Makes a directory in the layers the root directory of this process, with the names that the host's has,
    /// and with the directories of the kernel.
    pub(super) fn set_up(layers: &mut Layers) -> Result<PrivateRoot, Error> {
        let host = open_lower(Path::new("/"))?;
        let tree = layers.new_tree(&host)?;
        let mut root = PrivateRoot { host, dirs: Vec::new(), copied: Vec::new(), names: BTreeSet::new() };
        let mut shown = Vec::new();
        for entry in std::fs::read_dir("/")? {
            let entry = entry?;
            let (path, new) = (entry.path(), tree.join(entry.file_name()));
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                DirBuilder::new().mode(0o755).create(&new)?;
                match KERNEL_DIRS.map(Path::new).contains(&path.as_path()) {
                    true => shown.push(ShownMount { clone: clone_mount(&path)?, path }),
                    false => root.dirs.push(path),
                }
            } else if copy_entry(&path, &new)? {
                root.copied.push(path);
            } else if metadata.is_file() {
                File::create(&new)?;
                shown.push(ShownMount { clone: clone_mount(&path)?, path });
            }
        }
        // From here on the path of a layer leads nowhere, until `/proc` is there again.
        let tree = clone_mount(&tree)?;
        attach_mount(&tree, Path::new("/"))?;
        fchdir(&tree)?;
        chroot(".")?;
        chdir("/")?;
        shown.iter().try_for_each(|mount| attach_mount(&mount.clone, &mount.path))?;
        Ok(root)
    }

    /// The directories of the host that are not shown yet.
    pub(super) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The path that leads to a file of the host.
    pub(super) fn host_path(&self, path: &Path) -> PathBuf {
        let host = PathBuf::from(format!("/proc/self/fd/{}", self.host.as_raw_fd()));
        host.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Shows a directory of the host as it is.
    pub(super) fn show(&self, dir: &Path) -> Result<(), Error> {
        Ok(attach_mount(&clone_mount(&self.host_path(dir))?, dir)?)
    }

    /// Tells that what is there now is not the target's doing.
    pub(super) fn is_complete(&mut self) -> Result<(), Error> {
        self.names = names_in_root()?;
        Ok(())
    }

    /// Undoes what the target has changed in the directory itself. What is mounted in it stays.
    pub(super) fn reset(&mut self) -> Result<(), Error> {
        for name in names_in_root()?.difference(&self.names) {
            remove(&Path::new("/").join(name))?;
        }
        for path in &self.copied {
            remove(path)?;
            copy_entry(&self.host_path(path), path)?;
        }
        set_like(&self.host, Path::new("/"))
    }

    /// What the target has changed in the directory itself.
    pub(super) fn changes(&self) -> Vec<OutsideChange> {
        let now = names_in_root().unwrap_or_default();
        let change = |name: &OsString, removed| OutsideChange { path: Path::new("/").join(name), removed };
        let new = now.difference(&self.names).map(|name| change(name, false));
        new.chain(self.names.difference(&now).map(|name| change(name, true))).collect()
    }
}

fn names_in_root() -> Result<BTreeSet<OsString>, Error> {
    std::fs::read_dir("/")?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Copies a link or a small file. Returns whether it is one. What cannot be read is not shown.
fn copy_entry(from: &Path, to: &Path) -> Result<bool, Error> {
    let metadata = from.symlink_metadata()?;
    if metadata.is_symlink() {
        std::os::unix::fs::symlink(std::fs::read_link(from)?, to)?;
        return Ok(true);
    }
    let is_small = metadata.is_file() && metadata.len() <= MAX_COPIED_FILE_BYTES;
    if is_small {
        let _ = copy_file(from, to);
    }
    Ok(is_small)
}

/// Removes a file, or a directory with everything in it.
fn remove(path: &Path) -> Result<(), Error> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => remove_tree(path).map_err(Error::other),
        Ok(_) => std::fs::remove_file(path),
        Err(_) => Ok(()),
    }
}
