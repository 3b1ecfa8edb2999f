//! Performs a call on behalf of the target and reports its effect to the handler.
//!
//! It works on duplicates of the target's descriptors, which share file offset and status flags, and relative
//! to directories that were opened in the target's own mounts.

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

use super::CallKind;
use super::attribute_calls::AttributeCall;
use super::calls::{BufferArgument, CallRequest, TransferMethod};
use super::handler::{CallEffect, CallHandler, Swap};
use super::resolve_call::{OpenFile, ResolvedCall};
use super::stat::{FileId, FileStat};
use super::sys::{self, NotificationResponse};
use super::target_thread::{MemorySegment, ResolvedPath, TargetThread, reopen_path};

/// Bytes copied between target and file at a time: few enough to stay in a core's cache.
const CHUNK_BYTES: usize = 256 * 1024;
/// Mode of the empty file that replaces a file.
const SWAPPED_IN_MODE: u32 = 0o644;

/// How and when a notification is responded to.
pub(super) enum CallResponse {
    /// The caller sends this response now.
    Now(NotificationResponse),
    /// The response has been sent, or the target was killed and nothing waits for one.
    AlreadySent,
    /// The caller lets the call continue after this time.
    After(Duration),
}

/// Everything that is needed to perform one intercepted call and to respond to it.
pub(super) struct CallContext<'a> {
    pub(super) listener: BorrowedFd<'a>,
    pub(super) notification_id: u64,
    pub(super) tid: i32,
    pub(super) thread: &'a TargetThread,
    pub(super) handler: &'a mut dyn CallHandler,
}

/// The return value of a call, or its errno.
type CallResult = Result<i64, Errno>;

