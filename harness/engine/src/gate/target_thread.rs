//! Access to a thread of the target: its memory, its descriptors, and its paths as seen in its own mounts.
//!
//! Paths are resolved from the target's root or working directory and never follow a symbolic link out of the
//! root, so the harness's own mounts don't matter. A call whose path can't be resolved continues in the
//! kernel.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use scenarios::PAGE_BYTES;

use super::calls::{BufferArgument, PathArgument};
use super::handler::DirectoryEntry;
use super::stat::{FileId, FileStat};
use super::sys;

/// Length limit of a path in the kernel.
const MAX_PATH_BYTES: usize = libc::PATH_MAX as usize;
/// Maximum number of symbolic links that are followed at the end of a path.
const MAX_SYMLINKS: u32 = 16;
/// Maximum number of `iovec` structures that the kernel accepts in one call (`UIO_MAXIOV`).
const MAX_IOVECS: u64 = 1024;
/// The umask of a target whose own cannot be read: the usual default.
const DEFAULT_UMASK: u32 = 0o022;

/// Opens a pidfd of a thread, or of its process before Linux 6.9.
fn open_thread(tid: i32) -> Result<OwnedFd, Errno> {
    match sys::open_pidfd(tid, sys::PIDFD_THREAD) {
        Err(Errno::EINVAL) => {
            let process_id: Option<i32> = status_field(tid, "Tgid:").and_then(|text| text.parse().ok());
            sys::open_pidfd(process_id.ok_or(Errno::ESRCH)?, 0)
        }
        opened => opened,
    }
}

fn status_field(tid: i32, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
}

/// The threads that have made calls, by thread id.
#[derive(Default)]
pub(super) struct ThreadCache {
    threads: HashMap<i32, TargetThread>,
}

/// A thread of the target.
pub(super) struct TargetThread {
    tid: i32,
    pidfd: OwnedFd,
    root_dir: OwnedFd,
}

/// The fields of a struct `open_how` that are used.
pub(super) struct OpenHow {
    pub(super) flags: i32,
    pub(super) mode: u32,
}

/// A range of the target's memory.
pub(super) struct MemorySegment {
    pub(super) address: u64,
    pub(super) len_bytes: u64,
}

/// A path of the target, resolved to a directory and a name in it.
pub(super) struct ResolvedPath {
    pub(super) dir: OwnedFd,
    pub(super) dir_stat: FileStat,
    pub(super) name: CString,
    /// Metadata of the named file, or `None` if it does not exist. For a symbolic link, that of the link
    /// itself.
    pub(super) stat: Option<FileStat>,
}

impl ThreadCache {
    /// Returns the thread, from the cache if possible. A thread id can be reused after the thread has ended;
    /// its pidfd shows that, and the entry is replaced.
    pub(super) fn get(&mut self, tid: i32) -> Result<&TargetThread, Errno> {
        let is_stale = self
            .threads
            .get(&tid)
            .is_some_and(|thread| sys::duplicate_fd(thread.pidfd.as_fd(), -1).err() != Some(Errno::EBADF));
        if is_stale {
            self.threads.remove(&tid);
        }
        match self.threads.entry(tid) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(TargetThread::open(tid)?)),
        }
    }
}

impl TargetThread {
    fn open(tid: i32) -> Result<TargetThread, Errno> {
        let pidfd = open_thread(tid)?;
        let root_dir = open_path(Path::new(&format!("/proc/{tid}/root")))?;
        Ok(TargetThread { tid, pidfd, root_dir })
    }

