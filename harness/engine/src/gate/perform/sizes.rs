//! Sizes, space, syncs, and the calls that only the kernel can perform: the handler is told about these before.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl, openat};
use nix::libc;
use nix::sys::stat::Mode;

use super::bytes::size_of;
use super::context::{CallContext, PerformResult, Performed, proc_fd_path};
use crate::gate::CallKind;
use crate::gate::attribute_calls::{AttributeCall, AttributeObject};
use crate::gate::follow_error::FollowError;
use crate::gate::handler::{CallEffect, WriteSync};
use crate::gate::open_file::{OpenFile, reopen_path};
use crate::gate::path_walk::ResolvedPath;
use crate::gate::stat::FileId;

/// The setuid and setgid bits of a mode.
const SET_ID_BITS: u32 = 0o6000;

impl CallContext<'_> {
    pub(super) fn truncate(&mut self, file: &OpenFile, size_bytes: i64) -> PerformResult {
        let size = u64::try_from(size_bytes).map_err(|_| Errno::EINVAL)?;
        if size > file.stat.size_bytes && size > self.thread.file_size_limit()? {
            // The kernel fails the call and sends SIGXFSZ.
            self.handler.on_kernel_failure(Errno::EFBIG);
            return Ok(None);
        }
        nix::unistd::ftruncate(&file.fd, size_bytes)?;
        self.announce_lost_modes(file)?;
        self.handler.on_effect(CallEffect::Truncated { file_id: file.stat.file_id, size_bytes: size });
        Ok(Some(Performed::Value(0)))
    }

    pub(super) fn truncate_path(&mut self, path: &ResolvedPath, size_bytes: i64) -> PerformResult {
        // The kernel looks at the size before it looks for the file.
        u64::try_from(size_bytes).map_err(|_| Errno::EINVAL)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = openat(&path.dir, path.text.as_c_str(), flags, Mode::empty())?;
        self.truncate_as_allowed(&OpenFile::new(file)?, size_bytes)
    }

    /// Sets the size of a file that the call names by a link of /proc.
    pub(super) fn truncate_object(&mut self, object: &OpenFile, size_bytes: i64) -> PerformResult {
        if object.stat.file_type() != libc::S_IFREG {
            return Ok(None);
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(proc_fd_path(&object.fd).as_c_str(), flags, Mode::empty())?;
        self.truncate_as_allowed(&OpenFile::new(file)?, size_bytes)
    }

    /// Sets the size of a file that the target names by a path: it needs the right to do that, and none to open it.
    fn truncate_as_allowed(&mut self, file: &OpenFile, size_bytes: i64) -> PerformResult {
        if self.rules.is_some() {
            let (path, now) = (proc_fd_path(&file.fd), file.stat.size_bytes as i64);
            // The file keeps its size until it is known what other limits say.
            self.as_allowed(|| nix::unistd::truncate(path.as_c_str(), now))?;
        }
        self.truncate(file, size_bytes)
    }

    pub(super) fn allocate(
        &mut self,
        file: &OpenFile,
        mode: i32,
        offset: i64,
        len_bytes: i64,
    ) -> PerformResult {
        let OpenFile { fd, stat } = file;
        let end = offset.saturating_add(len_bytes);
        let extends = mode & libc::FALLOC_FL_KEEP_SIZE == 0
            && u64::try_from(end).is_ok_and(|end| end > stat.size_bytes);
        if extends && end as u64 > self.thread.file_size_limit()? {
            // The kernel fails the call and sends SIGXFSZ.
            self.handler.on_kernel_failure(Errno::EFBIG);
            return Ok(None);
        }
        if mode == libc::FALLOC_FL_KEEP_SIZE
            && u64::try_from(end).is_ok_and(|end| end > stat.size_bytes)
            && end as u64 > self.thread.file_size_limit()?
        {
            // Some file systems refuse it as above, others do it: it changes neither size nor bytes.
            return Ok(None);
        }
        fallocate(fd, FallocateFlags::from_bits_retain(mode), offset, len_bytes)?;
        self.announce_lost_modes(file)?;
        let size_bytes = size_of(fd)?;
        let (start, len) = (offset as u64, len_bytes as u64);
        if mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0 {
            return self.record_shift(file, start, size_bytes);
        }
        let zeroing_modes = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        let zeroed_bytes = len.min(size_bytes.saturating_sub(start));
        let zeroed = (mode & zeroing_modes != 0 && zeroed_bytes > 0).then_some((start, zeroed_bytes));
        self.handler.on_effect(CallEffect::Allocated { file_id: stat.file_id, size_bytes, zeroed });
        Ok(Some(Performed::Value(0)))
    }

    /// Reports a call that moved all bytes from `start` on, as a new size and a write.
    fn record_shift(&mut self, file: &OpenFile, start: u64, size_bytes: u64) -> PerformResult {
        let file_id = file.stat.file_id;
        self.handler.on_effect(CallEffect::Truncated { file_id, size_bytes });
        let len_bytes = size_bytes.saturating_sub(start);
        if len_bytes > 0 {
            self.read_back(&file.fd, start, len_bytes)?;
            let sync = WriteSync::No;
            self.handler.on_effect(CallEffect::Wrote { file_id, offset: start, len_bytes, sync });
        }
        Ok(Some(Performed::Value(0)))
    }

    pub(super) fn sync(&mut self, file: &OpenFile, data_only: bool) -> PerformResult {
        if self.handler.performs_syncs() {
            let synced =
                if data_only { nix::unistd::fdatasync(&file.fd) } else { nix::unistd::fsync(&file.fd) };
            synced?;
        } else {
            refuse_path_descriptor(&file.fd)?;
        }
        self.handler.on_effect(CallEffect::Synced { file_id: file.stat.file_id, data_only });
        Ok(Some(Performed::Value(0)))
    }

    /// Syncs the file system of a descriptor, or all of them.
    pub(super) fn sync_all(&mut self, fd: Option<i32>) -> PerformResult {
        let file = fd.map(|fd| self.thread.duplicate_fd(fd)).transpose()?;
        if self.handler.performs_syncs() {
            match &file {
                Some(file) => nix::unistd::syncfs(file)?,
                None => nix::unistd::sync(),
            }
        } else if let Some(file) = &file {
            refuse_path_descriptor(file)?;
        }
        self.handler.on_effect(CallEffect::SyncedAll);
        Ok(Some(Performed::Value(0)))
    }

    /// Tells the handler that the kernel is about to sync mapped files.
    pub(super) fn announce_msync(&mut self, address: u64, len_bytes: u64) -> PerformResult {
        // Of a private mapping, msync writes nothing back.
        let ranges = self.thread.mapped_files(address, len_bytes).into_iter().filter(|range| range.is_shared);
        let synced: BTreeSet<FileId> = ranges.map(|range| range.file_id).collect();
        synced.into_iter().for_each(|file_id| {
            self.handler.on_effect(CallEffect::SyncedMapping { file_id });
        });
        Ok(None)
    }

    /// Tells the handler of a file whose content changes now: the kernel clears setuid and setgid.
    pub(super) fn announce_lost_modes(&mut self, file: &OpenFile) -> Result<(), FollowError> {
        if file.stat.mode & SET_ID_BITS != 0 {
            self.announce_attributes(CallKind::Chmod, file)?;
        }
        Ok(())
    }

    /// Tells the handler that the kernel is about to change attributes.
    pub(super) fn announce_attributes(&mut self, kind: CallKind, file: &OpenFile) -> PerformResult {
        let (tid, file_id) = (self.tid, file.stat.file_id);
        let file = reopen_path(file.fd.as_fd())?;
        self.handler.on_effect(CallEffect::ChangingAttributes { kind, tid, file_id, file });
        Ok(None)
    }

    /// Tells the handler that the kernel is about to map a file, if stores into the mapping can be allowed.
    pub(super) fn announce_mapping(&mut self, file: OpenFile) -> PerformResult {
        let access = OFlag::from_bits_retain(fcntl(&file.fd, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
        if access == OFlag::O_RDWR {
            self.handler.on_effect(CallEffect::Mapped { file_id: file.stat.file_id, file: file.fd });
        }
        Ok(None)
    }

    /// Changes permission bits. Other attributes depend on the target's user namespace: only the kernel can
    /// change them.
    pub(super) fn change_mode(&mut self, call: AttributeCall, file: &OpenFile) -> PerformResult {
        let Some(mode) = call.mode.map(|mode| Mode::from_bits_truncate(mode & 0o7777)) else {
            return Ok(None);
        };
        let changed = match call.object {
            AttributeObject::Fd(_) => nix::sys::stat::fchmod(&file.fd, mode),
            AttributeObject::Path { .. } => {
                let path = proc_fd_path(&file.fd);
                let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
                nix::sys::stat::fchmodat(nix::fcntl::AT_FDCWD, path.as_c_str(), mode, follow)
            }
        };
        Ok(Some(match changed {
            Ok(()) => Performed::Value(0),
            Err(errno) => Performed::Failed(errno),
        }))
    }
}

/// A sync that is not performed fails on a descriptor that only names a file, as the kernel's does.
fn refuse_path_descriptor(file: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_PATH) { Err(Errno::EBADF) } else { Ok(()) }
}
