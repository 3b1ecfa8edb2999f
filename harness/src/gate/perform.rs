//! Does a call on behalf of the target: on duplicates of its descriptors, which share offset and flags, and below its own folders.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, FallocateFlags, FcntlArg, OFlag, RenameFlags, fallocate, fcntl, openat, renameat2,
};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::calls::{BufferArgument, CallRequest, TransferMethod};
use super::resolve_call::ResolvedCall;
use super::sys::{self, FileStat, NotificationResponse};
use super::target_thread::{ResolvedPath, TargetThread, WatchedMounts};
use super::{CallEffect, CallHandler, FileId, Swap};

/// Bytes that go from target to file at a time: small enough to stay in a core's cache.
const CHUNK_BYTES: usize = 256 * 1024;
/// `iovec`s that the kernel takes in one call.
const MAX_IOVECS: u64 = 1024;

/// How a call is answered.
pub(super) enum CallResponse {
    Now(NotificationResponse),
    /// It has been, or nobody waits.
    AlreadySent,
    After(Duration),
}

/// Everything that is needed to deal with one stopped call.
pub(super) struct CallContext<'a> {
    pub(super) listener: BorrowedFd<'a>,
    pub(super) notification_id: u64,
    pub(super) tid: i32,
    pub(super) thread: &'a TargetThread,
    pub(super) watched: &'a WatchedMounts,
    pub(super) handler: &'a mut dyn CallHandler,
}

type CallResult = Result<i64, Errno>;

