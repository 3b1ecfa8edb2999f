//! What a sandbox shows of the host: every directory is read-only or an overlay, so that nothing a target
//! does reaches the user's files. Runs in the sandbox's init, inside its mount namespace. Knows nothing of
//! targets and crash states.
//!
//! Each top-level directory of the host is the lower layer of one overlay; its upper layer lies in memory. A
//! directory that cannot be a lower layer, because other file systems are mounted below it, stays read-only,
//! and the directories in it get overlays of their own. The working directory and what is below it is always
//! private: where no overlay is possible, it is put together from its entries. `/dev/shm` is private and
//! begins empty. The only real directories are those that the harness shares with the sandbox, and those that
//! the user opens.

use std::fs::{File, OpenOptions};
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::chdir;

use super::init_error::{InitResult, with_context};
use super::overlay_layers::{Layers, open_lower};
use super::protocol::{HostViewSpec, OutsideChange};
use super::sys::{attach_mount, clone_mount, make_read_only};

/// Directories of the host that are no ordinary file systems. They stay read-only.
const KERNEL_DIRS: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Shared memory of POSIX. The layers of the overlays lie in a tmpfs that this one covers.
const SHARED_MEMORY: &str = "/dev/shm";
/// How deep the search for directories that can be overlays goes below a top-level directory. On the way to
/// the working directory, and below it, there is no limit.
const MAX_DEPTH: usize = 4;
/// At most this many overlays are made.
const MAX_OVERLAYS: usize = 256;

/// One directory of the host that the target may change without changing the host.
struct PrivateDir {
    mount_point: PathBuf,
    /// The directory of the host.
    lower: File,
    /// The number of its layers.
    number: u32,
}

/// The space in use in the tmpfs of the layers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct LayerUsage {
    blocks: u64,
    inodes: u64,
}

/// Something that is mounted on top of a private directory, and a copy of the mount.
struct KeptMount {
    mount_point: PathBuf,
    clone: OwnedFd,
}

/// The sandbox's view of the host.
pub(super) struct HostView {
    layers: Layers,
    overlays: Vec<PrivateDir>,
    /// Directories in the working directory that were put together, the inner ones first.
    assembled: Vec<PrivateDir>,
    /// Mount points that were made on top of the private directories, in this order.
    mounted_above: Vec<PathBuf>,
    cwd: PathBuf,
    /// The usage while nothing has been changed.
    unchanged_usage: LayerUsage,
}

impl HostView {
    /// Makes the host read-only, and mounts the overlays and the real directories.
    pub(super) fn set_up(spec: &HostViewSpec) -> InitResult<HostView> {
        let clones: Result<Vec<OwnedFd>, Errno> = spec.real_dirs.iter().map(|dir| clone_mount(dir)).collect();
        let clones = with_context("share a directory with the host", clones)?;
        let root = with_context("open the root directory", File::open("/"))?;
        with_context("make the host read-only", make_read_only(&root))?;
        let host_memory = with_context("open shared memory", open_lower(Path::new(SHARED_MEMORY)))?;
        let tmpfs = with_context("mount a tmpfs for the overlays", mount_layers())?;
        let unchanged_usage = with_context("read its free space", LayerUsage::of(&tmpfs))?;
        let mut view = HostView {
            layers: Layers::new(tmpfs, spec.copied.clone()),
            overlays: Vec::new(),
            assembled: Vec::new(),
            mounted_above: Vec::new(),
            cwd: spec.cwd.clone(),
            unchanged_usage,
        };
        let kernel_dirs = KERNEL_DIRS.map(Path::new);
        for dir in with_context("list the root directory", view.directories_in(Path::new("/")))? {
            if !kernel_dirs.contains(&dir.as_path()) {
                view.cover(dir, 0)?;
            }
        }
        view.cover_shared_memory(host_memory)?;
        for (dir, clone) in spec.real_dirs.iter().zip(&clones) {
            let made = std::fs::create_dir_all(dir).and_then(|()| Ok(attach_mount(clone, dir)?));
            with_context("mount a directory of the host", made)?;
            view.mounted_above(dir);
        }
        Ok(view)
    }

