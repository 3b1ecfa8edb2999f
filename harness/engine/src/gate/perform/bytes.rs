//! Writes and reads: moves bytes between the target's memory and a file.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use scenarios::PAGE_BYTES;

use super::context::{
    ByteRequest, CHUNK_BYTES, CallContext, MAX_DIRECT_BYTES, PerformResult, Performed, proc_fd_path,
};
use crate::gate::calls::{BufferArgument, FilePosition};
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

/// A write from the target's memory, of which parts may be done.
struct SegmentedWrite {
    /// What is left.
    segments: Vec<MemorySegment>,
    position: FilePosition,
    max_bytes: u64,
    /// The most bytes to write at a time.
    piece_bytes: usize,
}

/// Bytes of the target in the scratch buffer.
#[derive(Default)]
struct GatheredPiece {
    /// Where they are in the buffer, in their order.
    parts: Vec<Range<usize>>,
    /// The end of the last part.
    end: usize,
    /// Memory follows that cannot be read.
    ends_early: bool,
}

impl GatheredPiece {
    fn add(&mut self, part: Range<usize>) {
        self.end = part.end;
        match self.parts.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ if part.is_empty() => {}
            _ => self.parts.push(part),
        }
    }

    fn len_bytes(&self) -> usize {
        self.parts.iter().map(Range::len).sum()
    }
}

/// The most bytes that a call with these flags of its descriptor copies at a time.
fn piece_bytes(descriptor_flags: OFlag) -> usize {
    if descriptor_flags.contains(OFlag::O_DIRECT) { MAX_DIRECT_BYTES } else { CHUNK_BYTES }
}

