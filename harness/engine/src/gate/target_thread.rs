//! Access to a thread of the target: its memory, its descriptors, its limits, and where its paths start.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use scenarios::PAGE_BYTES;

use super::calls::{BufferArgument, OpenHow, PathArgument};
use super::follow_error::FollowError;
use super::open_file::{OpenFile, open_path, reopen_path};
use super::path_walk::{LastName, PathWalk, WalkOptions, WalkStart, WalkedPath};
use super::stat::{FileId, FileStat};
use super::sys;
use super::thread_status::status_field;

/// Length limit of a path in the kernel.
const MAX_PATH_BYTES: usize = libc::PATH_MAX as usize;
/// Maximum number of `iovec` structures that the kernel accepts in one call (`UIO_MAXIOV`).
const MAX_IOVECS: u64 = 1024;

/// The `RESOLVE_*` flags of openat2 that the walk over a path follows.
const KNOWN_RESOLVE_FLAGS: u64 = libc::RESOLVE_NO_XDEV
    | libc::RESOLVE_NO_MAGICLINKS
    | libc::RESOLVE_NO_SYMLINKS
    | libc::RESOLVE_BENEATH
    | libc::RESOLVE_IN_ROOT
    | libc::RESOLVE_CACHED;

/// The kernel refuses these together.
const EXCLUSIVE_RESOLVE_FLAGS: u64 = libc::RESOLVE_BENEATH | libc::RESOLVE_IN_ROOT;

/// Opens a pidfd of a thread, or of its process before Linux 6.9.
fn open_thread(tid: i32) -> Result<OwnedFd, FollowError> {
    let opened = match sys::open_pidfd(tid, sys::PIDFD_THREAD) {
        Err(Errno::EINVAL) => {
            let process_id = status_field(tid, "Tgid:")?.parse();
            process_id.map_err(|_| Errno::ESRCH).and_then(|process_id| sys::open_pidfd(process_id, 0))
        }
        opened => opened,
    };
    opened.map_err(|errno| FollowError::reaching("open the process", tid, errno))
}

/// A thread of the target.
pub(super) struct TargetThread {
    tid: i32,
    pidfd: OwnedFd,
}

/// A range of the target's memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemorySegment {
    pub(super) address: u64,
    pub(super) len_bytes: u64,
}

impl MemorySegment {
    /// Whether it ends where no process has memory: the kernel refuses the whole call then, whatever lies before.
    pub(super) fn is_beyond_memory(self) -> bool {
        let end = self.address.checked_add(self.len_bytes);
        end.is_none_or(|end| i64::try_from(end).is_err())
    }
}

impl TargetThread {
    /// # Errors
    /// The thread has ended, or cannot be accessed.
    pub(super) fn open(tid: i32) -> Result<TargetThread, FollowError> {
        Ok(TargetThread { tid, pidfd: open_thread(tid)? })
    }

    pub(super) fn has_ended(&self) -> bool {
        sys::duplicate_fd(self.pidfd.as_fd(), -1).err() != Some(Errno::EBADF)
    }

    /// Duplicates a descriptor of the target.
    pub(super) fn duplicate_fd(&self, fd: i32) -> Result<OwnedFd, FollowError> {
        sys::duplicate_fd(self.pidfd.as_fd(), fd).map_err(|errno| self.unreachable("use a descriptor", errno))
    }

    /// The name of the program that the thread runs, such as `python3`.
    pub(super) fn program_name(&self) -> String {
        let program = std::fs::read_link(format!("/proc/{}/exe", self.tid)).unwrap_or_default();
        program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A table of the thread's network, such as `tcp`. Empty if it cannot be read.
    pub(super) fn network_table(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/net/{name}", self.tid)).unwrap_or_default()
    }

    /// The clock of a timerfd. `None`: the descriptor is none, or of another kind.
    pub(super) fn timer_fd_clock(&self, fd: i32) -> Option<i32> {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", self.tid)).ok()?;
        info.lines().find_map(|line| line.strip_prefix("clockid:")?.trim().parse().ok())
    }

    /// The clock of a timer that timer_create made. `None`: it is not known.
    pub(super) fn process_timer_clock(&self, id: i32) -> Option<i32> {
        let timers = std::fs::read_to_string(format!("/proc/{}/timers", self.tid)).ok()?;
        let first = format!("ID: {id}");
        let own = timers.lines().skip_while(|line| *line != first);
        own.skip(1)
            .take_while(|line| !line.starts_with("ID:"))
            .find_map(|line| line.strip_prefix("ClockID:")?.trim().parse().ok())
    }

    /// The absolute form of a path of the target.
    pub(super) fn absolute_path(&self, path: &Path) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/cwd", self.tid)).unwrap_or_default().join(path)
    }

