//! Moves bytes between the memory of a target and its files, for calls that are performed on its behalf, and
//! shows the handler those that are written. Knows no paths.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;

use super::calls::{BufferArgument, CallRequest, TransferMethod};
use super::handler::{CallEffect, CallHandler};
use super::resolve_call::OpenFile;
use super::sys;
use super::target_thread::{MemorySegment, TargetThread};

/// Bytes copied between target and file at a time: few enough to stay in a core's cache.
const CHUNK_BYTES: usize = 256 * 1024;

/// The return value of a call, or its errno.
pub(super) type CallResult = Result<i64, Errno>;

/// Whose memory the bytes are in, and who is shown them.
pub(super) struct ByteTransfer<'a> {
    pub(super) tid: i32,
    pub(super) thread: &'a TargetThread,
    pub(super) handler: &'a mut dyn CallHandler,
}

/// Arguments of a write beyond its descriptor and buffer.
#[derive(Clone, Copy)]
pub(super) struct WriteOptions {
    /// Where to write, as for pwrite. Default: at the descriptor's own offset.
    pub(super) offset: Option<u64>,
    /// Appends, also if the descriptor does not.
    pub(super) append: bool,
    /// Writes synchronously, also if the descriptor does not.
    pub(super) sync: bool,
}

impl ByteTransfer<'_> {
    /// Passes the beginning of each segment to the handler.
    pub(super) fn show_first_chunks(&mut self, segments: Vec<MemorySegment>) {
        for MemorySegment { address, len_bytes } in segments {
            let mut chunk = vec![0; usize::try_from(len_bytes).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
            if let Ok(read_bytes) = self.thread.read_memory(address, &mut chunk) {
                self.handler.on_payload(&chunk[..read_bytes]);
            }
        }
    }

    pub(super) fn write(
        &mut self,
        file: &OpenFile,
        buffer: BufferArgument,
        options: WriteOptions,
        max_bytes: u64,
    ) -> CallResult {
        let OpenFile { fd: file, stat } = file;
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

    pub(super) fn read(
        &self,
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

    /// Performs `sendfile` or `copy_file_range`.
    pub(super) fn transfer(&mut self, request: CallRequest, out_file: &OpenFile) -> CallResult {
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
}

fn file_position(file: &OwnedFd) -> Result<u64, Errno> {
    let offset = nix::unistd::lseek(file, 0, nix::unistd::Whence::SeekCur)?;
    u64::try_from(offset).map_err(|_| Errno::EINVAL)
}

/// A path in /proc that names one of our own descriptors.
pub(super) fn proc_fd_path(file: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}
