//! What a sandbox shows of the host: every directory is read-only or an overlay, so that nothing a target
//! does reaches the user's files. Runs in the sandbox's init, inside its mount namespace. Knows nothing of
//! targets and crash states.
//!
//! Each top-level directory of the host is the lower layer of one overlay; its upper layer lies in memory. A
//! directory that cannot be a lower layer, because other file systems are mounted below it, stays read-only,
//! and the directories in it get overlays of their own. `/dev/shm` is private and begins empty. The only
//! real directories are those that the harness shares with the sandbox, and those that the user opens.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{AccessFlags, Gid, Uid, access, chdir, fchown};
use serde::{Deserialize, Serialize};

use super::init_error::{InitResult, with_context};
use super::mount_sys::{attach_mount, clone_mount, make_read_only};

/// Directories of the host that are no ordinary file systems. They stay read-only.
const KERNEL_DIRS: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Shared memory of POSIX. The layers of the overlays lie in a tmpfs that this one covers.
const SHARED_MEMORY: &str = "/dev/shm";
/// How deep the search for directories that can be overlays goes below a top-level directory.
const MAX_DEPTH: usize = 4;
/// At most this many overlays are made.
const MAX_OVERLAYS: usize = 256;

/// What a sandbox's view of the host is made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HostViewSpec {
    /// Directories that are shared with the host: what the target writes there is really written.
    pub(super) real_dirs: Vec<PathBuf>,
    /// The working directory of the target.
    pub(super) cwd: PathBuf,
}

/// One directory of the host that the target may change without changing the host.
struct Overlay {
    mount_point: PathBuf,
    /// Its upper layer is the directory `upper-N` in the tmpfs of the layers, with this number.
    number: u32,
}

/// The space in use in the tmpfs of the layers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct LayerUsage {
    blocks: u64,
    inodes: u64,
}

/// The sandbox's view of the host.
pub(super) struct HostView {
    /// The root of the tmpfs with the layers.
    layers: OwnedFd,
    overlays: Vec<Overlay>,
    /// Mount points that were made on top of the overlays, in this order.
    mounted_above: Vec<PathBuf>,
    cwd: PathBuf,
    /// The usage while nothing has been changed.
    unchanged_usage: LayerUsage,
    next_number: u32,
}

/// A path at which the target changed something that is not shared with the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutsideChange {
    /// The path as the target sees it.
    pub(super) path: PathBuf,
    /// Whether it was removed.
    pub(super) removed: bool,
}

impl HostView {
    /// Makes the host read-only, and mounts the overlays and the real directories.
    pub(super) fn set_up(spec: &HostViewSpec) -> InitResult<HostView> {
        let clones: Result<Vec<OwnedFd>, Errno> = spec.real_dirs.iter().map(|dir| clone_mount(dir)).collect();
        let clones = with_context("share a directory with the host", clones)?;
        let root = with_context("open the root directory", File::open("/"))?;
        with_context("make the host read-only", make_read_only(&root))?;
        let layers = with_context("mount a tmpfs for the overlays", mount_layers())?;
        let unchanged_usage = with_context("read its free space", LayerUsage::of(&layers))?;
        let mut view = HostView {
            layers,
            overlays: Vec::new(),
            mounted_above: Vec::new(),
            cwd: spec.cwd.clone(),
            unchanged_usage,
            next_number: 0,
        };
        let kernel_dirs = KERNEL_DIRS.map(Path::new);
        for dir in with_context("list the root directory", directories_in(Path::new("/")))? {
            if !kernel_dirs.contains(&dir.as_path()) {
                view.cover(dir, 0);
            }
        }
        with_context("mount shared memory", mount_shared_memory())?;
        for (dir, clone) in spec.real_dirs.iter().zip(&clones) {
            with_context("mount a directory of the host", attach_mount(clone, dir))?;
            view.mounted_above(dir);
        }
        Ok(view)
    }

    /// Tells the view that nothing more is mounted on top of it: what changes now is the target's doing.
    pub(super) fn is_complete(&mut self) -> InitResult<()> {
        self.unchanged_usage = with_context("read the space of the layers", LayerUsage::of(&self.layers))?;
        Ok(())
    }

    /// Changes to the working directory, as the view shows it. `/`, if it cannot be entered.
    pub(super) fn enter_working_directory(&self) -> InitResult<()> {
        with_context("enter the working directory", chdir(&self.cwd).or_else(|_| chdir("/")))
    }

