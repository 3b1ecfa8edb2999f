//! What a sandbox shows of the host: every directory is read-only or an overlay, so that nothing a target
//! does reaches the user's files. Runs in the sandbox's init, inside its mount namespace. Knows nothing of
//! targets and crash states.
//!
//! The root directory is one of the sandbox's own: `private_root`. Each directory of the host in it is the
//! lower layer of one overlay; its upper layer lies in memory. A directory that cannot be a lower layer,
//! because other file systems are mounted below it, stays read-only, and the directories in it get overlays of
//! their own. The working directory and what is below it is always private: where no overlay is possible, it is
//! put together from its entries. `/dev/shm` is private and begins empty. What belongs to the harness is not
//! shown. The only real directories are those that the harness shares with the sandbox, and those that the user
//! opens.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::chdir;

use super::host_mounts::HostMounts;
use super::init_error::{InitResult, with_context};
use super::overlay_layers::{Layers, open_lower};
use super::private_root::PrivateRoot;
use super::protocol::{HostViewSpec, OutsideChange};
use super::remove_tree::remove_tree;
use super::sys::{attach_mount, clone_mount, make_read_only};

/// Shared memory of POSIX. The layers of the overlays lie in a tmpfs that this one covers.
const SHARED_MEMORY: &str = "/dev/shm";
/// How deep the search for directories that can be overlays goes below a top-level directory. On the way to
/// the working directory, and below it, there is no limit.
const MAX_DEPTH: usize = 4;
/// At most this many overlays are made.
const MAX_OVERLAYS: usize = 256;

/// The mode of shared memory.
const SHARED_MEMORY_MODE: u32 = 0o1777;

/// One directory of the host that the target may change without changing the host.
struct PrivateDir {
    mount_point: PathBuf,
    /// The directory of the host.
    lower: File,
    /// The number of its layers.
    number: u32,
    /// What it has while the target has not changed it.
    access: DirAccess,
}

