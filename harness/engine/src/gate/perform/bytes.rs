//! Writes and reads: moves bytes between the target's memory and a file.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use super::context::{ByteRequest, CHUNK_BYTES, CallContext, PerformResult, Performed, proc_fd_path};
use crate::gate::follow_error::FollowError;
use crate::gate::handler::{CallEffect, WriteSync};
use crate::gate::open_file::OpenFile;
use crate::gate::stat::FileStat;
use crate::gate::sys;
use crate::gate::target_thread::MemorySegment;

/// The most bytes that one call moves (`MAX_RW_COUNT` of the kernel).
const MAX_CALL_BYTES: u64 = 0x7fff_f000;
/// `RWF_NOAPPEND` of linux/fs.h: a write at an offset also if the descriptor appends.
const RWF_NOAPPEND: i32 = 0x20;

impl CallContext<'_> {
    pub(super) fn write(&mut self, file: &OpenFile, request: ByteRequest) -> PerformResult {
        let ByteRequest { buffer, position, max_bytes } = request;
        let OpenFile { fd, stat } = file;
        let descriptor_flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        let start = match position.offset {
            _ if appends(descriptor_flags, position.flags) => stat.size_bytes,
            Some(offset) => u64::try_from(offset).map_err(|_| Errno::EINVAL)?,
            None => file_position(fd)?,
        };
        let size_limit = self.thread.file_size_limit()?;
        let requested_bytes = self.thread.buffer_len(buffer)?;
        if start >= size_limit && requested_bytes > 0 {
            // The kernel fails the call and sends SIGXFSZ.
            return Ok(None);
        }
        let max_bytes = max_bytes.min(size_limit - start).min(MAX_CALL_BYTES);
        if requested_bytes > 0 {
            self.announce_lost_modes(file)?;
        }
        let mut written = 0;
        let result = self.write_segments(fd, ByteRequest { max_bytes, ..request }, &mut written);
        if written > 0 {
            self.handler.on_effect(CallEffect::Wrote {
                file_id: stat.file_id,
                offset: start,
                len_bytes: written,
                sync: write_sync(descriptor_flags, position.flags),
            });
            return Ok(Some(Performed::Value(written as i64)));
        }
        result.map(|()| Some(Performed::Value(0)))
    }

    /// Writes from the target's memory. `written` also counts bytes that were written before an error.
    fn write_segments(
        &mut self,
        file: &OwnedFd,
        request: ByteRequest,
        written: &mut u64,
    ) -> Result<(), FollowError> {
        let ByteRequest { buffer, position, max_bytes } = request;
        let offset_after = |written: u64| position.offset.map(|offset| offset.saturating_add(written as i64));
        for MemorySegment { address, len_bytes } in self.thread.segments(buffer)? {
            let mut done = 0;
            while done < len_bytes && *written < max_bytes {
                let requested = (len_bytes - done).min(CHUNK_BYTES as u64).min(max_bytes - *written);
                let len = usize::try_from(requested).unwrap_or(CHUNK_BYTES);
                let part = self.scratch.aligned_as(address + done, len);
                let read = self.thread.read_memory(address + done, part)?;
                let written_now =
                    sys::pwritev2(file.as_fd(), &part[..read], offset_after(*written), position.flags)?;
                self.handler.on_payload(&part[..written_now]);
                done += written_now as u64;
                *written += written_now as u64;
                if written_now < read || (read as u64) < requested {
                    return Ok(());
                }
            }
        }
        if *written == 0 {
            // A write of nothing still fails on a descriptor that does not allow writing.
            sys::pwritev2(file.as_fd(), &[], position.offset, position.flags)?;
        }
        Ok(())
    }

    pub(super) fn read(&mut self, file: &OpenFile, request: ByteRequest) -> PerformResult {
        let ByteRequest { buffer, position, max_bytes } = request;
        let mut total = 0;
        for MemorySegment { address, len_bytes } in self.thread.segments(buffer)? {
            let mut done = 0;
            while done < len_bytes && total < max_bytes.min(MAX_CALL_BYTES) {
                let requested = (len_bytes - done).min(CHUNK_BYTES as u64).min(max_bytes - total);
                let len = usize::try_from(requested).unwrap_or(CHUNK_BYTES);
                let part = self.scratch.aligned_as(address + done, len);
                let offset = position.offset.map(|offset| offset.saturating_add(total as i64));
                let read = match sys::preadv2(file.fd.as_fd(), part, offset, position.flags) {
                    Err(_) if total > 0 => return Ok(Some(Performed::Value(total as i64))),
                    read => read?,
                };
                self.thread.write_memory(address + done, &part[..read])?;
                done += read as u64;
                total += read as u64;
                if (read as u64) < requested {
                    return Ok(Some(Performed::Value(total as i64)));
                }
            }
        }
        if total == 0 {
            sys::preadv2(file.fd.as_fd(), &mut [], position.offset, position.flags)?;
        }
        Ok(Some(Performed::Value(total as i64)))
    }

    /// Passes what was just written to the handler, by reading it back from the file.
    pub(super) fn read_back(
        &mut self,
        file: &OwnedFd,
        mut offset: u64,
        mut left_bytes: u64,
    ) -> Result<(), FollowError> {
        let path = proc_fd_path(file);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let readable = nix::fcntl::open(path.as_c_str(), flags, nix::sys::stat::Mode::empty())
            .map_err(could_not_read_back)?;
        while left_bytes > 0 {
            let len = usize::try_from(left_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            let part = self.scratch.aligned_as(0, len);
            let read = nix::sys::uio::pread(&readable, part, offset as i64).map_err(could_not_read_back)?;
            if read == 0 {
                return Err(could_not_read_back(Errno::EIO));
            }
            self.handler.on_payload(&part[..read]);
            (offset, left_bytes) = (offset + read as u64, left_bytes - read as u64);
        }
        Ok(())
    }
}

fn could_not_read_back(source: Errno) -> FollowError {
    use crate::gate::follow_error::GateFailure;
    FollowError::Gate(GateFailure::System { doing: "read what a call has written", source })
}

fn appends(descriptor_flags: OFlag, call_flags: i32) -> bool {
    let descriptor_appends = descriptor_flags.contains(OFlag::O_APPEND) && call_flags & RWF_NOAPPEND == 0;
    descriptor_appends || call_flags & libc::RWF_APPEND != 0
}

/// What a write with these flags makes durable.
pub(super) fn write_sync(descriptor_flags: OFlag, call_flags: i32) -> WriteSync {
    // O_SYNC includes the bit of O_DSYNC.
    if descriptor_flags.contains(OFlag::O_SYNC) || call_flags & libc::RWF_SYNC != 0 {
        WriteSync::All
    } else if descriptor_flags.contains(OFlag::O_DSYNC) || call_flags & libc::RWF_DSYNC != 0 {
        WriteSync::Data
    } else {
        WriteSync::No
    }
}

pub(super) fn file_position(file: &OwnedFd) -> Result<u64, Errno> {
    let offset = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur)?;
    u64::try_from(offset).map_err(|_| Errno::EINVAL)
}

/// The size of a file now, in bytes.
pub(super) fn size_of(file: &OwnedFd) -> Result<u64, FollowError> {
    Ok(FileStat::of_file(file.as_fd())?.size_bytes)
}