    /// Metadata of what the target sees at an absolute path. Links on the way are not followed.
    pub(super) fn stat_of(&self, path: &Path) -> Option<FileStat> {
        let text = CString::new(path.as_os_str().as_bytes()).ok()?;
        let walked = self.walk_text(libc::AT_FDCWD, &text, WalkOptions::new(LastName::Followed)).ok()?;
        Some(walked.open_node().ok()?.stat)
    }

    fn unreachable(&self, doing: &'static str, errno: Errno) -> FollowError {
        FollowError::reaching(doing, self.tid, errno)
    }

    /// Whether the target can open one more file.
    pub(super) fn has_free_descriptor(&self) -> Result<bool, FollowError> {
        let limit = sys::soft_limit(self.tid, libc::RLIMIT_NOFILE)
            .map_err(|errno| self.unreachable("read the limits", errno))?;
        let Some(highest) = i32::try_from(limit).ok().and_then(|limit| limit.checked_sub(1)) else {
            return Ok(limit > 0);
        };
        // Numbers are given out from the lowest on: while the highest is free, the table is not full.
        match sys::duplicate_fd(self.pidfd.as_fd(), highest) {
            Err(_) => Ok(true),
            Ok(_) => {
                let open = std::fs::read_dir(format!("/proc/{}/fd", self.tid));
                let numbers =
                    open.into_iter().flatten().flatten().filter_map(|entry| {
                        entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
                    });
                Ok((numbers.filter(|number| *number <= highest).count() as u64) < limit)
            }
        }
    }

    /// The largest size to which the target may extend a file (`RLIMIT_FSIZE`), in bytes.
    pub(super) fn file_size_limit(&self) -> Result<u64, FollowError> {
        sys::soft_limit(self.tid, libc::RLIMIT_FSIZE)
            .map_err(|errno| self.unreachable("read the limits", errno))
    }

    /// The target's umask.
    pub(super) fn umask(&self) -> Result<u32, FollowError> {
        let umask = status_field(self.tid, "Umask:")?;
        u32::from_str_radix(&umask, 8).map_err(|_| FollowError::Target(Errno::ESRCH))
    }

    /// Reads a zero-terminated string from the target's memory.
    pub(super) fn read_string(&self, address: u64) -> Result<CString, FollowError> {
        let mut bytes = Vec::with_capacity(256);
        while bytes.len() < MAX_PATH_BYTES {
            let next = address + bytes.len() as u64;
            // Never reads across a page boundary, because the next page may not be mapped.
            let mut part = [0; 256];
            let part_bytes = usize::try_from(PAGE_BYTES - next % PAGE_BYTES).unwrap_or(256).min(part.len());
            let read = self.read_memory(next, &mut part[..part_bytes])?;
            if let Some(end) = part[..read].iter().position(|byte| *byte == 0) {
                bytes.extend(&part[..end]);
                return CString::new(bytes).map_err(|_| FollowError::Target(Errno::EINVAL));
            }
            bytes.extend(&part[..read]);
        }
        Err(FollowError::Target(Errno::ENAMETOOLONG))
    }

    /// Fills `bytes` from the target's memory. Returns how many bytes were read; fewer if unmapped memory
    /// follows.
    pub(super) fn read_memory(&self, address: u64, bytes: &mut [u8]) -> Result<usize, FollowError> {
        sys::read_memory(self.tid, address, bytes).map_err(|errno| self.unreachable("read the memory", errno))
    }

    /// Copies bytes into the target's memory. Returns how many were copied; fewer if memory follows that cannot be
    /// written.
    pub(super) fn write_memory(&self, address: u64, bytes: &[u8]) -> Result<usize, FollowError> {
        sys::write_memory(self.tid, address, bytes)
            .map_err(|errno| self.unreachable("write to the memory", errno))
    }