    /// Tells the view that something has been mounted on top of it.
    pub(super) fn mounted_above(&mut self, mount_point: &Path) {
        self.mounted_above.push(mount_point.into());
    }

    /// Mounts an overlay over a directory, or over the directories in it.
    fn cover(&mut self, dir: PathBuf, depth: usize) {
        if self.overlays.len() < MAX_OVERLAYS && self.add_overlay(&dir).is_ok() {
            return;
        }
        let inner = directories_in(&dir).unwrap_or_default();
        if depth < MAX_DEPTH {
            inner.into_iter().for_each(|dir| self.cover(dir, depth + 1));
        }
    }

    fn add_overlay(&mut self, mount_point: &Path) -> Result<(), Error> {
        let number = self.next_number;
        self.next_number += 1;
        mount_overlay(&self.layers, mount_point, number)?;
        self.overlays.push(Overlay { mount_point: mount_point.into(), number });
        Ok(())
    }

    /// Undoes every change that the target has made in the overlays and in shared memory. Cheap if there was
    /// none.
    pub(super) fn reset(&mut self) -> InitResult<()> {
        with_context("empty shared memory", empty_shared_memory())?;
        if with_context("read the space of the layers", LayerUsage::of(&self.layers))? == self.unchanged_usage
        {
            return Ok(());
        }
        // An overlay that is a working directory would stay in use.
        with_context("leave the working directory", chdir("/"))?;
        for index in 0..self.overlays.len() {
            if with_context("read a layer of an overlay", self.is_changed(index))? {
                with_context("mount an overlay again", self.renew(index))?;
            }
        }
        self.enter_working_directory()?;
        self.is_complete()
    }

    fn is_changed(&self, index: usize) -> Result<bool, Error> {
        Ok(std::fs::read_dir(self.upper(index))?.next().is_some())
    }

    fn upper(&self, index: usize) -> PathBuf {
        layer_path(&self.layers, "upper", self.overlays[index].number)
    }

    /// Mounts an overlay again, with an empty upper layer, and everything that was mounted below it.
    fn renew(&mut self, index: usize) -> Result<(), Error> {
        let old_number = self.overlays[index].number;
        let mount_point = self.overlays[index].mount_point.clone();
        let kept = self.outermost_above(&mount_point);
        let clones = kept.iter().map(|path| clone_mount(path)).collect::<Result<Vec<_>, _>>()?;
        umount2(&mount_point, MntFlags::MNT_DETACH)?;
        let number = self.next_number;
        self.next_number += 1;
        mount_overlay(&self.layers, &mount_point, number)?;
        self.overlays[index].number = number;
        for (path, clone) in kept.iter().zip(&clones) {
            std::fs::create_dir_all(path)?;
            attach_mount(clone, path)?;
        }
        for layer in ["upper", "work"] {
            std::fs::remove_dir_all(layer_path(&self.layers, layer, old_number))?;
        }
        Ok(())
    }

    /// The mount points below a directory that are not below another one of them.
    fn outermost_above(&self, dir: &Path) -> Vec<PathBuf> {
        let inside: Vec<&PathBuf> = self.mounted_above.iter().filter(|path| path.starts_with(dir)).collect();
        let is_outermost =
            |path: &&PathBuf| !inside.iter().any(|other| *path != *other && path.starts_with(other));
        let mut outermost: Vec<PathBuf> = inside.iter().copied().filter(is_outermost).cloned().collect();
        outermost.dedup();
        outermost
    }

    /// The changes in the overlays since the last reset, at most `max` of them: changed and new files, links
    /// and empty directories, and what was removed.
    pub(super) fn changes(&self, max: usize) -> Vec<OutsideChange> {
        let mut changes = Vec::new();
        for index in 0..self.overlays.len() {
            let (upper, mount_point) = (self.upper(index), self.overlays[index].mount_point.clone());
            collect_changes(&upper, &mount_point, max, &mut changes);
        }
        changes.retain(|change| !self.mounted_above.contains(&change.path));
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes
    }

    /// The directories of the host that are overlays.
    pub(super) fn overlays(&self) -> Vec<PathBuf> {
        self.overlays.iter().map(|overlay| overlay.mount_point.clone()).collect()
    }
}

