//! Where a call of the target points: its paths resolved in its own mounts, its descriptors, its memory.
//!
//! Paths are resolved from the target's root or working folder without following a link out of them, so that the
//! harness's own mounts never matter. What can't be resolved is not watched: the kernel answers it by itself.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

use super::calls::PathArgument;
use super::sys::{self, FileStat};
use super::{DirectoryEntry, FileId};

/// Longest path that the kernel takes.
const MAX_PATH_BYTES: usize = libc::PATH_MAX as usize;
/// Links that are followed at the end of a path.
const MAX_SYMLINKS: u32 = 16;

/// The mounts whose files are watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchedMounts {
    mounts: HashSet<u64>,
}

impl WatchedMounts {
    pub fn new(mounts: impl IntoIterator<Item = u64>) -> WatchedMounts {
        WatchedMounts { mounts: mounts.into_iter().collect() }
    }

    pub(super) fn contains(&self, facts: &FileStat) -> bool {
        self.mounts.contains(&facts.mount_id)
    }
}

/// The mount that a file lies in, by its number in the kernel.
pub fn mount_id(path: &Path) -> std::io::Result<u64> {
    let folder = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    Ok(sys::statx(folder.as_fd(), c"")?.mount_id)
}

/// Identity of what a descriptor is open on.
pub fn file_id_of(file: BorrowedFd<'_>) -> std::io::Result<FileId> {
    Ok(sys::statx(file, c"")?.file_id)
}

/// The process of a thread.
pub(super) fn process_id_of(tid: i32) -> Option<i32> {
    status_field(tid, "Tgid:")?.parse().ok()
}

fn status_field(tid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// Handles on the threads that have made calls.
#[derive(Default)]
pub(super) struct ThreadCache {
    threads: HashMap<i32, TargetThread>,
}

pub(super) struct TargetThread {
    tid: i32,
    pidfd: OwnedFd,
    root_dir: OwnedFd,
}

/// A folder of the target's and a name in it.
pub(super) struct ResolvedPath {
    pub(super) dir: OwnedFd,
    pub(super) dir_stat: FileStat,
    pub(super) name: CString,
    /// Of what the name stands for, if it does; of a link, the link's own.
    pub(super) stat: Option<FileStat>,
}

impl ThreadCache {
    /// Handles are kept: a thread's number is only given to another one once this one is gone, and then the handle says so.
    pub(super) fn get(&mut self, tid: i32) -> Result<&TargetThread, Errno> {
        let stale = self
            .threads
            .get(&tid)
            .is_some_and(|thread| sys::duplicate_fd(thread.pidfd.as_fd(), -1).err() != Some(Errno::EBADF));
        if stale {
            self.threads.remove(&tid);
        }
        match self.threads.entry(tid) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(free) => Ok(free.insert(TargetThread::open(tid)?)),
        }
    }
}

impl TargetThread {
    fn open(tid: i32) -> Result<TargetThread, Errno> {
        let handle = sys::open_thread(tid)?;
        let root = open_path(Path::new(&format!("/proc/{tid}/root")))?;
        Ok(TargetThread { tid, pidfd: handle, root_dir: root })
    }