    /// A struct `open_how` of `size_bytes` in the target's memory. Fails with E2BIG if it has fields that are
    /// not known here.
    pub(super) fn read_open_how(&self, address: u64, size_bytes: u64) -> Result<OpenHow, FollowError> {
        let known_bytes = std::mem::size_of::<libc::open_how>();
        let size_bytes = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        if size_bytes < known_bytes {
            return Err(FollowError::Target(Errno::EINVAL));
        }
        if size_bytes > PAGE_BYTES as usize {
            return Err(FollowError::Target(Errno::E2BIG));
        }
        let mut bytes = vec![0; size_bytes];
        if self.read_memory(address, &mut bytes)? < size_bytes {
            return Err(FollowError::Target(Errno::EFAULT));
        }
        if bytes[known_bytes..].iter().any(|byte| *byte != 0) {
            return Err(FollowError::Target(Errno::E2BIG));
        }
        let how = OpenHow {
            flags: word_at(&bytes, std::mem::offset_of!(libc::open_how, flags)),
            mode: word_at(&bytes, std::mem::offset_of!(libc::open_how, mode)),
            resolve: word_at(&bytes, std::mem::offset_of!(libc::open_how, resolve)),
        };
        let contradicts = how.resolve & EXCLUSIVE_RESOLVE_FLAGS == EXCLUSIVE_RESOLVE_FLAGS;
        match how.resolve & !KNOWN_RESOLVE_FLAGS {
            0 if !contradicts => Ok(how),
            _ => Err(FollowError::Target(Errno::EINVAL)),
        }
    }

    /// The parts of a buffer argument.
    ///
    /// # Errors
    /// The kernel refuses the buffer too: too many parts, too long, or not in the target's memory.
    pub(super) fn segments(&self, buffer: BufferArgument) -> Result<Vec<MemorySegment>, FollowError> {
        let (address, iovec_count) = match buffer {
            BufferArgument::Contiguous { address, len_bytes } => {
                return Ok(vec![MemorySegment { address, len_bytes }]);
            }
            BufferArgument::Vectored { address, iovec_count } => (address, iovec_count),
        };
        let iovec_bytes = std::mem::size_of::<libc::iovec>();
        if iovec_count > MAX_IOVECS {
            return Err(FollowError::Target(Errno::EINVAL));
        }
        let mut iovecs = vec![0; usize::try_from(iovec_count).unwrap_or(0) * iovec_bytes];
        if !iovecs.is_empty() && self.read_memory(address, &mut iovecs)? < iovecs.len() {
            return Err(FollowError::Target(Errno::EFAULT));
        }
        let segment = |iovec: &[u8]| MemorySegment {
            address: word_at(iovec, std::mem::offset_of!(libc::iovec, iov_base)),
            len_bytes: word_at(iovec, std::mem::offset_of!(libc::iovec, iov_len)),
        };
        let segments: Vec<MemorySegment> = iovecs.chunks_exact(iovec_bytes).map(segment).collect();
        match segments.iter().any(|segment| i64::try_from(segment.len_bytes).is_err()) {
            true => Err(FollowError::Target(Errno::EINVAL)),
            false => Ok(segments),
        }
    }

    /// The total length of a buffer argument.
    pub(super) fn buffer_len(&self, buffer: BufferArgument) -> Result<u64, FollowError> {
        let total = self.segments(buffer)?.iter().map(|segment| u128::from(segment.len_bytes)).sum::<u128>();
        Ok(u64::try_from(total).unwrap_or(u64::MAX))
    }

    /// The files that are mapped in a range of the target's memory, with the paths that they had when they were
    /// mapped.
    pub(super) fn mapped_files(&self, address: u64, len_bytes: u64) -> Vec<MappedRange> {
        let maps = std::fs::read(format!("/proc/{}/maps", self.tid)).unwrap_or_default();
        let end = address.saturating_add(len_bytes.max(1));
        maps.split(|byte| *byte == b'\n')
            .filter_map(MappedRange::parse)
            .filter(|range| range.start < end && address < range.end)
            .collect()
    }

