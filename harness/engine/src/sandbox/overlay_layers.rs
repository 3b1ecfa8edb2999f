//! The layers of overlays: upper layers in memory over lower layers of the host, and directories that are put
//! together where no overlay is possible. Runs in the sandbox's init. Knows nothing of targets.

use std::fs::{DirBuilder, DirEntry, File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{AccessFlags, Gid, Uid, access, fchown};

use super::protocol::OutsideChange;
use super::remove_tree::remove_tree;
use super::sys::{attach_mount, clone_mount};

/// Where no overlay is possible, files up to this size are copied, and larger ones are read-only.
pub(super) const MAX_COPIED_FILE_BYTES: u64 = 1 << 20;

/// The tmpfs that holds all layers of a sandbox.
pub(super) struct Layers {
    root: OwnedFd,
    /// Files and directories that the upper layers have from the beginning.
    copied: Vec<PathBuf>,
    /// Directories of the host that the overlays do not show.
    hidden: Vec<PathBuf>,
    next_number: u32,
}

impl Layers {
    /// The layers in the tmpfs with this root. Upper layers begin with copies of the files in `copied`, and
    /// hide those in `hidden`.
    pub(super) fn new(root: OwnedFd, copied: Vec<PathBuf>, hidden: Vec<PathBuf>) -> Layers {
        Layers { root, copied, hidden, next_number: 0 }
    }

    /// The root of the tmpfs.
    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Creates an empty directory with the owner and the mode of another one. No path of the target leads
    /// there.
    pub(super) fn new_tree(&mut self, like: &File) -> Result<PathBuf, Error> {
        let number = self.take_number();
        let tree = self.path("tree", number);
        make_like(like, &tree)?;
        Ok(tree)
    }

    /// The path of a layer. It leads through the descriptor, because another mount covers the tmpfs.
    fn path(&self, layer: &str, number: u32) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{layer}-{number}", self.root.as_raw_fd()))
    }

    fn take_number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    /// Mounts an overlay at `dir`. `lower`: the directory of the host that is its lower layer. Returns the
    /// number of its layers.
    pub(super) fn mount_overlay(&mut self, dir: &Path, lower: &File) -> Result<u32, Error> {
        let number = self.take_number();
        let [upper, work] = ["upper", "work"].map(|layer| self.path(layer, number));
        let made = make_like(lower, &upper)
            .and_then(|()| self.copied.iter().try_for_each(|path| copy_into(&upper, lower, dir, path)))
            .inspect(|()| self.hidden.iter().for_each(|path| hide_in(&upper, lower, dir, path)))
            .and_then(|()| DirBuilder::new().mode(0o700).create(&work));
        // The descriptor stands for the path, which may have characters that separate options.
        let options = format!(
            "userxattr,lowerdir=/proc/self/fd/{},upperdir={},workdir={}",
            lower.as_raw_fd(),
            upper.display(),
            work.display()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mounted = made
            .and_then(|()| Ok(mount(Some("overlay"), dir, Some("overlay"), flags, Some(options.as_str()))?));
        if mounted.is_err() {
            self.remove(number);
        }
        mounted.map(|()| number)
    }

    /// Puts a directory together from the entries of the present one, and mounts it there: directories as
    /// they are mounted now, copies of small files, and larger files read-only. Returns its number.
    pub(super) fn assemble(&mut self, dir: &Path) -> Result<u32, Error> {
        let tree = self.new_tree(&open_lower(dir)?)?;
        let number = self.next_number;
        let mut mounted = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            match add_to_tree(&entry?, &tree) {
                Ok(mount) => mounted.extend(mount),
                // Somebody has removed it from the host in the meantime.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        attach_mount(&clone_mount(&tree)?, dir)?;
        for PlacedMount { clone, mount_point } in &mounted {
            match attach_mount(clone, mount_point) {
                // As above: an empty directory is left of it.
                Err(Errno::ENOENT) => {}
                attached => attached?,
            }
        }
        Ok(number)
    }

    /// Removes the layers with this number. What cannot be removed ends with the sandbox.
    pub(super) fn remove(&self, number: u32) {
        for layer in ["upper", "work", "tree"] {
            let _ = remove_tree(&self.path(layer, number));
        }
    }

    /// Whether an upper layer has an entry.
    pub(super) fn has_entries(&self, number: u32) -> Result<bool, Error> {
        Ok(std::fs::read_dir(self.path("upper", number))?.next().is_some())
    }

    /// Whether an upper layer has this path from the beginning.
    fn is_own(&self, path: &PathBuf) -> bool {
        self.copied.contains(path) || self.hidden.contains(path)
    }

    /// Collects what an upper layer has that it did not have at the beginning, up to `max` entries in all:
    /// changed and new files, links and empty directories, and what was removed. `shown`: where the overlay is
    /// mounted.
    pub(super) fn collect_changes(
        &self,
        number: u32,
        shown: &Path,
        max: usize,
        changes: &mut Vec<OutsideChange>,
    ) {
        let upper = self.path("upper", number);
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let Ok(entries) = std::fs::read_dir(upper.join(&relative)) else { continue };
            let mut is_empty = true;
            for entry in entries.flatten() {
                is_empty = false;
                let Ok(metadata) = entry.metadata() else { continue };
                let inner = relative.join(entry.file_name());
                let path = shown.join(&inner);
                if metadata.is_dir() {
                    pending.push(inner);
                } else if changes.len() < max && !self.is_own(&path) {
                    changes.push(OutsideChange { path, removed: is_whiteout(&metadata) });
                }
            }
            let path = shown.join(&relative);
            if is_empty && path != shown && changes.len() < max && !self.is_own(&path) {
                changes.push(OutsideChange { path, removed: false });
            }
        }
    }
}

/// Opens a directory of the host as the lower layer of an overlay. The descriptor keeps leading there when
/// something else is mounted at the path.
pub(super) fn open_lower(dir: &Path) -> Result<File, Error> {
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(dir)
}

/// The path that leads to what a descriptor has open.
fn fd_path(fd: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Creates a directory with the owner and the mode of another one. It is what the target sees in its place.
fn make_like(dir: &File, new: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(new)?;
    set_like(dir, new)
}

/// Gives a directory the owner and the mode of another one.
pub(super) fn set_like(dir: &File, new: &Path) -> Result<(), Error> {
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let new_dir = OpenOptions::new().read(true).custom_flags(flags).open(new)?;
    let metadata = dir.metadata()?;
    let mode = metadata.mode() & 0o7777;
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    let is_owned = fchown(&new_dir, Some(uid), Some(gid)).is_ok();
    // An ordinary user owns what stands for another user's directory. It gets the rights that it has there.
    let mode = if is_owned { mode } else { mode & 0o1077 | own_rights(&fd_path(dir)) << 6 };
    new_dir.set_permissions(std::fs::Permissions::from_mode(mode))
}

/// What this process may do with a directory: the three bits of a mode.
fn own_rights(dir: &Path) -> u32 {
    let right = |flag: AccessFlags, bit: u32| if access(dir, flag).is_ok() { bit } else { 0 };
    right(AccessFlags::R_OK, 4) | right(AccessFlags::W_OK, 2) | right(AccessFlags::X_OK, 1)
}

/// Copies a file, or makes a directory, at the same place in the upper layer of an overlay at `dir`, with the
/// directories above it. Does nothing with a path that is not in `dir`, or no longer there.
fn copy_into(upper: &Path, lower: &File, dir: &Path, path: &Path) -> Result<(), Error> {
    let Ok(relative) = path.strip_prefix(dir) else { return Ok(()) };
    let (mut made, mut original) = (upper.to_path_buf(), fd_path(lower));
    for part in relative.components() {
        made.push(part);
        original.push(part);
        let Ok(metadata) = original.symlink_metadata() else { return Ok(()) };
        if metadata.is_file() {
            copy_file(&original, &made)?;
        } else if metadata.is_dir() && !made.exists() {
            make_like(&open_lower(&original)?, &made)?;
            File::open(&made)?.set_modified(metadata.modified()?)?;
        } else if !metadata.is_dir() {
            return Ok(());
        }
    }
    Ok(())
}

/// Hides a directory of the host from the overlay at `dir`, by an entry of its upper layer. Where that is not
/// possible, the caller sees that it is still there.
fn hide_in(upper: &Path, lower: &File, dir: &Path, path: &Path) {
    let Some(parent) = path.strip_prefix(dir).ok().and_then(|_| path.parent()) else { return };
    let (Ok(relative), Ok(above)) = (path.strip_prefix(dir), parent.strip_prefix(dir)) else { return };
    if fd_path(lower).join(relative).is_dir() && copy_into(upper, lower, dir, &dir.join(above)).is_ok() {
        let whiteout = upper.join(relative);
        let _ = nix::sys::stat::mknod(&whiteout, SFlag::S_IFCHR, Mode::empty(), 0);
    }
}

/// Copies a file with its mode and its time.
pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::copy(from, to)?;
    File::open(to)?.set_modified(from.symlink_metadata()?.modified()?)
}

/// Whether an entry of an upper layer hides an entry of the lower one: a character device with number 0.
fn is_whiteout(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

/// A copy of a mount, and where it belongs.
struct PlacedMount {
    clone: OwnedFd,
    mount_point: PathBuf,
}

/// Adds an entry of a directory to a tree. Returns what is to be mounted in its place.
fn add_to_tree(entry: &DirEntry, tree: &Path) -> Result<Option<PlacedMount>, Error> {
    let (metadata, path, copy) = (entry.metadata()?, entry.path(), tree.join(entry.file_name()));
    if metadata.is_symlink() {
        std::os::unix::fs::symlink(std::fs::read_link(&path)?, &copy)?;
    } else if metadata.is_dir() {
        let mount = clone_mount(&path)?;
        DirBuilder::new().create(&copy)?;
        return Ok(Some(PlacedMount { clone: mount, mount_point: path }));
    } else if metadata.is_file() && metadata.len() <= MAX_COPIED_FILE_BYTES {
        // What cannot be read is not shown.
        let _ = copy_file(&path, &copy);
    } else if metadata.is_file() {
        let mount = clone_mount(&path)?;
        File::create(&copy)?;
        return Ok(Some(PlacedMount { clone: mount, mount_point: path }));
    }
    Ok(None)
}