impl CallContext<'_> {
    /// Lets an unwatched call continue. First passes what it writes into an observed pipe to the handler.
    pub(super) fn continue_unwatched(&mut self, request: &CallRequest, call: &ResolvedCall) -> CallResponse {
        if let (CallRequest::Write { buffer, .. }, Some(OpenFile { stat, .. })) = (request, &call.file)
            && stat.file_type() == libc::S_IFIFO
            && self.handler.observes_pipe(stat.file_id)
            && let Ok(segments) = self.thread.segments(*buffer)
        {
            for MemorySegment { address, len_bytes } in segments {
                let mut chunk = vec![0; usize::try_from(len_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
                if let Ok(read_bytes) = self.thread.read_memory(address, &mut chunk) {
                    self.handler.on_payload(&chunk[..read_bytes]);
                }
            }
            self.handler.on_effect(CallEffect::OutputWritten { pipe: stat.file_id });
        }
        CallResponse::Now(NotificationResponse::Continue)
    }

    /// Performs the call and responds with its result.
    pub(super) fn perform(
        &mut self,
        request: CallRequest,
        call: ResolvedCall,
        max_bytes: u64,
    ) -> CallResponse {
        if let CallRequest::Open { flags, mode, .. } = request {
            let opened = self.open(flags, mode, call);
            return match opened {
                Ok(file) => {
                    let close_on_exec = flags & libc::O_CLOEXEC != 0;
                    // Fails with ENOENT if the target was killed in the meantime.
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
        CallResponse::Now(match self.dispatch(request, call, max_bytes) {
            None => NotificationResponse::Continue,
            Some(Ok(value)) => NotificationResponse::Value(value),
            Some(Err(errno)) => NotificationResponse::Fail(errno),
        })
    }

    /// Performs the call and drops its result. The caller responds.
    pub(super) fn perform_without_response(
        &mut self,
        request: CallRequest,
        call: ResolvedCall,
        max_bytes: u64,
    ) {
        if let CallRequest::Open { flags, mode, .. } = request {
            drop(self.open(flags, mode, call));
        } else {
            self.dispatch(request, call, max_bytes);
        }
    }

    /// Performs every call but open. Returns `None` for a call that has to continue in the kernel.
    fn dispatch(&mut self, request: CallRequest, call: ResolvedCall, max_bytes: u64) -> Option<CallResult> {
        let ResolvedCall { resolved_path, resolved_to, file, .. } = call;
        match (request, resolved_path, resolved_to, file) {
            (
                CallRequest::Write { buffer, offset, append, sync, .. },
                _,
                _,
                Some(OpenFile { fd: file, stat }),
            ) => Some(self.write(&file, stat, buffer, WriteOptions { offset, append, sync }, max_bytes)),
            (CallRequest::Read { buffer, offset, .. }, _, _, Some(OpenFile { fd: file, .. })) => {
                Some(self.read(&file, buffer, offset, max_bytes))
            }
            (request @ CallRequest::Transfer { .. }, _, _, Some(file)) => Some(self.transfer(request, &file)),
            (CallRequest::Truncate { size_bytes, .. }, _, _, Some(OpenFile { fd: file, stat })) => {
                Some(self.truncate(&file, stat.file_id, size_bytes))
            }
            (CallRequest::TruncatePath { size_bytes, .. }, Some(path), ..) => {
                Some(self.truncate_path(&path, size_bytes))
            }
            (
                CallRequest::Allocate { mode, offset, len_bytes, .. },
                _,
                _,
                Some(OpenFile { fd: file, stat }),
            ) => Some(self.allocate(&file, stat.file_id, mode, offset, len_bytes)),
            (CallRequest::Rename { flags, .. }, Some(from), Some(to), _) => {
                Some(self.rename(&from, &to, flags))
            }
            (CallRequest::Link { flags, .. }, Some(from), Some(to), _) => {
                Some(self.hard_link(&from, &to, flags))
            }
            (CallRequest::Link { .. }, None, Some(to), Some(OpenFile { fd: file, stat })) => {
                Some(self.link_unnamed(&file, stat.file_id, &to))
            }
            (CallRequest::Symlink { text_address, .. }, Some(path), ..) => {
                Some(self.symlink(text_address, &path))
            }
            (CallRequest::Unlink { is_dir, .. }, Some(path), ..) => Some(self.unlink(&path, is_dir)),
            (CallRequest::Mkdir { mode, .. }, Some(path), ..) => Some(self.mkdir(&path, mode)),
            (CallRequest::Sync { data_only, .. }, _, _, Some(OpenFile { fd: file, stat })) => {
                Some(self.sync(&file, stat.file_id, data_only))
            }
            (CallRequest::SyncAll, ..) => {
                self.handler.on_effect(CallEffect::SyncedAll);
                None
            }
            (CallRequest::Msync { address, wait: true }, ..) => {
                if let Some(stat) = self.thread.mapped_stat(address) {
                    self.handler.on_effect(CallEffect::Synced { file_id: stat.file_id, data_only: true });
                }
                None
            }
            (CallRequest::SetAttributes(AttributeCall { kind, .. }), _, _, Some(file)) => {
                self.announce_attributes(kind, &file);
                None
            }
            (CallRequest::Map { .. }, _, _, Some(OpenFile { fd: file, stat })) => {
                self.handler.on_effect(CallEffect::Mapped { file_id: stat.file_id, file });
                None
            }
            _ => None,
        }
    }

    /// Tells the handler that the kernel is about to change attributes.
    fn announce_attributes(&mut self, kind: CallKind, file: &OpenFile) {
        let (tid, file_id) = (self.tid, file.stat.file_id);
        if let Ok(file) = reopen_path(file.fd.as_fd()) {
            self.handler.on_effect(CallEffect::ChangingAttributes { kind, tid, file_id, file });
        }
    }

    fn open(&mut self, flags: i32, mode: u32, call: ResolvedCall) -> Result<OwnedFd, Errno> {
        let path = call.resolved_path.ok_or(Errno::ENOENT)?;
        let flag_bits = OFlag::from_bits_retain(flags | libc::O_CLOEXEC);
        let mode = Mode::from_bits_truncate(self.thread.apply_umask(mode));
        let file = openat(&path.dir, path.name.as_c_str(), flag_bits, mode)?;
        let stat = FileStat::of_file(file.as_fd())?;
        if flags & libc::O_TMPFILE == libc::O_TMPFILE {
            let effect =
                CallEffect::CreatedUnnamed { file_id: stat.file_id, file: reopen_path(file.as_fd())? };
            self.handler.on_effect(effect);
            return Ok(file);
        }
        let created = path.stat.is_none();
        let truncated =
            !created && flags & libc::O_TRUNC != 0 && path.stat.is_some_and(|stat| stat.size_bytes > 0);
        self.handler.on_effect(CallEffect::Opened {
            entry: path.entry(),
            file_id: stat.file_id,
            created: created.then(|| reopen_path(file.as_fd())).transpose()?,
            truncated,
        });
        Ok(file)
    }

    fn write(
        &mut self,
        file: &OwnedFd,
        stat: FileStat,
        buffer: BufferArgument,
        options: WriteOptions,
        max_bytes: u64,
    ) -> CallResult {
        let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
        let appends = options.append || flags.contains(OFlag::O_APPEND);
        let start = match (appends, options.offset) {
            (true, _) => stat.size_bytes,
            (false, Some(offset)) => offset,
            (false, None) => file_position(file)?,
        };
        let synced = options.sync || flags.intersects(OFlag::O_SYNC | OFlag::O_DSYNC);
        let mut written = 0;
        let own_start = options.offset.map(|_| start);
        let result = self.write_segments(file, buffer, own_start, max_bytes, &mut written);
        if written > 0 {
            self.handler.on_effect(CallEffect::Wrote {
                file_id: stat.file_id,
                offset: start,
                len_bytes: written,
                synced,
            });
            return Ok(written as i64);
        }
        result.map(|()| 0)
    }

    /// Writes from the offset `own_start` on, as pwrite does, or without it at the descriptor's own offset.
    /// `written` also counts bytes that were written before an error.
    fn write_segments(
        &mut self,
        file: &OwnedFd,
        buffer: BufferArgument,
        own_start: Option<u64>,
        max_bytes: u64,
        written: &mut u64,
    ) -> Result<(), Errno> {
        let mut chunk = vec![0; CHUNK_BYTES];
        for MemorySegment { address, len_bytes } in self.thread.segments(buffer)? {
            let mut done = 0;
            while done < len_bytes && *written < max_bytes {
                let requested = (len_bytes - done).min(CHUNK_BYTES as u64).min(max_bytes - *written);
                let part = &mut chunk[..usize::try_from(requested).unwrap_or(CHUNK_BYTES)];
                let read = self.thread.read_memory(address + done, part)?;
                let written_now = match own_start {
                    None => nix::unistd::write(file, &part[..read])?,
                    Some(start) => {
                        let offset = i64::try_from(start + *written).map_err(|_| Errno::EFBIG)?;
                        nix::sys::uio::pwrite(file, &part[..read], offset)?
                    }
                };
                self.handler.on_payload(&part[..written_now]);
                done += written_now as u64;
                *written += written_now as u64;
                if written_now < read || (read as u64) < requested {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        file: &OwnedFd,
        buffer: BufferArgument,
        offset: Option<u64>,
        max_bytes: u64,
    ) -> CallResult {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut total = 0;
        for MemorySegment { address, len_bytes } in self.thread.segments(buffer)? {
            let mut done = 0;
            while done < len_bytes && total < max_bytes {
                let requested = (len_bytes - done).min(CHUNK_BYTES as u64).min(max_bytes - total);
                let part = &mut chunk[..usize::try_from(requested).unwrap_or(CHUNK_BYTES)];
                let read = match offset {
                    None => nix::unistd::read(file, part)?,
                    Some(offset) => {
                        let offset = i64::try_from(offset + total).map_err(|_| Errno::EINVAL)?;
                        nix::sys::uio::pread(file, part, offset)?
                    }
                };
                sys::write_memory(self.tid, address + done, &part[..read])?;
                done += read as u64;
                total += read as u64;
                if (read as u64) < requested {
                    return Ok(total as i64);
                }
            }
        }
        Ok(total as i64)
    }

    /// Replaces the file that the call acts on. Fails with ENOENT if there is no such file.
    pub(super) fn swap(&mut self, call: &ResolvedCall, with: Swap) -> Result<(), Errno> {
        let path = call.resolved_path.as_ref().filter(|path| path.stat.is_some()).ok_or(Errno::ENOENT)?;
        nix::unistd::unlinkat(&path.dir, path.name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        match with {
            Swap::Nothing => {}
            Swap::EmptyFile => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
                drop(openat(
                    &path.dir,
                    path.name.as_c_str(),
                    flags,
                    Mode::from_bits_truncate(SWAPPED_IN_MODE),
                )?);
            }
            Swap::DanglingLink => {
                nix::unistd::symlinkat(c"swapped-away", &path.dir, path.name.as_c_str())?;
            }
        }
        self.handler.on_effect(CallEffect::Swapped { path: call.path.clone() });
        Ok(())
    }

    fn transfer(&mut self, request: CallRequest, out_file: &OpenFile) -> CallResult {
        let CallRequest::Transfer { method, in_fd, in_offset_address, out_offset_address, len_bytes, .. } =
            request
        else {
            return Err(Errno::EINVAL);
        };
        let (out, stat) = (&out_file.fd, out_file.stat);
        if method == TransferMethod::Splice {
            // Bytes spliced from a pipe can't be captured. Programs fall back to read and write.
            self.handler.on_effect(CallEffect::Refused { feature: "splice into a watched file" });
            return Err(Errno::EINVAL);
        }
        let source = self.thread.duplicate_fd(in_fd)?;
        let mut in_offset = self.read_offset(in_offset_address)?;
        let mut out_offset = self.read_offset(out_offset_address)?;
        let start = out_offset
            .map_or_else(|| file_position(out), |offset| u64::try_from(offset).map_err(|_| Errno::EINVAL))?;
        let len_bytes = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        let moved_bytes = match method {
            TransferMethod::CopyFileRange => {
                nix::fcntl::copy_file_range(&source, in_offset.as_mut(), out, out_offset.as_mut(), len_bytes)?
            }
            _ => nix::sys::sendfile::sendfile64(out, &source, in_offset.as_mut(), len_bytes)?,
        };
        for (address, offset) in [(in_offset_address, in_offset), (out_offset_address, out_offset)] {
            if let Some(offset) = offset {
                sys::write_memory(self.tid, address, &offset.to_ne_bytes())?;
            }
        }
        self.read_back(out, start, moved_bytes as u64)?;
        self.handler.on_effect(CallEffect::Wrote {
            file_id: stat.file_id,
            offset: start,
            len_bytes: moved_bytes as u64,
            synced: false,
        });
        Ok(moved_bytes as i64)
    }

    /// Reads an `off_t` of the target. Address 0 means that the call was made without an offset.
    fn read_offset(&self, address: u64) -> Result<Option<i64>, Errno> {
        let mut bytes = [0; 8];
        match address {
            0 => Ok(None),
            address if self.thread.read_memory(address, &mut bytes)? == 8 => {
                Ok(Some(i64::from_ne_bytes(bytes)))
            }
            _ => Err(Errno::EFAULT),
        }
    }

    /// Passes what was just written to the handler, by reading it back from the file.
    fn read_back(&mut self, file: &OwnedFd, mut offset: u64, mut left_bytes: u64) -> Result<(), Errno> {
        let readable = nix::fcntl::open(
            proc_fd_path(file).as_c_str(),
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut chunk = vec![0; CHUNK_BYTES];
        while left_bytes > 0 {
            let part_bytes = usize::try_from(left_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let read = nix::sys::uio::pread(&readable, &mut chunk[..part_bytes], offset as i64)?;
            if read == 0 {
                return Err(Errno::EIO);
            }
            self.handler.on_payload(&chunk[..read]);
            (offset, left_bytes) = (offset + read as u64, left_bytes - read as u64);
        }
        Ok(())
    }

    fn truncate(&mut self, file: &OwnedFd, file_id: FileId, size_bytes: u64) -> CallResult {
        nix::unistd::ftruncate(file, i64::try_from(size_bytes).map_err(|_| Errno::EINVAL)?)?;
        self.handler.on_effect(CallEffect::Truncated { file_id, size_bytes });
        Ok(0)
    }

    fn truncate_path(&mut self, path: &ResolvedPath, size_bytes: u64) -> CallResult {
        let file =
            openat(&path.dir, path.name.as_c_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        self.truncate(&file, path.file_id().ok_or(Errno::ENOENT)?, size_bytes)
    }

    fn allocate(
        &mut self,
        file: &OwnedFd,
        file_id: FileId,
        mode: i32,
        offset: u64,
        len_bytes: u64,
    ) -> CallResult {
        let signed = |value: u64| i64::try_from(value).map_err(|_| Errno::EFBIG);
        fallocate(file, FallocateFlags::from_bits_retain(mode), signed(offset)?, signed(len_bytes)?)?;
        let size_bytes = FileStat::of_file(file.as_fd())?.size_bytes;
        let zeroing_modes = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        let zeroed = (mode & zeroing_modes != 0).then_some((offset, len_bytes));
        self.handler.on_effect(CallEffect::Allocated { file_id, size_bytes, zeroed });
        Ok(0)
    }

    fn rename(&mut self, from: &ResolvedPath, to: &ResolvedPath, flags: u32) -> CallResult {
        let flags = RenameFlags::from_bits_retain(flags);
        let renamed = renameat2(&from.dir, from.name.as_c_str(), &to.dir, to.name.as_c_str(), flags);
        let (from_entry, to_entry) = (from.entry(), to.entry());
        if renamed == Err(Errno::EXDEV) && from.dir_stat.mount_id == to.dir_stat.mount_id {
            self.handler.on_effect(CallEffect::RenameRefused { path: from_entry.path.clone() });
        }
        renamed?;
        let exchanged = flags.contains(RenameFlags::RENAME_EXCHANGE);
        self.handler.on_effect(CallEffect::Renamed { from: from_entry, to: to_entry, exchanged });
        Ok(0)
    }

    fn hard_link(&mut self, from: &ResolvedPath, to: &ResolvedPath, flags: i32) -> CallResult {
        let flags = AtFlags::from_bits_retain(flags & libc::AT_SYMLINK_FOLLOW);
        nix::unistd::linkat(&from.dir, from.name.as_c_str(), &to.dir, to.name.as_c_str(), flags)?;
        let file_id = from.file_id().ok_or(Errno::ENOENT)?;
        self.on_linked(file_id, to);
        Ok(0)
    }

    /// Links a file that the call names by a descriptor.
    fn link_unnamed(&mut self, file: &OwnedFd, file_id: FileId, to: &ResolvedPath) -> CallResult {
        let flags = AtFlags::AT_SYMLINK_FOLLOW;
        let cwd = nix::fcntl::AT_FDCWD;
        nix::unistd::linkat(cwd, proc_fd_path(file).as_c_str(), &to.dir, to.name.as_c_str(), flags)?;
        self.on_linked(file_id, to);
        Ok(0)
    }

    fn on_linked(&mut self, file_id: FileId, to: &ResolvedPath) {
        let new_id = FileStat::of_entry(to.dir.as_fd(), &to.name).map_or(file_id, |stat| stat.file_id);
        self.handler.on_effect(CallEffect::Linked { file_id, entry: to.entry(), new_id });
    }

    fn symlink(&mut self, text_address: u64, path: &ResolvedPath) -> CallResult {
        let text = self.thread.read_string(text_address)?;
        nix::unistd::symlinkat(text.as_c_str(), &path.dir, path.name.as_c_str())?;
        let OpenFile { fd: link, stat } = open_entry(path)?;
        let link_text = PathBuf::from(OsStr::from_bytes(text.as_bytes()));
        let (file_id, entry) = (stat.file_id, path.entry());
        self.handler.on_effect(CallEffect::Symlinked { file_id, entry, link_text, link });
        Ok(0)
    }

    fn unlink(&mut self, path: &ResolvedPath, is_dir: bool) -> CallResult {
        let flags = if is_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        nix::unistd::unlinkat(&path.dir, path.name.as_c_str(), flags)?;
        let entry = path.entry();
        self.handler.on_effect(if is_dir {
            CallEffect::RemovedDir { entry }
        } else {
            CallEffect::Unlinked { entry }
        });
        Ok(0)
    }

    fn mkdir(&mut self, path: &ResolvedPath, mode: u32) -> CallResult {
        let mode = Mode::from_bits_truncate(self.thread.apply_umask(mode));
        nix::sys::stat::mkdirat(&path.dir, path.name.as_c_str(), mode)?;
        let OpenFile { fd: dir, stat } = open_entry(path)?;
        self.handler.on_effect(CallEffect::CreatedDir { file_id: stat.file_id, entry: path.entry(), dir });
        Ok(0)
    }

    fn sync(&mut self, file: &OwnedFd, file_id: FileId, data_only: bool) -> CallResult {
        if self.handler.performs_syncs() {
            let synced = if data_only { nix::unistd::fdatasync(file) } else { nix::unistd::fsync(file) };
            synced?;
        }
        self.handler.on_effect(CallEffect::Synced { file_id, data_only });
        Ok(0)
    }
}

/// Arguments of a write beyond its descriptor and buffer.
#[derive(Clone, Copy)]
struct WriteOptions {
    /// Where to write, as for pwrite. Default: at the descriptor's own offset.
    offset: Option<u64>,
    /// Appends, also if the descriptor does not.
    append: bool,
    /// Writes synchronously, also if the descriptor does not.
    sync: bool,
}

/// Opens the entry that a path names with `O_PATH`. Does not follow a symbolic link.
fn open_entry(path: &ResolvedPath) -> Result<OpenFile, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    OpenFile::new(openat(&path.dir, path.name.as_c_str(), flags, Mode::empty())?)
}

fn file_position(file: &OwnedFd) -> Result<u64, Errno> {
    let offset = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur)?;
    u64::try_from(offset).map_err(|_| Errno::EINVAL)
}

/// A path in /proc that names one of our own descriptors.
fn proc_fd_path(file: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}
