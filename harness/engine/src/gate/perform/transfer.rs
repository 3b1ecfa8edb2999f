//! Copies bytes between descriptors: sendfile, copy_file_range, splice, and calls that share blocks.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use super::bytes::{file_position, size_of, write_sync};
use super::context::{CallContext, PerformResult, Performed};
use crate::gate::calls::{CallRequest, CloneSource, TransferMethod};
use crate::gate::follow_error::FollowError;
use crate::gate::handler::CallEffect;
use crate::gate::open_file::{OpenFile, reopen_path};
use crate::gate::sys::{self, CloneRange};

/// The arguments of a call that moves bytes from one descriptor to another.
struct TransferArguments {
    source: OwnedFd,
    in_offset: Option<i64>,
    out_offset: Option<i64>,
    /// Where the bytes go.
    start: u64,
}

impl CallContext<'_> {
    pub(super) fn transfer(
        &mut self,
        request: CallRequest,
        out_file: &OpenFile,
        max_bytes: u64,
    ) -> PerformResult {
        let CallRequest::Transfer { method, in_offset_address, out_offset_address, len_bytes, flags, .. } =
            request
        else {
            return Ok(None);
        };
        let TransferArguments { source, mut in_offset, mut out_offset, start } =
            match self.transfer_arguments(request, out_file) {
                // The kernel refuses the call, with this errno or with another one that it finds first.
                Err(FollowError::Target(_)) => return Ok(None),
                arguments => arguments?,
            };
        let out = &out_file.fd;
        let size_limit = self.thread.file_size_limit()?;
        if method == TransferMethod::Splice {
            // It waits for the other end of a pipe, which the supervisor must not do.
            return self.announce_kernel_write(out_file, start, len_bytes);
        }
        if start >= size_limit {
            // The kernel fails the call and sends SIGXFSZ.
            self.handler.on_kernel_failure(Errno::EFBIG);
            return Ok(None);
        }
        let len_bytes = len_bytes.min(max_bytes);
        if len_bytes > size_limit - start && method == TransferMethod::Sendfile {
            // The kernel writes up to the limit, and sends SIGXFSZ when it goes on.
            return self.announce_kernel_write(out_file, start, len_bytes);
        }
        let len_bytes = len_bytes.min(size_limit - start);
        let len_bytes = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        let moved = match method {
            TransferMethod::CopyFileRange => sys::copy_file_range(
                source.as_fd(),
                in_offset.as_mut(),
                out.as_fd(),
                out_offset.as_mut(),
                len_bytes,
                flags,
            ),
            _ => nix::sys::sendfile::sendfile64(out, &source, in_offset.as_mut(), len_bytes),
        };
        if moved.is_err() {
            self.announce_untold_write(out_file, OFlag::from_bits_retain(fcntl(out, FcntlArg::F_GETFL)?))?;
        }
        let moved_bytes = moved?;
        if moved_bytes > 0 {
            self.record_moved(out_file, start, moved_bytes as u64)?;
        }
        for (address, offset) in [(in_offset_address, in_offset), (out_offset_address, out_offset)] {
            let Some(offset) = offset else { continue };
            if self.thread.write_memory(address, &offset.to_ne_bytes())? < size_of_val(&offset) {
                return Ok(Some(Performed::Failed(Errno::EFAULT)));
            }
        }
        Ok(Some(Performed::Value(moved_bytes as i64)))
    }

    /// Reads the arguments of a call that moves bytes.
    ///
    /// # Errors
    /// The kernel refuses the arguments too.
    fn transfer_arguments(
        &self,
        request: CallRequest,
        out_file: &OpenFile,
    ) -> Result<TransferArguments, FollowError> {
        let CallRequest::Transfer { in_fd, in_offset_address, out_offset_address, len_bytes, .. } = request
        else {
            return Err(Errno::EINVAL.into());
        };
        let source = self.thread.duplicate_fd(in_fd)?;
        let in_offset = self.read_offset(in_offset_address)?;
        let out_offset = self.read_offset(out_offset_address)?;
        i64::try_from(len_bytes).map_err(|_| Errno::EINVAL)?;
        if out_file.stat.file_type() != libc::S_IFREG {
            return Err(Errno::EINVAL.into());
        }
        let start = match out_offset {
            Some(offset) => u64::try_from(offset).map_err(|_| Errno::EINVAL)?,
            None => file_position(&out_file.fd)?,
        };
        Ok(TransferArguments { source, in_offset, out_offset, start })
    }

    fn record_moved(&mut self, file: &OpenFile, offset: u64, len_bytes: u64) -> Result<(), FollowError> {
        let descriptor_flags = OFlag::from_bits_retain(fcntl(&file.fd, FcntlArg::F_GETFL)?);
        self.announce_lost_modes(file)?;
        self.read_back(&file.fd, offset, len_bytes)?;
        self.handler.on_effect(CallEffect::Wrote {
            file_id: file.stat.file_id,
            offset,
            len_bytes,
            sync: write_sync(descriptor_flags, 0),
        });
        Ok(())
    }

    /// Tells the handler of a failed or short write that may have written more than it says.
    pub(super) fn announce_untold_write(
        &mut self,
        file: &OpenFile,
        descriptor_flags: OFlag,
    ) -> Result<(), FollowError> {
        if descriptor_flags.contains(OFlag::O_DIRECT) {
            let untold = reopen_path(file.fd.as_fd())?;
            self.handler.on_effect(CallEffect::WroteUntold { file_id: file.stat.file_id, file: untold });
        }
        Ok(())
    }

    /// Tells the handler that the kernel is about to write, as much as it can.
    pub(super) fn announce_kernel_write(
        &mut self,
        file: &OpenFile,
        offset: u64,
        len_bytes: u64,
    ) -> PerformResult {
        // No file is larger: the kernel cuts a write there.
        let Some(most_bytes) = (i64::MAX as u64).checked_sub(offset) else { return Ok(None) };
        let len_bytes = len_bytes.min(most_bytes);
        // A file that ends before may become longer also if nothing is written.
        let first = offset.min(file.stat.size_bytes);
        let (offset, len_bytes) = (first, len_bytes + (offset - first));
        let effect = CallEffect::Writing {
            tid: self.tid,
            file_id: file.stat.file_id,
            file: reopen_path(file.fd.as_fd())?,
            offset,
            len_bytes,
        };
        self.handler.on_effect(effect);
        Ok(None)
    }

    pub(super) fn clone_blocks(&mut self, source: CloneSource, file: &OpenFile) -> PerformResult {
        let (source, range) = match source {
            CloneSource::File { fd } => {
                let whole = CloneRange { source_fd: 0, source_offset: 0, len_bytes: 0, offset: 0 };
                (self.thread.duplicate_fd(fd)?, whole)
            }
            CloneSource::Range { address } => {
                let range = self.read_clone_range(address)?;
                let fd = i32::try_from(range.source_fd).map_err(|_| Errno::EBADF)?;
                (self.thread.duplicate_fd(fd)?, range)
            }
        };
        sys::clone_range(file.fd.as_fd(), &CloneRange { source_fd: source.as_raw_fd().into(), ..range })?;
        let len_bytes = match range.len_bytes {
            0 => size_of(&source)?.saturating_sub(range.source_offset),
            len_bytes => len_bytes,
        };
        self.record_moved(file, range.offset, len_bytes)?;
        Ok(Some(Performed::Value(0)))
    }

    fn read_clone_range(&self, address: u64) -> Result<CloneRange, FollowError> {
        let mut words = [0; 4];
        for (word, position) in words.iter_mut().zip(0..) {
            *word = self.read_word(address + 8 * position)?;
        }
        let [source_fd, source_offset, len_bytes, offset] = words;
        Ok(CloneRange { source_fd: source_fd as i64, source_offset, len_bytes, offset })
    }

    /// Reads an `off_t` of the target. Address 0 means that the call was made without an offset.
    fn read_offset(&self, address: u64) -> Result<Option<i64>, FollowError> {
        match address {
            0 => Ok(None),
            address => Ok(Some(self.read_word(address)? as i64)),
        }
    }

    fn read_word(&self, address: u64) -> Result<u64, FollowError> {
        let mut bytes = [0; 8];
        match self.thread.read_memory(address, &mut bytes)? {
            8 => Ok(u64::from_ne_bytes(bytes)),
            _ => Err(FollowError::Target(Errno::EFAULT)),
        }
    }
}