impl LayerUsage {
    fn of(layers: impl AsFd) -> Result<LayerUsage, Errno> {
        let usage = fstatvfs(layers)?;
        Ok(LayerUsage {
            blocks: usage.blocks() - usage.blocks_free(),
            inodes: usage.files() - usage.files_free(),
        })
    }
}

/// Mounts the tmpfs with the layers. Shared memory will cover it, so that the target does not see it.
fn mount_layers() -> Result<OwnedFd, Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), SHARED_MEMORY, Some("tmpfs"), flags, Some("mode=0755"))?;
    open_directory(Path::new(SHARED_MEMORY))
}

fn mount_shared_memory() -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), SHARED_MEMORY, Some("tmpfs"), flags, Some("mode=1777"))
}

fn empty_shared_memory() -> Result<(), Error> {
    for entry in std::fs::read_dir(SHARED_MEMORY)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?.into())
}

/// The directories in a directory, without symbolic links.
fn directories_in(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut dirs = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            dirs.push(entry.path());
        }
    }
    dirs.sort();
    Ok(dirs)
}

/// The path of a layer. It leads through the descriptor, because shared memory covers the path.
fn layer_path(layers: &OwnedFd, layer: &str, number: u32) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{layer}-{number}", layers.as_raw_fd()))
}

/// Mounts an overlay with empty upper layer over a directory, which is its lower layer.
fn mount_overlay(layers: &OwnedFd, dir: &Path, number: u32) -> Result<(), Error> {
    let flags = nix::libc::O_PATH | nix::libc::O_DIRECTORY | nix::libc::O_NOFOLLOW;
    let lower = OpenOptions::new().read(true).custom_flags(flags).open(dir)?;
    let [upper, work] = ["upper", "work"].map(|layer| layer_path(layers, layer, number));
    make_upper(dir, &lower.metadata()?, &upper)?;
    DirBuilder::new().mode(0o700).create(&work)?;
    // The descriptor stands for the path, which may have characters that separate options.
    let options = format!(
        "userxattr,lowerdir=/proc/self/fd/{},upperdir={},workdir={}",
        lower.as_raw_fd(),
        upper.display(),
        work.display()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mounted = mount(Some("overlay"), dir, Some("overlay"), flags, Some(options.as_str()));
    if mounted.is_err() {
        for layer in [&upper, &work] {
            // What cannot be removed ends with the sandbox.
            let _ = std::fs::remove_dir_all(layer);
        }
    }
    Ok(mounted?)
}

/// Creates an upper layer. Its root is what the target sees as the directory itself, so that it gets the
/// owner and the mode of the lower one.
fn make_upper(dir: &Path, lower: &std::fs::Metadata, upper: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(upper)?;
    let upper_dir = open_directory(upper)?;
    let mode = lower.mode() & 0o7777;
    let is_owned =
        fchown(&upper_dir, Some(Uid::from_raw(lower.uid())), Some(Gid::from_raw(lower.gid()))).is_ok();
    // An ordinary user owns the upper layer of another user's directory. It gets the rights that it has there.
    let mode = if is_owned { mode } else { mode & 0o1077 | own_rights(dir) << 6 };
    File::from(upper_dir).set_permissions(std::fs::Permissions::from_mode(mode))
}

/// What this process may do with a directory: the three bits of a mode.
fn own_rights(dir: &Path) -> u32 {
    let right = |flag: AccessFlags, bit: u32| if access(dir, flag).is_ok() { bit } else { 0 };
    right(AccessFlags::R_OK, 4) | right(AccessFlags::W_OK, 2) | right(AccessFlags::X_OK, 1)
}

/// Collects what an upper layer has, up to `max` entries in all.
fn collect_changes(upper: &Path, shown: &Path, max: usize, changes: &mut Vec<OutsideChange>) {
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(upper.join(&relative)) else { continue };
        let mut is_empty = true;
        for entry in entries.flatten() {
            is_empty = false;
            let Ok(metadata) = entry.metadata() else { continue };
            let inner = relative.join(entry.file_name());
            if metadata.is_dir() {
                pending.push(inner);
            } else if changes.len() < max {
                changes.push(OutsideChange { path: shown.join(inner), removed: is_whiteout(&metadata) });
            }
        }
        if is_empty && !relative.as_os_str().is_empty() && changes.len() < max {
            changes.push(OutsideChange { path: shown.join(relative), removed: false });
        }
    }
}

/// Whether an entry of an upper layer hides an entry of the lower one: a character device with number 0.
fn is_whiteout(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}