    pub(super) fn duplicate_fd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        sys::duplicate_fd(self.pidfd.as_fd(), fd)
    }

    /// The mode that a new file gets.
    pub(super) fn apply_umask(&self, mode: u32) -> u32 {
        let umask = status_field(self.tid, "Umask:").and_then(|text| u32::from_str_radix(&text, 8).ok());
        mode & !umask.unwrap_or(0o022) & 0o7777
    }

    /// A text of the target's, up to its zero.
    pub(super) fn read_string(&self, at: u64) -> Result<CString, Errno> {
        let mut bytes = Vec::with_capacity(256);
        while bytes.len() < MAX_PATH_BYTES {
            let next = at + bytes.len() as u64;
            // Never across a page that may not be there.
            let mut part = [0; 256];
            let length = usize::try_from(4096 - next % 4096).unwrap_or(256).min(part.len());
            let read = sys::read_memory(self.tid, next, &mut part[..length])?;
            if let Some(end) = part[..read].iter().position(|byte| *byte == 0) {
                bytes.extend(&part[..end]);
                return CString::new(bytes).map_err(|_| Errno::EINVAL);
            }
            bytes.extend(&part[..read]);
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Fills `bytes` from the target's memory; fewer where its memory ends.
    pub(super) fn read_memory(&self, at: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        sys::read_memory(self.tid, at, bytes)
    }

    /// The mapped file at an address, by its path as the target sees it.
    pub(super) fn mapped_path(&self, at: u64) -> Option<PathBuf> {
        let maps = std::fs::read(format!("/proc/{}/maps", self.tid)).ok()?;
        let text = String::from_utf8_lossy(&maps);
        text.lines().find_map(|line| {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            let within =
                u64::from_str_radix(from, 16).ok()? <= at && at < u64::from_str_radix(to, 16).ok()?;
            within.then(|| line.find('/').map(|start| PathBuf::from(&line[start..]))).flatten()
        })
    }

    pub(super) fn mapped_stat(&self, at: u64) -> Option<FileStat> {
        let text = CString::new(self.mapped_path(at)?.into_os_string().into_vec()).ok()?;
        let spot = self.resolve_text(libc::AT_FDCWD, &text, true).ok()?;
        spot.stat
    }

    pub(super) fn resolve(&self, path: PathArgument, follow: bool) -> Result<ResolvedPath, Errno> {
        let text = self.read_string(path.text_address)?;
        self.resolve_text(path.dir_fd, &text, follow)
    }

    /// A descriptor named as `/proc/self/fd/N`, as programs do to give a nameless file a name.
    pub(super) fn proc_self_fd(&self, text: &CString) -> Option<OwnedFd> {
        let number = text.to_str().ok()?.strip_prefix("/proc/self/fd/")?;
        self.duplicate_fd(number.parse().ok()?).ok()
    }

    fn resolve_text(&self, dir: i32, text: &CString, follow: bool) -> Result<ResolvedPath, Errno> {
        let mut spot = self.resolve_once(self.base_dir(dir, text.as_bytes())?.as_fd(), text.as_bytes())?;
        for _ in 0..MAX_SYMLINKS {
            let is_link = spot.stat.is_some_and(|found| found.mode & libc::S_IFMT == libc::S_IFLNK);
            if !follow || !is_link {
                return Ok(spot);
            }
            let link = nix::fcntl::readlinkat(&spot.dir, spot.name.as_c_str())?;
            let absolute = link.as_bytes().starts_with(b"/");
            let base = if absolute { self.root_dir.as_fd() } else { spot.dir.as_fd() };
            spot = self.resolve_once(base, link.as_bytes())?;
        }
        Err(Errno::ELOOP)
    }

    fn base_dir(&self, dir: i32, text: &[u8]) -> Result<OwnedFd, Errno> {
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        if text.starts_with(b"/") {
            return self.root_dir.try_clone().map_err(|_| Errno::EMFILE);
        }
        if dir == libc::AT_FDCWD {
            return open_path(Path::new(&format!("/proc/{}/cwd", self.tid)));
        }
        self.duplicate_fd(dir)
    }

    fn resolve_once(&self, base: BorrowedFd<'_>, text: &[u8]) -> Result<ResolvedPath, Errno> {
        let end = text.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let trimmed = &text[..end];
        let cut = trimmed.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match cut {
            Some(at) => (&trimmed[..=at], &trimmed[at + 1..]),
            None => (&b"."[..], trimmed),
        };
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Errno::EISDIR);
        }
        let dir = self.open_parent(base, parent)?;
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let found = match sys::statx(dir.as_fd(), &name) {
            Ok(facts) => Some(facts),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        Ok(ResolvedPath { dir_stat: sys::statx(dir.as_fd(), c"")?, dir, name, stat: found })
    }

    /// The folder of a path. `..` and links are resolved as the target would.
    fn open_parent(&self, base: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let text = CString::new(path).map_err(|_| Errno::EINVAL)?;
        if path.starts_with(b"/") {
            return sys::openat2(self.root_dir.as_fd(), &text, flags, 0, libc::RESOLVE_IN_ROOT);
        }
        match sys::openat2(base, &text, flags, 0, libc::RESOLVE_NO_SYMLINKS) {
            Err(Errno::ELOOP) => {
                // A link on the way: named from the root, it can't lead out of the target's mounts.
                let whole = [fd_path(base).as_os_str().as_bytes(), b"/", path].concat();
                let whole = CString::new(whole).map_err(|_| Errno::EINVAL)?;
                sys::openat2(self.root_dir.as_fd(), &whole, flags, 0, libc::RESOLVE_IN_ROOT)
            }
            found => found,
        }
    }
}

impl ResolvedPath {
    pub(super) fn entry(&self) -> DirectoryEntry {
        let name = OsStr::from_bytes(self.name.as_bytes()).to_owned();
        DirectoryEntry { dir: self.dir_stat.file_id, path: self.path(), name }
    }

    pub(super) fn path(&self) -> PathBuf {
        fd_path(self.dir.as_fd()).join(OsStr::from_bytes(self.name.as_bytes()))
    }

    pub(super) fn file_id(&self) -> Option<FileId> {
        self.stat.map(|found| found.file_id)
    }
}

/// What a descriptor is open on, as its own mounts name it.
pub(super) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
}