/// Who may do what with a directory. A target can change that without using space in a layer.
#[derive(Clone, Copy, PartialEq, Eq)]
struct DirAccess {
    mode: u32,
    uid: u32,
    gid: u32,
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
    root: PrivateRoot,
    /// What was mounted before the sandbox mounted anything.
    host_mounts: HostMounts,
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
        let host_mounts = with_context("list the mounts of the host", HostMounts::read())?;
        let host_root = with_context("open the root directory", File::open("/"))?;
        with_context("make the host read-only", make_read_only(&host_root))?;
        let host_memory = with_context("open shared memory", open_lower(Path::new(SHARED_MEMORY)))?;
        let tmpfs = with_context("mount a tmpfs for the overlays", mount_layers())?;
        let unchanged_usage = with_context("read its free space", LayerUsage::of(&tmpfs))?;
        let mut layers = Layers::new(tmpfs, spec.copied.clone(), spec.hidden.clone());
        let root = with_context("make a private root directory", PrivateRoot::set_up(&mut layers))?;
        let mut view = HostView {
            layers,
            root,
            host_mounts,
            overlays: Vec::new(),
            assembled: Vec::new(),
            mounted_above: Vec::new(),
            cwd: spec.cwd.clone(),
            unchanged_usage,
        };
        let mut dirs = view.root.dirs().to_vec();
        view.sort_by_distance(&mut dirs);
        for dir in dirs {
            view.cover(dir, 0)?;
        }
        view.cover_shared_memory(host_memory)?;
        for dir in &spec.hidden {
            view.cover_hidden(dir)?;
        }
        for (dir, clone) in spec.real_dirs.iter().zip(&clones) {
            with_context("mount a directory of the host", view.mount_above(clone, dir))?;
        }
        Ok(view)
    }

    /// Mounts a copy of a mount on top of the view.
    pub(super) fn mount_above(&mut self, clone: &OwnedFd, mount_point: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(mount_point)?;
        attach_mount(clone, mount_point)?;
        self.mounted_above(mount_point);
        Ok(())
    }

    /// An empty directory to which no path of the target leads.
    pub(super) fn unreachable_dir(&mut self) -> InitResult<PathBuf> {
        let like = with_context("open the root directory", open_lower(Path::new("/")))?;
        with_context("create a directory", self.layers.new_tree(&like))
    }

    /// Tells the view that nothing more is mounted on top of it: what changes now is the target's doing.
    pub(super) fn is_complete(&mut self) -> InitResult<()> {
        let usage = LayerUsage::of(self.layers.root());
        self.unchanged_usage = with_context("read the space of the layers", usage)?;
        with_context("list the root directory", self.root.is_complete())
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
        let host_dir = if depth == 0 { self.root.host_path(&dir) } else { dir.clone() };
        // The kernel would refuse the overlay, and log each refusal.
        let can_be_lower = self.host_mounts.inside(&dir).is_none();
        if can_be_lower
            && (is_near || self.overlays.len() < MAX_OVERLAYS)
            && let Ok(lower) = open_lower(&host_dir)
            && let Ok(overlay) = self.mount_overlay(dir.clone(), lower)
        {
            self.overlays.push(overlay);
            return Ok(());
        }
        if depth == 0 {
            with_context("show a directory of the host", self.root.show(&dir))?;
        }
        if is_near || depth < MAX_DEPTH {
            for inner in self.directories_in(&dir).unwrap_or_default() {
                self.cover(inner, depth + 1)?;
            }
        }
        if dir.starts_with(&self.cwd) {
            let is_cwd = dir == self.cwd;
            match self.assemble(dir) {
                // Somebody has removed it from the host in the meantime.
                Err(error) if error.kind() == ErrorKind::NotFound && !is_cwd => {}
                assembled => {
                    let assembled = with_context("make a private view of the working directory", assembled)?;
                    self.assembled.push(assembled);
                }
            }
        }
        Ok(())
    }

    fn mount_overlay(&mut self, mount_point: PathBuf, lower: File) -> Result<PrivateDir, Error> {
        let number = self.layers.mount_overlay(&mount_point, &lower)?;
        let access = DirAccess::of(&mount_point)?;
        Ok(PrivateDir { mount_point, lower, number, access })
    }

    fn assemble(&mut self, mount_point: PathBuf) -> Result<PrivateDir, Error> {
        let lower = open_lower(&mount_point)?;
        let number = self.layers.assemble(&mount_point)?;
        let access = DirAccess::of(&mount_point)?;
        Ok(PrivateDir { mount_point, lower, number, access })
    }

    /// Covers a directory that must not be shown, where the overlay around it could not hide it.
    fn cover_hidden(&self, dir: &Path) -> InitResult<()> {
        if !dir.is_dir() {
            return Ok(());
        }
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let covered = mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("mode=0755,size=4k"));
        with_context("hide a directory of the harness", covered)
    }

    /// Makes shared memory private. It begins empty, unless the working directory is in it.
    fn cover_shared_memory(&mut self, lower: File) -> InitResult<()> {
        let mount_point = PathBuf::from(SHARED_MEMORY);
        if !self.cwd.starts_with(&mount_point) {
            return with_context("mount shared memory", mount_shared_memory());
        }
        let overlay = with_context("mount shared memory", self.mount_overlay(mount_point, lower))?;
        self.overlays.push(overlay);
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
        self.sort_by_distance(&mut dirs);
        Ok(dirs)
    }

    /// The one with the working directory comes first.
    fn sort_by_distance(&self, dirs: &mut [PathBuf]) {
        dirs.sort_by_key(|dir| (!self.cwd.starts_with(dir), dir.clone()));
    }

    /// Undoes every change that the target has made in the private directories and in shared memory. Cheap if
    /// there was none.
    pub(super) fn reset(&mut self) -> InitResult<()> {
        with_context("empty shared memory", self.empty_shared_memory())?;
        let usage = with_context("read the space of the layers", LayerUsage::of(self.layers.root()))?;
        let has_same_access = |dir: &PrivateDir| DirAccess::of(&dir.mount_point) == Ok(dir.access);
        let private_dirs = || self.overlays.iter().chain(&self.assembled);
        if usage == self.unchanged_usage && private_dirs().all(has_same_access) {
            return Ok(());
        }
        // A directory in which a process is stays in use.
        with_context("leave the working directory", chdir("/"))?;
        with_context("mount the private directories again", self.renew())?;
        with_context("undo changes in the root directory", self.root.reset())?;
        self.enter_working_directory()?;
        self.is_complete()
    }

    /// Removes what is in shared memory, but not what is mounted there. As an overlay it is renewed instead.
    fn empty_shared_memory(&self) -> Result<(), Error> {
        if self.cwd.starts_with(SHARED_MEMORY) {
            return Ok(());
        }
        std::fs::set_permissions(SHARED_MEMORY, Permissions::from_mode(SHARED_MEMORY_MODE))?;
        for entry in std::fs::read_dir(SHARED_MEMORY)? {
            let entry = entry?;
            let path = entry.path();
            if self.mounted_above.iter().any(|mounted| mounted.starts_with(&path)) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                remove_tree(&path).map_err(Error::other)?;
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
        for mut overlay in std::mem::take(&mut self.overlays) {
            let is_changed = DirAccess::of(&overlay.mount_point) != Ok(overlay.access);
            if is_changed || self.layers.has_entries(overlay.number)? {
                let unmounted = umount2(&overlay.mount_point, MntFlags::MNT_DETACH);
                self.layers.remove(overlay.number);
                if let Err(Errno::ENOENT | Errno::EINVAL) = unmounted {
                    // Somebody has removed the directory from the host, and the kernel has unmounted the overlay. If
                    // there is a new one, it can only be read.
                    continue;
                }
                unmounted?;
                match self.layers.mount_overlay(&overlay.mount_point, &overlay.lower) {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    number => overlay.number = number?,
                }
                renewed.push(overlay.mount_point.clone());
            }
            self.overlays.push(overlay);
        }
        let is_overlay = |dir: &PathBuf| self.overlays.iter().any(|overlay| overlay.mount_point == *dir);
        let disassembled = renewed.iter().rev().filter(|dir| dir.starts_with(&self.cwd) && !is_overlay(dir));
        for mount_point in disassembled.cloned().collect::<Vec<_>>() {
            let assembled = self.assemble(mount_point)?;
            self.assembled.push(assembled);
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
        changes.extend(self.root.changes());
        changes.retain(|change| !self.mounted_above.contains(&change.path));
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        changes
    }

    /// The directories of the host that the target can change without changing the host.
    pub(super) fn private_dirs(&self) -> Vec<PathBuf> {
        self.overlays.iter().chain(&self.assembled).map(|dir| dir.mount_point.clone()).collect()
    }
}

impl DirAccess {
    fn of(dir: &Path) -> Result<DirAccess, Errno> {
        let metadata = nix::sys::stat::stat(dir)?;
        Ok(DirAccess { mode: metadata.st_mode, uid: metadata.st_uid, gid: metadata.st_gid })
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