impl CallContext<'_> {
    pub(super) fn write(&mut self, file: &OpenFile, request: ByteRequest) -> PerformResult {
        let ByteRequest { buffer, position, max_bytes } = request;
        let OpenFile { fd, stat } = file;
        let segments = self.thread.segments(buffer)?;
        if has_memory_beyond(buffer, &segments) {
            return Ok(None);
        }
        let descriptor_flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        if !allows(descriptor_flags, OFlag::O_WRONLY) {
            return Ok(None);
        }
        let start = match position.start()? {
            _ if appends(descriptor_flags, position.flags) => stat.size_bytes,
            Some(offset) => offset,
            None => file_position(fd)?,
        };
        let size_limit = self.thread.file_size_limit()?;
        let requested_bytes = self.thread.buffer_len(buffer)?;
        if start >= size_limit && requested_bytes > 0 {
            // The kernel fails the call and sends SIGXFSZ.
            self.handler.on_kernel_failure(Errno::EFBIG);
            return Ok(None);
        }
        let max_bytes = max_bytes.min(size_limit.saturating_sub(start)).min(MAX_CALL_BYTES);
        if requested_bytes > 0 {
            self.announce_lost_modes(file)?;
        }
        let piece_bytes = piece_bytes(descriptor_flags);
        let mut written = 0;
        let mut write = SegmentedWrite { segments, position, max_bytes, piece_bytes };
        let result = self.write_segments(fd, &mut write, &mut written);
        let is_short = written < max_bytes.min(requested_bytes);
        if written > 0 {
            self.handler.on_effect(CallEffect::Wrote {
                file_id: stat.file_id,
                offset: start,
                len_bytes: written,
                sync: write_sync(descriptor_flags, position.flags),
            });
        }
        if is_short {
            self.announce_untold_write(file, descriptor_flags)?;
        }
        if written > 0 {
            return Ok(Some(Performed::Value(written as i64)));
        }
        match result {
            // The kernel refuses the address too, or finds another fault first. What a direct write does with a part
            // of its memory depends on the file system.
            Err(FollowError::Target(Errno::EFAULT)) => {
                self.announce_kernel_write(file, start, max_bytes.min(requested_bytes))
            }
            result => result.map(|()| Some(Performed::Value(0))),
        }
    }

    /// Writes from the target's memory. `written` also counts bytes that were written before an error.
    fn write_segments(
        &mut self,
        fd: &OwnedFd,
        write: &mut SegmentedWrite,
        written: &mut u64,
    ) -> Result<(), FollowError> {
        let position = write.position;
        let offset_after = |written: u64| position.offset.map(|offset| offset.saturating_add(written as i64));
        while *written < write.max_bytes {
            let piece = self.gather(write, write.max_bytes - *written)?;
            if piece.parts.is_empty() {
                break;
            }
            if piece.ends_early && write.piece_bytes > CHUNK_BYTES && *written == 0 {
                // A direct write needs all of its memory.
                return Err(FollowError::Target(Errno::EFAULT));
            }
            let bytes = self.scratch.page_aligned(piece.end);
            let parts: Vec<IoSlice<'_>> =
                piece.parts.iter().map(|part| IoSlice::new(&bytes[part.clone()])).collect();
            let written_now = sys::pwritev2(fd.as_fd(), &parts, offset_after(*written), position.flags)?;
            let mut left = written_now;
            for part in &parts {
                let done = left.min(part.len());
                self.handler.on_payload(&part[..done]);
                left -= done;
            }
            *written += written_now as u64;
            if written_now < piece.len_bytes() || piece.ends_early {
                return Ok(());
            }
        }
        if *written == 0 {
            // A write of nothing still fails on a descriptor that does not allow writing.
            sys::pwritev2(fd.as_fd(), &[], position.offset, position.flags)?;
        }
        Ok(())
    }

    /// Copies the next bytes of a write into the scratch buffer. A direct write needs each part where it is in its
    /// page; others are put together.
    fn gather(&mut self, write: &mut SegmentedWrite, max_bytes: u64) -> Result<GatheredPiece, FollowError> {
        let mut left = usize::try_from(max_bytes).unwrap_or(usize::MAX).min(write.piece_bytes);
        let keeps_alignment = write.piece_bytes > CHUNK_BYTES;
        let page_bytes = PAGE_BYTES as usize;
        let places = if keeps_alignment { write.segments.len() } else { 1 };
        let wanted_bytes = write.segments.iter().fold(0, |sum: u64, next| sum.saturating_add(next.len_bytes));
        let wanted_bytes = usize::try_from(wanted_bytes).unwrap_or(usize::MAX).min(left);
        let buffer = self.scratch.page_aligned(wanted_bytes + places * 2 * page_bytes);
        let mut piece = GatheredPiece::default();
        for segment in &mut write.segments {
            let len = usize::try_from(segment.len_bytes).unwrap_or(usize::MAX).min(left);
            if len == 0 {
                continue;
            }
            let start = match keeps_alignment || piece.parts.is_empty() {
                true => piece.end.next_multiple_of(page_bytes) + segment.address as usize % page_bytes,
                false => piece.end,
            };
            let place = &mut buffer[start..start + len];
            let read = match self.thread.read_memory(segment.address, place) {
                Err(FollowError::Target(_)) if !piece.parts.is_empty() => 0,
                read => read?,
            };
            piece.add(start..start + read);
            segment.address += read as u64;
            segment.len_bytes -= read as u64;
            left -= read;
            if read < len {
                piece.ends_early = true;
                break;
            }
        }
        Ok(piece)
    }

    pub(super) fn read(&mut self, file: &OpenFile, request: ByteRequest) -> PerformResult {
        let ByteRequest { buffer, position, max_bytes } = request;
        let segments = self.thread.segments(buffer)?;
        if has_memory_beyond(buffer, &segments) {
            return Ok(None);
        }
        position.start()?;
        let descriptor_flags = OFlag::from_bits_retain(fcntl(&file.fd, FcntlArg::F_GETFL)?);
        if !allows(descriptor_flags, OFlag::O_RDONLY) {
            return Ok(None);
        }
        let piece_bytes = piece_bytes(descriptor_flags);
        let is_direct = descriptor_flags.contains(OFlag::O_DIRECT);
        if is_direct && !segments.iter().all(|segment| self.thread.can_write(*segment)) {
            // The kernel refuses a direct read that lacks some of its memory, however few bytes there are.
            return Ok(None);
        }
        let mut total = 0;
        for MemorySegment { address, len_bytes } in segments {
            let mut done = 0;
            while done < len_bytes && total < max_bytes.min(MAX_CALL_BYTES) {
                let requested = (len_bytes - done).min(piece_bytes as u64).min(max_bytes - total);
                let len = usize::try_from(requested).unwrap_or(CHUNK_BYTES);
                let offset = position.offset.map(|offset| offset.saturating_add(total as i64));
                let part = self.scratch.aligned_as(address + done, len);
                let read = match sys::preadv2(file.fd.as_fd(), part, offset, position.flags) {
                    Err(_) if total > 0 => return Ok(Some(Performed::Value(total as i64))),
                    // The kernel makes the call, and finds this error or an earlier one: of memory, for example.
                    Err(_) => return Ok(None),
                    Ok(read) => read,
                };
                let copied = match self.thread.write_memory(address + done, &part[..read]) {
                    Err(FollowError::Target(_)) if read > 0 => 0,
                    copied => copied?,
                };
                if copied < read && offset.is_none() {
                    // What the target does not get, it can read again.
                    let back = copied as i64 - read as i64;
                    nix::unistd::lseek(&file.fd, back, nix::unistd::Whence::SeekCur)?;
                }
                done += copied as u64;
                total += copied as u64;
                if copied < read && total == 0 {
                    return Ok(Some(Performed::Failed(Errno::EFAULT)));
                }
                if (copied as u64) < requested {
                    return Ok(Some(Performed::Value(total as i64)));
                }
            }
        }
        if total == 0 {
            // A read of nothing still fails where reading does, of a directory only without a vector.
            match (buffer, position.offset) {
                (BufferArgument::Vectored { .. }, offset) => {
                    sys::preadv2(file.fd.as_fd(), &mut [], offset, position.flags)?
                }
                (BufferArgument::Contiguous { .. }, Some(offset)) => {
                    nix::sys::uio::pread(&file.fd, &mut [], offset)?
                }
                (BufferArgument::Contiguous { .. }, None) => nix::unistd::read(&file.fd, &mut [])?,
            };
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

/// Whether a buffer ends where no process has memory: the kernel refuses the whole call then. It cuts a single part
/// of a vector before it looks.
fn has_memory_beyond(buffer: BufferArgument, segments: &[MemorySegment]) -> bool {
    let cut = |segment: &MemorySegment| MemorySegment {
        len_bytes: segment.len_bytes.min(MAX_CALL_BYTES),
        ..*segment
    };
    match (buffer, segments) {
        (BufferArgument::Vectored { .. }, [only]) => cut(only).is_beyond_memory(),
        _ => segments.iter().any(|segment| segment.is_beyond_memory()),
    }
}

/// Whether a descriptor with these flags allows reading (`O_RDONLY`) or writing (`O_WRONLY`). If not, the kernel
/// refuses the call.
fn allows(descriptor_flags: OFlag, access: OFlag) -> bool {
    let own = descriptor_flags & OFlag::O_ACCMODE;
    !descriptor_flags.contains(OFlag::O_PATH) && (own == access || own == OFlag::O_RDWR)
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
