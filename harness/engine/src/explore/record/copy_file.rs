//! Copies the bytes of one file. Holes stay holes, and where the file system can share blocks, it does. Knows
//! nothing of attributes.

use std::fs::File;
use std::io::{Error, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek};

use crate::sandbox::is_interrupted;

/// So many bytes are copied between two looks whether the command was interrupted.
const COPIED_AT_ONCE_BYTES: u64 = 64 << 20;

/// Consecutive bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileRange {
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

/// Opens a file or directory that is open with `O_PATH` or in another way, to read it. Its access time stays as
/// it is where this user may keep it.
///
/// # Errors
/// It cannot be read.
pub(super) fn open_to_read(file: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    match open(path.as_str(), flags | OFlag::O_NOATIME, Mode::empty()) {
        // Only the owner may keep the access time.
        Err(Errno::EPERM) => Ok(open(path.as_str(), flags, Mode::empty())?),
        opened => Ok(opened?),
    }
}

/// Copies the bytes of a file into an empty one. Calls `on_copied` with numbers of bytes.
///
/// # Errors
/// A byte cannot be read or written, or the command was interrupted.
pub(super) fn copy_contents(
    source: OwnedFd,
    copy: OwnedFd,
    len_bytes: u64,
    on_copied: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    if len_bytes > 0 && rustix::fs::ioctl_ficlone(&copy, &source).is_ok() {
        on_copied(len_bytes);
        return Ok(());
    }
    let (source, copy) = (File::from(source), File::from(copy));
    let len_bytes = source.metadata()?.len();
    copy_data(&source, FileRange { offset: 0, len_bytes }, &copy, 0, on_copied)?;
    copy.set_len(len_bytes)
}

/// Copies the bytes of a range to another place, where the copy has a hole or ends. Leaves out holes. A range
/// beyond the end of the source counts as a hole. Calls `on_copied` with numbers of bytes.
///
/// # Errors
/// A byte cannot be read or written, or the command was interrupted.
pub(super) fn copy_data(
    source: &File,
    range: FileRange,
    copy: &File,
    copy_offset: u64,
    on_copied: &mut dyn FnMut(u64),
) -> Result<(), Error> {
    let (mut position, end) = (range.offset, range.offset + range.len_bytes);
    let (mut source, mut copy) = (source, copy);
    while position < end {
        let Some(start) = next_data(source, position)?.filter(|start| *start < end) else {
            break;
        };
        // Without an end, the file has become shorter.
        let Some(data_end) = seek(source, start, Whence::SeekHole)? else { break };
        let data_end = data_end.min(end).min(start + COPIED_AT_ONCE_BYTES);
        if is_interrupted() {
            return Err(Error::from(std::io::ErrorKind::Interrupted));
        }
        source.seek(SeekFrom::Start(start))?;
        copy.seek(SeekFrom::Start(copy_offset + (start - range.offset)))?;
        on_copied(std::io::copy(&mut source.take(data_end - start), &mut copy)?);
        position = data_end;
    }
    Ok(())
}

/// The first place from here on that is no hole. `None`: there is none up to the end.
///
/// # Errors
/// The file cannot be read.
pub(super) fn next_data(file: &File, from: u64) -> Result<Option<u64>, Error> {
    seek(file, from, Whence::SeekData)
}

/// The next place with data, or the next one without. `None`: there is none up to the end.
fn seek(file: &File, from: u64, whence: Whence) -> Result<Option<u64>, Error> {
    match lseek(file, i64::try_from(from).map_err(Error::other)?, whence) {
        Ok(place) => Ok(Some(place as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