    /// Whether the target may write all of this memory.
    pub(super) fn can_write(&self, segment: MemorySegment) -> bool {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.tid)).unwrap_or_default();
        let end = segment.address.saturating_add(segment.len_bytes);
        let mut covered = segment.address;
        // In order of their addresses.
        for line in maps.lines() {
            let Some((range, rest)) = line.split_once(' ') else { continue };
            let bounds = range.split_once('-').map(<[&str; 2]>::from);
            let Some([Ok(from), Ok(to)]) =
                bounds.map(|bounds| bounds.map(|hex| u64::from_str_radix(hex, 16)))
            else {
                continue;
            };
            if from <= covered && covered < to && rest.as_bytes().get(1) == Some(&b'w') {
                covered = to;
            }
        }
        covered >= end
    }

    /// Follows a path argument, which must not be empty.
    pub(super) fn walk(&self, path: PathArgument, options: WalkOptions) -> Result<WalkedPath, FollowError> {
        let text = self.read_string(path.text_address)?;
        match text.is_empty() {
            true => Err(FollowError::Target(Errno::ENOENT)),
            false => self.walk_text(path.dir_fd, &text, options),
        }
    }

    /// Follows a path. `dir_fd`: where a relative one starts.
    pub(super) fn walk_text(
        &self,
        dir_fd: i32,
        text: &CStr,
        options: WalkOptions,
    ) -> Result<WalkedPath, FollowError> {
        let starts_at_base = options.resolve & (libc::RESOLVE_IN_ROOT | libc::RESOLVE_BENEATH) != 0;
        let base = match text.to_bytes().starts_with(b"/") && !starts_at_base {
            true => self.open_root()?,
            false => self.open_base(dir_fd)?,
        };
        PathWalk::new(WalkStart { tid: self.tid, root: self.open_root()?, base }, text, options)?.run()
    }

    /// The file that a call names by a path, or by a descriptor if the path has no text (`address` 0 or an empty
    /// one).
    pub(super) fn open_object(&self, path: PathArgument, last: LastName) -> Result<OpenFile, FollowError> {
        let text = match path.text_address {
            0 => CString::default(),
            address => self.read_string(address)?,
        };
        match text.is_empty() {
            true => Ok(OpenFile::new(self.open_base(path.dir_fd)?)?),
            false => Ok(self.walk_text(path.dir_fd, &text, WalkOptions::new(last))?.open_node()?),
        }
    }

    /// The root directory of the target.
    pub(super) fn open_root(&self) -> Result<OwnedFd, Errno> {
        open_path(Path::new(&format!("/proc/{}/root", self.tid)))
    }

    /// What a descriptor argument of a call on a path refers to.
    fn open_base(&self, dir_fd: i32) -> Result<OwnedFd, FollowError> {
        match dir_fd {
            libc::AT_FDCWD => Ok(open_path(Path::new(&format!("/proc/{}/cwd", self.tid)))?),
            dir_fd => Ok(reopen_path(self.duplicate_fd(dir_fd)?.as_fd())?),
        }
    }
}

/// A file that is mapped into the target's memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MappedRange {
    start: u64,
    end: u64,
    pub(super) is_shared: bool,
    pub(super) file_id: FileId,
    pub(super) path: PathBuf,
}

impl MappedRange {
    /// Reads a line of /proc/PID/maps. `None` for memory without a file.
    fn parse(line: &[u8]) -> Option<MappedRange> {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
        let (start, end) = text()?.split_once('-')?;
        let (permissions, _offset, device, inode) = (text()?, text()?, text()?, text()?);
        let is_shared = permissions.ends_with('s');
        let (major, minor) = device.split_once(':')?;
        let hex = |digits: &str| u64::from_str_radix(digits, 16).ok();
        let path = fields.next()?.trim_ascii_start();
        let file_id = FileId { dev: hex(major)? << 32 | hex(minor)?, ino: inode.parse().ok()? };
        let path = PathBuf::from(OsStr::from_bytes(path));
        path.is_absolute()
            .then(|| Some(MappedRange { start: hex(start)?, end: hex(end)?, is_shared, file_id, path }))?
    }
}

/// The 64-bit word at an offset, in the machine's byte order. 0 if the bytes end before.
fn word_at(bytes: &[u8], offset: usize) -> u64 {
    let word = bytes.get(offset..offset + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_ne_bytes)
}