    /// Duplicates a descriptor of the target.
    pub(super) fn duplicate_fd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        sys::duplicate_fd(self.pidfd.as_fd(), fd)
    }

    /// Applies the target's umask to the mode of a new file.
    pub(super) fn apply_umask(&self, mode: u32) -> u32 {
        let umask = status_field(self.tid, "Umask:").and_then(|text| u32::from_str_radix(&text, 8).ok());
        mode & !umask.unwrap_or(DEFAULT_UMASK) & 0o7777
    }

    /// Reads a zero-terminated string from the target's memory.
    pub(super) fn read_string(&self, address: u64) -> Result<CString, Errno> {
        let mut bytes = Vec::with_capacity(256);
        while bytes.len() < MAX_PATH_BYTES {
            let next = address + bytes.len() as u64;
            // Never reads across a page boundary, because the next page may not be mapped.
            let mut part = [0; 256];
            let part_bytes = usize::try_from(PAGE_BYTES - next % PAGE_BYTES).unwrap_or(256).min(part.len());
            let read = sys::read_memory(self.tid, next, &mut part[..part_bytes])?;
            if let Some(end) = part[..read].iter().position(|byte| *byte == 0) {
                bytes.extend(&part[..end]);
                return CString::new(bytes).map_err(|_| Errno::EINVAL);
            }
            bytes.extend(&part[..read]);
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Fills `bytes` from the target's memory. Returns how many bytes were read; fewer if unmapped memory
    /// follows.
    pub(super) fn read_memory(&self, address: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        sys::read_memory(self.tid, address, bytes)
    }

    /// The flags and the mode of a struct `open_how` in the target's memory. Returns `None` if it can't be
    /// read.
    pub(super) fn read_open_how(&self, address: u64) -> Option<OpenHow> {
        let mut bytes = [0; std::mem::size_of::<libc::open_how>()];
        let read = self.read_memory(address, &mut bytes).ok()?;
        (read == bytes.len()).then(|| OpenHow {
            flags: word_at(&bytes, std::mem::offset_of!(libc::open_how, flags)) as i32,
            mode: word_at(&bytes, std::mem::offset_of!(libc::open_how, mode)) as u32,
        })
    }

    /// The parts of a buffer argument.
    pub(super) fn segments(&self, buffer: BufferArgument) -> Result<Vec<MemorySegment>, Errno> {
        let (address, iovec_count) = match buffer {
            BufferArgument::Contiguous { address, len_bytes } => {
                return Ok(vec![MemorySegment { address, len_bytes }]);
            }
            BufferArgument::Vectored { address, iovec_count } => (address, iovec_count),
        };
        let iovec_bytes = std::mem::size_of::<libc::iovec>();
        let count = usize::try_from(iovec_count.min(MAX_IOVECS)).unwrap_or(0);
        let mut iovecs = vec![0; count * iovec_bytes];
        if self.read_memory(address, &mut iovecs)? < iovecs.len() {
            return Err(Errno::EFAULT);
        }
        let segment = |iovec: &[u8]| MemorySegment {
            address: word_at(iovec, std::mem::offset_of!(libc::iovec, iov_base)),
            len_bytes: word_at(iovec, std::mem::offset_of!(libc::iovec, iov_len)),
        };
        Ok(iovecs.chunks_exact(iovec_bytes).map(segment).collect())
    }

    /// The total length of a buffer argument.
    pub(super) fn buffer_len(&self, buffer: BufferArgument) -> Result<u64, Errno> {
        match buffer {
            BufferArgument::Contiguous { len_bytes, .. } => Ok(len_bytes),
            vectored => Ok(self.segments(vectored)?.iter().map(|segment| segment.len_bytes).sum()),
        }
    }

    /// The path of the file mapped at an address, as the target sees it.
    pub(super) fn mapped_path(&self, address: u64) -> Option<PathBuf> {
        let maps = std::fs::read(format!("/proc/{}/maps", self.tid)).ok()?;
        let text = String::from_utf8_lossy(&maps);
        text.lines().find_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let is_inside = u64::from_str_radix(start, 16).ok()? <= address
                && address < u64::from_str_radix(end, 16).ok()?;
            is_inside.then(|| line.find('/').map(|slash| PathBuf::from(&line[slash..]))).flatten()
        })
    }

    /// Metadata of the file mapped at an address.
    pub(super) fn mapped_stat(&self, address: u64) -> Option<FileStat> {
        let text = CString::new(self.mapped_path(address)?.into_os_string().into_vec()).ok()?;
        let resolved = self.resolve_text(libc::AT_FDCWD, &text, true).ok()?;
        resolved.stat
    }

    /// Resolves a path argument. `follow`: if its last component is a symbolic link, the link is followed.
    pub(super) fn resolve(&self, path: PathArgument, follow: bool) -> Result<ResolvedPath, Errno> {
        let text = self.read_string(path.text_address)?;
        self.resolve_text(path.dir_fd, &text, follow)
    }

    /// The descriptor N, if the text is `/proc/self/fd/N` or another name of it. Programs use such paths to link
    /// an unnamed file.
    pub(super) fn proc_self_fd(&self, text: &CString) -> Option<OwnedFd> {
        let text = text.to_str().ok()?;
        let prefixes = ["/proc/self/fd/", "/proc/thread-self/fd/", "/dev/fd/"];
        let number = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))?;
        self.duplicate_fd(number.parse().ok()?).ok()
    }

    /// Opens what a path argument names, with `O_PATH`. Without a text, or with an empty one, that is what the
    /// descriptor refers to.
    pub(super) fn open_object(&self, path: PathArgument, follow: bool) -> Result<OwnedFd, Errno> {
        let text = match path.text_address {
            0 => CString::default(),
            address => self.read_string(address)?,
        };
        if text.is_empty() {
            let fd_link = match path.dir_fd {
                libc::AT_FDCWD => return open_path(Path::new(&format!("/proc/{}/cwd", self.tid))),
                dir_fd => self.duplicate_fd(dir_fd)?,
            };
            return reopen_path(fd_link.as_fd());
        }
        if follow && let Some(file) = self.proc_self_fd(&text) {
            return reopen_path(file.as_fd());
        }
        let flags = libc::O_PATH | libc::O_CLOEXEC | if follow { 0 } else { libc::O_NOFOLLOW };
        let root = self.root_dir.as_fd();
        if text.as_bytes().starts_with(b"/") {
            return sys::openat2(root, &text, flags, 0, libc::RESOLVE_IN_ROOT);
        }
        let base = self.base_dir(path.dir_fd, text.as_bytes())?;
        match sys::openat2(base.as_fd(), &text, flags, 0, libc::RESOLVE_NO_SYMLINKS) {
            Err(Errno::ELOOP) => {
                let full_path =
                    [fd_path(base.as_fd()).as_os_str().as_bytes(), b"/", text.as_bytes()].concat();
                let full_path = CString::new(full_path).map_err(|_| Errno::EINVAL)?;
                sys::openat2(root, &full_path, flags, 0, libc::RESOLVE_IN_ROOT)
            }
            result => result,
        }
    }

    fn resolve_text(&self, dir_fd: i32, text: &CString, follow: bool) -> Result<ResolvedPath, Errno> {
        let mut resolved =
            self.resolve_once(self.base_dir(dir_fd, text.as_bytes())?.as_fd(), text.as_bytes())?;
        for _ in 0..MAX_SYMLINKS {
            let is_link = resolved.stat.is_some_and(|stat| stat.file_type() == libc::S_IFLNK);
            if !follow || !is_link {
                return Ok(resolved);
            }
            let link = nix::fcntl::readlinkat(&resolved.dir, resolved.name.as_c_str())?;
            let absolute = link.as_bytes().starts_with(b"/");
            let base = if absolute { self.root_dir.as_fd() } else { resolved.dir.as_fd() };
            resolved = self.resolve_once(base, link.as_bytes())?;
        }
        Err(Errno::ELOOP)
    }

    /// The directory that a path starts from.
    fn base_dir(&self, dir_fd: i32, text: &[u8]) -> Result<OwnedFd, Errno> {
        if text.is_empty() {
            return Err(Errno::ENOENT);
        }
        if text.starts_with(b"/") {
            return self.root_dir.try_clone().map_err(|_| Errno::EMFILE);
        }
        if dir_fd == libc::AT_FDCWD {
            return open_path(Path::new(&format!("/proc/{}/cwd", self.tid)));
        }
        self.duplicate_fd(dir_fd)
    }

    /// Resolves a path without following a link in its last component. Fails with EISDIR if it has no last
    /// component.
    fn resolve_once(&self, base: BorrowedFd<'_>, text: &[u8]) -> Result<ResolvedPath, Errno> {
        let end = text.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let trimmed = &text[..end];
        let last_slash = trimmed.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = match last_slash {
            Some(slash) => (&trimmed[..=slash], &trimmed[slash + 1..]),
            None => (&b"."[..], trimmed),
        };
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Errno::EISDIR);
        }
        let dir = self.open_parent(base, parent)?;
        let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
        let stat = match FileStat::of_entry(dir.as_fd(), &name) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        Ok(ResolvedPath { dir_stat: FileStat::of_file(dir.as_fd())?, dir, name, stat })
    }

    /// Opens a directory. `..` and symbolic links are resolved as they would be for the target.
    fn open_parent(&self, base: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let text = CString::new(path).map_err(|_| Errno::EINVAL)?;
        if path.starts_with(b"/") {
            return sys::openat2(self.root_dir.as_fd(), &text, flags, 0, libc::RESOLVE_IN_ROOT);
        }
        match sys::openat2(base, &text, flags, 0, libc::RESOLVE_NO_SYMLINKS) {
            Err(Errno::ELOOP) => {
                // The path contains a symbolic link. Resolved from the root, it can't leave the target's
                // mounts.
                let full_path = [fd_path(base).as_os_str().as_bytes(), b"/", path].concat();
                let full_path = CString::new(full_path).map_err(|_| Errno::EINVAL)?;
                sys::openat2(self.root_dir.as_fd(), &full_path, flags, 0, libc::RESOLVE_IN_ROOT)
            }
            result => result,
        }
    }
}

impl ResolvedPath {
    /// The directory entry that the path names.
    pub(super) fn entry(&self) -> DirectoryEntry {
        let name = OsStr::from_bytes(self.name.as_bytes()).to_owned();
        DirectoryEntry { dir: self.dir_stat.file_id, path: self.path(), name }
    }

    /// The whole path, as the target sees it.
    pub(super) fn path(&self) -> PathBuf {
        fd_path(self.dir.as_fd()).join(OsStr::from_bytes(self.name.as_bytes()))
    }

    /// The identity of the named file, if it exists.
    pub(super) fn file_id(&self) -> Option<FileId> {
        self.stat.map(|stat| stat.file_id)
    }
}

/// The 64-bit word at an offset, in the machine's byte order. 0 if the bytes end before.
fn word_at(bytes: &[u8], offset: usize) -> u64 {
    let word = bytes.get(offset..offset + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_ne_bytes)
}

/// The path of an open file, within the mounts that the descriptor was opened in.
pub(super) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// Opens the file of a descriptor anew, with `O_PATH`: without its locks and its file offset.
pub(super) fn reopen_path(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_path(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// Opens a path with `O_PATH`.
fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
}