    /// Tells the view that nothing more is mounted on top of it: what changes now is the target's doing.
    pub(super) fn is_complete(&mut self) -> InitResult<()> {
        let usage = LayerUsage::of(self.layers.root());
        self.unchanged_usage = with_context("read the space of the layers", usage)?;
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

    /// Makes a directory private: by an overlay, or by overlays over the directories in it.
    fn cover(&mut self, dir: PathBuf, depth: usize) -> InitResult<()> {
        let is_near = self.cwd.starts_with(&dir) || dir.starts_with(&self.cwd);
        if (is_near || self.overlays.len() < MAX_OVERLAYS)
            && let Ok(lower) = open_lower(&dir)
            && let Ok(number) = self.layers.mount_overlay(&dir, &lower)
        {
            self.overlays.push(PrivateDir { mount_point: dir, lower, number });
            return Ok(());
        }
        if is_near || depth < MAX_DEPTH {
            for inner in self.directories_in(&dir).unwrap_or_default() {
                self.cover(inner, depth + 1)?;
            }
        }
        if dir.starts_with(&self.cwd) {
            let assembled = open_lower(&dir).and_then(|lower| {
                let number = self.layers.assemble(&dir)?;
                Ok(PrivateDir { mount_point: dir, lower, number })
            });
            self.assembled.push(with_context("make a private view of the working directory", assembled)?);
        }
        Ok(())
    }

    /// Makes shared memory private. It begins empty, unless the working directory is in it.
    fn cover_shared_memory(&mut self, lower: File) -> InitResult<()> {
        let mount_point = PathBuf::from(SHARED_MEMORY);
        if !self.cwd.starts_with(&mount_point) {
            return with_context("mount shared memory", mount_shared_memory());
        }
        let number = with_context("mount shared memory", self.layers.mount_overlay(&mount_point, &lower))?;
        self.overlays.push(PrivateDir { mount_point, lower, number });
        Ok(())
    }

    /// The directories in a directory, without symbolic links. The one with the working directory comes first.
    fn directories_in(&self, dir: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut dirs = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
            }
        }
        dirs.sort_by_key(|dir| (!self.cwd.starts_with(dir), dir.clone()));
        Ok(dirs)
    }

    /// Undoes every change that the target has made in the private directories and in shared memory. Cheap if
    /// there was none.
    pub(super) fn reset(&mut self) -> InitResult<()> {
        with_context("empty shared memory", self.empty_shared_memory())?;
        let usage = with_context("read the space of the layers", LayerUsage::of(self.layers.root()))?;
        if usage == self.unchanged_usage {
            return Ok(());
        }
        // A directory in which a process is stays in use.
        with_context("leave the working directory", chdir("/"))?;
        with_context("mount the private directories again", self.renew())?;
        self.enter_working_directory()?;
        self.is_complete()
    }

    /// Removes what is in shared memory, but not what is mounted there. As an overlay it is renewed instead.
    fn empty_shared_memory(&self) -> Result<(), Error> {
        if self.cwd.starts_with(SHARED_MEMORY) {
            return Ok(());
        }
        for entry in std::fs::read_dir(SHARED_MEMORY)? {
            let entry = entry?;
            let path = entry.path();
            if self.mounted_above.iter().any(|mounted| mounted.starts_with(&path)) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(path)?;
            } else {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Mounts every private directory again that has been changed, and then everything that was mounted on top
    /// of it.
    fn renew(&mut self) -> Result<(), Error> {
        let kept = self.keep_mounts()?;
        let mut renewed = Vec::new();
        for dir in std::mem::take(&mut self.assembled).iter().rev() {
            umount2(&dir.mount_point, MntFlags::MNT_DETACH)?;
            self.layers.remove(dir.number);
            renewed.push(dir.mount_point.clone());
        }
        for overlay in &mut self.overlays {
            if self.layers.has_entries(overlay.number)? {
                umount2(&overlay.mount_point, MntFlags::MNT_DETACH)?;
                self.layers.remove(overlay.number);
                overlay.number = self.layers.mount_overlay(&overlay.mount_point, &overlay.lower)?;
                renewed.push(overlay.mount_point.clone());
            }
        }
        for mount_point in renewed.iter().rev().filter(|dir| dir.starts_with(&self.cwd)) {
            if !self.overlays.iter().any(|overlay| overlay.mount_point == *mount_point) {
                let lower = open_lower(mount_point)?;
                let number = self.layers.assemble(mount_point)?;
                self.assembled.push(PrivateDir { mount_point: mount_point.clone(), lower, number });
            }
        }
        for mount in kept {
            if renewed.iter().any(|dir| mount.mount_point.starts_with(dir)) {
                std::fs::create_dir_all(&mount.mount_point)?;
                attach_mount(&mount.clone, &mount.mount_point)?;
            }
        }
        Ok(())
    }

    /// Copies of the mounts on top of the private directories that are not on top of one another.
    fn keep_mounts(&self) -> Result<Vec<KeptMount>, Error> {
        let all = &self.mounted_above;
        let is_inner = |path: &PathBuf| all.iter().any(|other| path != other && path.starts_with(other));
        let mut outermost: Vec<&PathBuf> = all.iter().filter(|path| !is_inner(path)).collect();
        outermost.dedup();
        let keep = |path: &PathBuf| Ok(KeptMount { mount_point: path.clone(), clone: clone_mount(path)? });
        outermost.into_iter().map(keep).collect()
    }

    /// The changes in the overlays since the last reset, at most `max` of them.
    pub(super) fn changes(&self, max: usize) -> Vec<OutsideChange> {
        let mut changes = Vec::new();
        for overlay in &self.overlays {
            self.layers.collect_changes(overlay.number, &overlay.mount_point, max, &mut changes);
        }
        changes.retain(|change| !self.mounted_above.contains(&change.path));
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes
    }

    /// The directories of the host that the target can change without changing the host.
    pub(super) fn private_dirs(&self) -> Vec<PathBuf> {
        self.overlays.iter().chain(&self.assembled).map(|dir| dir.mount_point.clone()).collect()
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
    let directory = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(SHARED_MEMORY)?;
    Ok(directory.into())
}

fn mount_shared_memory() -> Result<(), Errno> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), SHARED_MEMORY, Some("tmpfs"), flags, Some("mode=1777"))
}