impl CallContext<'_> {
    /// The `open_how` of the target's, where there is one.
    pub(super) fn read_open_how(&self, asked: CallRequest) -> CallRequest {
        let CallRequest::Openat2 { path, how_address: how } = asked else { return asked };
        let mut bytes = [0; 24];
        match self.thread.read_memory(how, &mut bytes) {
            Ok(24) => {
                let word = |at: usize| bytes[at..at + 8].try_into().map_or(0, u64::from_ne_bytes);
                CallRequest::Open { path, flags: word(0) as i32, mode: word(8) as u32 }
            }
            _ => asked,
        }
    }

    /// What is not watched is let through; words in pipes that are listened to are told.
    pub(super) fn continue_unwatched(&mut self, asked: &CallRequest, subject: &ResolvedCall) -> CallResponse {
        if let (CallRequest::Write { buffer: bytes, .. }, Some((_, facts))) = (asked, &subject.file)
            && facts.mode & libc::S_IFMT == libc::S_IFIFO
            && self.handler.observes_pipe(facts.file_id)
            && let Ok(parts) = self.segments(*bytes)
        {
            for (at, length) in parts {
                let mut text = vec![0; usize::try_from(length).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
                if let Ok(read) = self.thread.read_memory(at, &mut text) {
                    self.handler.on_payload(&text[..read]);
                }
            }
            self.handler.on_effect(CallEffect::OutputWritten { pipe: facts.file_id });
        }
        CallResponse::Now(NotificationResponse::Continue)
    }

    /// Does it and answers with its result.
    pub(super) fn perform(&mut self, asked: CallRequest, subject: ResolvedCall, most: u64) -> CallResponse {
        if let CallRequest::Open { flags, mode, .. } = asked {
            let opened = self.open(flags, mode, subject);
            return match opened {
                Ok(file) => {
                    let close_on_exec = flags & libc::O_CLOEXEC != 0;
                    // ENOENT: killed meanwhile.
                    let _ = sys::send_fd_response(
                        self.listener,
                        self.notification_id,
                        file.as_fd(),
                        close_on_exec,
                    );
                    CallResponse::AlreadySent
                }
                Err(errno) => CallResponse::Now(NotificationResponse::Fail(errno)),
            };
        }
        CallResponse::Now(match self.dispatch(asked, subject, most) {
            None => NotificationResponse::Continue,
            Some(Ok(value)) => NotificationResponse::Value(value),
            Some(Err(errno)) => NotificationResponse::Fail(errno),
        })
    }

    /// Does it; what comes of it is for the caller to answer.
    pub(super) fn perform_without_response(&mut self, asked: CallRequest, subject: ResolvedCall, most: u64) {
        if let CallRequest::Open { flags, mode, .. } = asked {
            drop(self.open(flags, mode, subject));
        } else {
            self.dispatch(asked, subject, most);
        }
    }

    /// None: the kernel has to do it.
    fn dispatch(&mut self, asked: CallRequest, subject: ResolvedCall, most: u64) -> Option<CallResult> {
        let ResolvedCall { resolved_path: spot, resolved_to: to, file, .. } = subject;
        match (asked, spot, to, file) {
            (CallRequest::Write { buffer: bytes, offset, append, sync, .. }, _, _, Some((file, facts))) => {
                Some(self.write(&file, facts, bytes, WriteOptions { offset, append, sync }, most))
            }
            (CallRequest::Read { buffer: bytes, offset, .. }, _, _, Some((file, _))) => {
                Some(self.read(&file, bytes, offset, most))
            }
            (CallRequest::Transfer { method: call, in_fd: from, args, .. }, _, _, Some((file, facts))) => {
                Some(self.transfer(call, from, args, &file, facts))
            }
            (CallRequest::Truncate { size_bytes: size, .. }, _, _, Some((file, facts))) => {
                Some(self.truncate(&file, facts.file_id, size))
            }
            (CallRequest::TruncatePath { size_bytes: size, .. }, Some(spot), ..) => {
                Some(self.truncate_path(&spot, size))
            }
            (CallRequest::Allocate { mode, offset, len_bytes: length, .. }, _, _, Some((file, facts))) => {
                Some(self.allocate(&file, facts.file_id, mode, offset, length))
            }
            (CallRequest::Rename { flags, .. }, Some(from), Some(to), _) => {
                Some(self.rename(&from, &to, flags))
            }
            (CallRequest::Link { flags, .. }, Some(from), Some(to), _) => {
                Some(self.hard_link(&from, &to, flags))
            }
            (CallRequest::Link { .. }, None, Some(to), Some((file, facts))) => {
                Some(self.link_unnamed(&file, facts.file_id, &to))
            }
            (CallRequest::Symlink { text_address: text, .. }, Some(spot), ..) => {
                Some(self.symlink(text, &spot))
            }
            (CallRequest::Unlink { is_dir: folder, .. }, Some(spot), ..) => Some(self.unlink(&spot, folder)),
            (CallRequest::Mkdir { mode, .. }, Some(spot), ..) => Some(self.mkdir(&spot, mode)),
            (CallRequest::Sync { data_only, .. }, _, _, Some((file, facts))) => {
                Some(self.sync(&file, facts.file_id, data_only))
            }
            (CallRequest::SyncAll, ..) => {
                self.handler.on_effect(CallEffect::SyncedAll);
                None
            }
            (CallRequest::Msync { address: at, wait: true }, ..) => {
                if let Some(facts) = self.thread.mapped_stat(at) {
                    self.handler.on_effect(CallEffect::Synced { file_id: facts.file_id, data_only: true });
                }
                None
            }
            (CallRequest::Map { .. }, _, _, Some((file, facts))) => {
                self.handler.on_effect(CallEffect::Mapped { file_id: facts.file_id, file });
                None
            }
            _ => None,
        }
    }

    fn open(&mut self, flags: i32, mode: u32, subject: ResolvedCall) -> Result<OwnedFd, Errno> {
        let spot = subject.resolved_path.ok_or(Errno::ENOENT)?;
        let flag_bits = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
        let mode = Mode::from_bits_truncate(self.thread.apply_umask(mode));
        let file = openat(&spot.dir, spot.name.as_c_str(), flag_bits, mode)?;
        let facts = sys::statx(file.as_fd(), c"")?;
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            self.handler.on_effect(CallEffect::CreatedUnnamed { file_id: facts.file_id });
            return Ok(file);
        }
        let created = spot.stat.is_none();
        let truncated =
            !created && flags & libc::O_TRUNC != 0 && spot.stat.is_some_and(|found| found.size_bytes > 0);
        self.handler.on_effect(CallEffect::Opened {
            entry: spot.entry(),
            file_id: facts.file_id,
            created,
            truncated,
        });
        Ok(file)
    }

    pub(super) fn buffer_len(&self, bytes: BufferArgument) -> Result<u64, Errno> {
        match bytes {
            BufferArgument::Contiguous { len_bytes: length, .. } => Ok(length),
            many => Ok(self.segments(many)?.iter().map(|(_, length)| length).sum()),
        }
    }

    /// Addresses and lengths.
    fn segments(&self, bytes: BufferArgument) -> Result<Vec<(u64, u64)>, Errno> {
        match bytes {
            BufferArgument::Contiguous { address: at, len_bytes: length } => Ok(vec![(at, length)]),
            BufferArgument::Vectored { address: at, iovec_count: count } => {
                let mut words = vec![0; usize::try_from(count.min(MAX_IOVECS)).unwrap_or(0) * 16];
                if self.thread.read_memory(at, &mut words)? < words.len() {
                    return Err(Errno::EFAULT);
                }
                let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
                Ok(words.chunks_exact(16).map(|iovec| (word(&iovec[..8]), word(&iovec[8..]))).collect())
            }
        }
    }

    fn write(
        &mut self,
        file: &OwnedFd,
        facts: FileStat,
        bytes: BufferArgument,
        target: WriteOptions,
        most: u64,
    ) -> CallResult {
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        let appends = target.append || flags.contains(OFlag::O_APPEND);
        let start = match (appends, target.offset) {
            (true, _) => facts.size_bytes,
            (false, Some(offset)) => offset,
            (false, None) => file_position(file)?,
        };
        let synced = target.sync || flags.intersects(OFlag::O_SYNC | OFlag::O_DSYNC);
        let mut written = 0;
        let result = self.write_segments(file, bytes, (target.offset, start), most, &mut written);
        if written > 0 {
            self.handler.on_effect(CallEffect::Wrote {
                file_id: facts.file_id,
                offset: start,
                len_bytes: written,
                synced,
            });
            return Ok(written as i64);
        }
        result.map(|()| 0)
    }

    fn write_segments(
        &mut self,
        file: &OwnedFd,
        bytes: BufferArgument,
        (given, start): (Option<u64>, u64),
        most: u64,
        written: &mut u64,
    ) -> Result<(), Errno> {
        let mut buffer = vec![0; CHUNK_BYTES];
        for (at, length) in self.segments(bytes)? {
            let mut done = 0;
            while done < length && *written < most {
                let wanted = (length - done).min(CHUNK_BYTES as u64).min(most - *written);
                let part = &mut buffer[..usize::try_from(wanted).unwrap_or(CHUNK_BYTES)];
                let read = self.thread.read_memory(at + done, part)?;
                let put = match given {
                    None => nix::unistd::write(file, &part[..read])?,
                    Some(_) => {
                        let offset = i64::try_from(start + *written).map_err(|_| Errno::EFBIG)?;
                        nix::sys::uio::pwrite(file, &part[..read], offset)?
                    }
                };
                self.handler.on_payload(&part[..put]);
                done += put as u64;
                *written += put as u64;
                if put < read || (read as u64) < wanted {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, file: &OwnedFd, bytes: BufferArgument, offset: Option<u64>, most: u64) -> CallResult {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut total = 0;
        for (at, length) in self.segments(bytes)? {
            let mut done = 0;
            while done < length && total < most {
                let wanted = (length - done).min(CHUNK_BYTES as u64).min(most - total);
                let part = &mut buffer[..usize::try_from(wanted).unwrap_or(CHUNK_BYTES)];
                let got = match offset {
                    None => nix::unistd::read(file, part)?,
                    Some(offset) => {
                        let from = i64::try_from(offset + total).map_err(|_| Errno::EINVAL)?;
                        nix::sys::uio::pread(file, part, from)?
                    }
                };
                sys::write_memory(self.tid, at + done, &part[..got])?;
                done += got as u64;
                total += got as u64;
                if (got as u64) < wanted {
                    return Ok(total as i64);
                }
            }
        }
        Ok(total as i64)
    }

    /// Another thing, or nothing, at the place that the call is about. Only where something is there.
    pub(super) fn swap(&mut self, subject: &ResolvedCall, with: Swap) -> Result<(), Errno> {
        let spot = subject.resolved_path.as_ref().filter(|spot| spot.stat.is_some()).ok_or(Errno::ENOENT)?;
        nix::unistd::unlinkat(&spot.dir, spot.name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        match with {
            Swap::Nothing => {}
            Swap::EmptyFile => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                drop(openat(&spot.dir, spot.name.as_c_str(), flags, Mode::from_bits_truncate(0o644))?);
            }
            Swap::DanglingLink => {
                nix::unistd::symlinkat(c"swapped-away", &spot.dir, spot.name.as_c_str())?;
            }
        }
        self.handler.on_effect(CallEffect::Swapped { path: subject.path.clone() });
        Ok(())
    }

    fn transfer(
        &mut self,
        call: TransferMethod,
        from: i32,
        args: [u64; 6],
        out: &OwnedFd,
        facts: FileStat,
    ) -> CallResult {
        if call == TransferMethod::Splice {
            // What comes out of a pipe can't be seen on its way; programs fall back to reading and writing.
            self.handler.on_effect(CallEffect::Refused { feature: "splice into a watched file" });
            return Err(Errno::EINVAL);
        }
        let source = self.thread.duplicate_fd(from)?;
        let (from_at, out_at, count) = match call {
            TransferMethod::CopyFileRange => (args[1], args[3], args[4]),
            _ => (args[2], 0, args[3]),
        };
        let mut from_offset = self.read_offset(from_at)?;
        let mut out_offset = self.read_offset(out_at)?;
        let start = out_offset
            .map_or_else(|| file_position(out), |at| u64::try_from(at).map_err(|_| Errno::EINVAL))?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let moved = match call {
            TransferMethod::CopyFileRange => {
                nix::fcntl::copy_file_range(&source, from_offset.as_mut(), out, out_offset.as_mut(), count)?
            }
            _ => nix::sys::sendfile::sendfile64(out, &source, from_offset.as_mut(), count)?,
        };
        for (at, offset) in [(from_at, from_offset), (out_at, out_offset)] {
            if let Some(offset) = offset {
                sys::write_memory(self.tid, at, &offset.to_ne_bytes())?;
            }
        }
        self.read_back(out, start, moved as u64)?;
        self.handler.on_effect(CallEffect::Wrote {
            file_id: facts.file_id,
            offset: start,
            len_bytes: moved as u64,
            synced: false,
        });
        Ok(moved as i64)
    }

    fn read_offset(&self, at: u64) -> Result<Option<i64>, Errno> {
        let mut bytes = [0; 8];
        match at {
            0 => Ok(None),
            at if self.thread.read_memory(at, &mut bytes)? == 8 => Ok(Some(i64::from_ne_bytes(bytes))),
            _ => Err(Errno::EFAULT),
        }
    }

    fn read_back(&mut self, file: &OwnedFd, mut at: u64, mut left: u64) -> Result<(), Errno> {
        let again = nix::fcntl::open(
            proc_fd_path(file).as_c_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut buffer = vec![0; CHUNK_BYTES];
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let read = nix::sys::uio::pread(&again, &mut buffer[..part], at as i64)?;
            if read == 0 {
                return Err(Errno::EIO);
            }
            self.handler.on_payload(&buffer[..read]);
            (at, left) = (at + read as u64, left - read as u64);
        }
        Ok(())
    }

    fn truncate(&mut self, file: &OwnedFd, node: FileId, size: u64) -> CallResult {
        nix::unistd::ftruncate(file, i64::try_from(size).map_err(|_| Errno::EINVAL)?)?;
        self.handler.on_effect(CallEffect::Truncated { file_id: node, size_bytes: size });
        Ok(0)
    }

    fn truncate_path(&mut self, spot: &ResolvedPath, size: u64) -> CallResult {
        let file =
            openat(&spot.dir, spot.name.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        self.truncate(&file, spot.file_id().ok_or(Errno::ENOENT)?, size)
    }

    fn allocate(&mut self, file: &OwnedFd, node: FileId, mode: i32, offset: u64, length: u64) -> CallResult {
        let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EFBIG);
        fallocate(file, FallocateFlags::from_bits_retain(mode), signed(offset)?, signed(length)?)?;
        let size = sys::statx(file.as_fd(), c"")?.size_bytes;
        let clears = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        let zeroed = (mode & clears != 0).then_some((offset, length));
        self.handler.on_effect(CallEffect::Allocated { file_id: node, size_bytes: size, zeroed });
        Ok(0)
    }

    fn rename(&mut self, from: &ResolvedPath, to: &ResolvedPath, flags: u32) -> CallResult {
        let how = RenameFlags::from_bits_retain(flags);
        renameat2(&from.dir, from.name.as_c_str(), &to.dir, to.name.as_c_str(), how)?;
        let exchanged = how.contains(RenameFlags::RENAME_EXCHANGE);
        self.handler.on_effect(CallEffect::Renamed { from: from.entry(), to: to.entry(), exchanged });
        Ok(0)
    }

    fn hard_link(&mut self, from: &ResolvedPath, to: &ResolvedPath, flags: i32) -> CallResult {
        let how = AtFlags::from_bits_retain(flags & libc::AT_SYMLINK_FOLLOW);
        nix::unistd::linkat(&from.dir, from.name.as_c_str(), &to.dir, to.name.as_c_str(), how)?;
        let node = from.file_id().ok_or(Errno::ENOENT)?;
        self.handler.on_effect(CallEffect::Linked { file_id: node, entry: to.entry() });
        Ok(0)
    }

    fn link_unnamed(&mut self, file: &OwnedFd, node: FileId, to: &ResolvedPath) -> CallResult {
        let flags = AtFlags::AT_SYMLINK_FOLLOW;
        let here = nix::fcntl::AT_FDCWD;
        nix::unistd::linkat(here, proc_fd_path(file).as_c_str(), &to.dir, to.name.as_c_str(), flags)?;
        self.handler.on_effect(CallEffect::Linked { file_id: node, entry: to.entry() });
        Ok(0)
    }

    fn symlink(&mut self, text: u64, spot: &ResolvedPath) -> CallResult {
        let text = self.thread.read_string(text)?;
        nix::unistd::symlinkat(text.as_c_str(), &spot.dir, spot.name.as_c_str())?;
        let node = sys::statx(spot.dir.as_fd(), &spot.name)?.file_id;
        let text = PathBuf::from(OsStr::from_bytes(text.as_bytes()));
        self.handler.on_effect(CallEffect::Symlinked { file_id: node, entry: spot.entry(), link_text: text });
        Ok(0)
    }

    fn unlink(&mut self, spot: &ResolvedPath, folder: bool) -> CallResult {
        let how = if folder { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        nix::unistd::unlinkat(&spot.dir, spot.name.as_c_str(), how)?;
        let place = spot.entry();
        self.handler.on_effect(if folder {
            CallEffect::RemovedDir { entry: place }
        } else {
            CallEffect::Unlinked { entry: place }
        });
        Ok(0)
    }

    fn mkdir(&mut self, spot: &ResolvedPath, mode: u32) -> CallResult {
        let mode = Mode::from_bits_truncate(self.thread.apply_umask(mode));
        nix::sys::stat::mkdirat(&spot.dir, spot.name.as_c_str(), mode)?;
        let node = sys::statx(spot.dir.as_fd(), &spot.name)?.file_id;
        self.handler.on_effect(CallEffect::CreatedDir { file_id: node, entry: spot.entry() });
        Ok(0)
    }

    fn sync(&mut self, file: &OwnedFd, node: FileId, data_only: bool) -> CallResult {
        if self.handler.performs_syncs() {
            let synced = if data_only { nix::unistd::fdatasync(file) } else { nix::unistd::fsync(file) };
            synced?;
        }
        self.handler.on_effect(CallEffect::Synced { file_id: node, data_only });
        Ok(0)
    }
}

/// Where a write goes, beside what its descriptor says.
#[derive(Clone, Copy)]
struct WriteOptions {
    offset: Option<u64>,
    append: bool,
    sync: bool,
}

fn file_position(file: &OwnedFd) -> Result<u64, Errno> {
    let at = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur)?;
    u64::try_from(at).map_err(|_| Errno::EINVAL)
}

/// A descriptor of ours as a path.
fn proc_fd_path(file: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}
