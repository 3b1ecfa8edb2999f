//! Performs a call on behalf of the target and reports its effect to the handler.
//!
//! It works on duplicates of the target's descriptors, which share file offset and status flags, and relative
//! to directories that were opened in the target's own mounts.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, RenameFlags, fallocate, openat, renameat2};
use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::CallKind;
use super::attribute_calls::AttributeCall;
use super::byte_transfer::{ByteTransfer, CallResult, WriteOptions, proc_fd_path};
use super::calls::CallRequest;
use super::handler::{CallEffect, CallHandler, Swap};
use super::resolve_call::{OpenFile, ResolvedCall};
use super::stat::{FileId, FileStat};
use super::sys::{self, NotificationResponse};
use super::target_thread::{ResolvedPath, TargetThread, reopen_path};

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

impl CallContext<'_> {
    /// Lets an unwatched call continue. First passes what it writes into an observed pipe to the handler.
    pub(super) fn continue_unwatched(&mut self, request: &CallRequest, call: &ResolvedCall) -> CallResponse {
        if let (CallRequest::Write { buffer, .. }, Some(OpenFile { stat, .. })) = (request, &call.file)
            && stat.file_type() == libc::S_IFIFO
            && self.handler.observes_pipe(stat.file_id)
            && let Ok(segments) = self.thread.segments(*buffer)
        {
            self.bytes().show_first_chunks(segments);
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
            ) => Some(self.bytes().write(
                &OpenFile { fd: file, stat },
                buffer,
                WriteOptions { offset, append, sync },
                max_bytes,
            )),
            (CallRequest::Read { buffer, offset, .. }, _, _, Some(OpenFile { fd: file, .. })) => {
                Some(self.bytes().read(&file, buffer, offset, max_bytes))
            }
            (request @ CallRequest::Transfer { .. }, _, _, Some(file)) => {
                Some(self.bytes().transfer(request, &file))
            }
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

    fn bytes(&mut self) -> ByteTransfer<'_> {
        ByteTransfer { tid: self.tid, thread: self.thread, handler: self.handler }
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

/// Opens the entry that a path names with `O_PATH`. Does not follow a symbolic link.
fn open_entry(path: &ResolvedPath) -> Result<OpenFile, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    OpenFile::new(openat(&path.dir, path.name.as_c_str(), flags, Mode::empty())?)
}
