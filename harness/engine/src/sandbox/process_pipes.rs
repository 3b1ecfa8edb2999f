//! Reads the pipes that are the standard output and error of a process, in the thread that asks. Knows nothing of what
//! the bytes mean.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::sys;

/// Bytes read from a pipe at once.
const READ_BYTES: usize = 16 * 1024;

/// The reading ends of the pipes of one process: that of its standard output, number 0, and that of its standard
/// error, number 1.
pub struct ProcessPipes {
    /// `None` when no process has it open for writing any more.
    pipes: [Option<File>; 2],
    bytes: Box<[u8]>,
}

impl ProcessPipes {
    /// Reads from these pipes, which must have no other reader.
    pub fn new(stdout: OwnedFd, stderr: OwnedFd) -> ProcessPipes {
        let pipes = [stdout, stderr].map(|fd| Some(File::from(fd)));
        ProcessPipes { pipes, bytes: vec![0; READ_BYTES].into_boxed_slice() }
    }

    /// Whether no process has a pipe open any more.
    pub fn are_closed(&self) -> bool {
        self.pipes.iter().all(Option::is_none)
    }

    /// Waits until something can be read from a pipe that `is_read`, or from `other`, or until the deadline. Reads
    /// once from each such pipe, and passes on its number and the bytes. Returns whether `other` can be read.
    ///
    /// # Errors
    /// If poll or a read fails.
    pub fn read_or_wait(
        &mut self,
        is_read: [bool; 2],
        other: Option<BorrowedFd<'_>>,
        deadline: Instant,
        mut pass_on: impl FnMut(usize, &[u8]),
    ) -> Result<bool, Error> {
        let read = self.pipes.iter().zip(is_read).filter(|(_, is_read)| *is_read);
        let files = read.filter_map(|(pipe, _)| pipe.as_ref()).map(AsFd::as_fd).chain(other);
        let mut polled: Vec<PollFd<'_>> = files.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, time_until(deadline)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let mut can_read = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>().into_iter();
        drop(polled);
        for number in (0..2).filter(|number| is_read[*number]) {
            // The pipe has no other reader: after poll has found something, a read does not block.
            if self.pipes[number].is_some() && can_read.next().unwrap_or(false) {
                self.read_once(number, READ_BYTES, &mut pass_on)?;
            }
        }
        Ok(can_read.next().unwrap_or(false))
    }

    /// Reads what was written before this call to the pipes that `is_read`. For a process that has ended, so all that it wrote, however late this
    /// is called. What other processes write later may be left.
    ///
    /// # Errors
    /// If a read fails.
    pub fn read_written(
        &mut self,
        is_read: [bool; 2],
        mut pass_on: impl FnMut(usize, &[u8]),
    ) -> Result<(), Error> {
        for number in (0..2).filter(|number| is_read[*number]) {
            let Some(pipe) = &self.pipes[number] else { continue };
            let mut left = usize::try_from(sys::bytes_to_read(pipe.as_raw_fd())?).unwrap_or(0);
            while left > 0 && self.pipes[number].is_some() {
                left -= self.read_once(number, left.min(READ_BYTES), &mut pass_on)?;
            }
        }
        Ok(())
    }

    /// Reads at most this many bytes. Returns how many there were.
    fn read_once(
        &mut self,
        number: usize,
        max_bytes: usize,
        pass_on: &mut impl FnMut(usize, &[u8]),
    ) -> Result<usize, Error> {
        let Some(pipe) = &mut self.pipes[number] else { return Ok(0) };
        match pipe.read(&mut self.bytes[..max_bytes]) {
            Ok(0) => self.pipes[number] = None,
            Ok(len_bytes) => {
                pass_on(number, &self.bytes[..len_bytes]);
                return Ok(len_bytes);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(0)
    }
}

/// The time until a deadline, rounded up, so that nobody polls again and again within its last millisecond.
pub(super) fn time_until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now());
    let rounded = if left.is_zero() { left } else { left + Duration::from_millis(1) };
    PollTimeout::try_from(rounded).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{PipeWriter, Write};

    use super::*;

    const BOTH: [bool; 2] = [true, true];

    fn pipes() -> (ProcessPipes, PipeWriter, PipeWriter) {
        let ((out, their_out), (err, their_err)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        (ProcessPipes::new(out.into(), err.into()), their_out, their_err)
    }

    #[test]
    fn both_pipes_are_read_until_they_are_closed() {
        let (mut pipes, mut their_out, mut their_err) = pipes();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut read: [Vec<u8>; 2] = Default::default();
        their_err.write_all(b"error").unwrap();
        assert!(!pipes.read_or_wait(BOTH, None, deadline, |of, bytes| read[of].extend(bytes)).unwrap());
        their_out.write_all(b"output").unwrap();
        drop((their_out, their_err));
        while !pipes.are_closed() {
            assert!(!pipes.read_or_wait(BOTH, None, deadline, |of, bytes| read[of].extend(bytes)).unwrap());
        }
        assert_eq!(read, [b"output".to_vec(), b"error".to_vec()]);
    }

    #[test]
    fn a_pipe_that_is_not_read_keeps_its_bytes() {
        let (mut pipes, mut their_out, mut their_err) = pipes();
        their_out.write_all(b"output").unwrap();
        their_err.write_all(b"error").unwrap();
        let mut read: [Vec<u8>; 2] = Default::default();
        pipes.read_or_wait([false, true], None, Instant::now(), |of, bytes| read[of].extend(bytes)).unwrap();
        assert_eq!(read, [b"".to_vec(), b"error".to_vec()]);
    }

    /// Another process may have the pipes open, so there is no end to wait for; and the reader may be late.
    #[test]
    fn all_that_was_written_is_read_after_the_deadline_and_without_an_end() {
        let (mut pipes, mut their_out, mut their_err) = pipes();
        let written = vec![b'x'; 3 * READ_BYTES + 7];
        their_out.write_all(&written).unwrap();
        their_err.write_all(b"error").unwrap();
        let mut read: [Vec<u8>; 2] = Default::default();
        pipes.read_written(BOTH, |of, bytes| read[of].extend(bytes)).unwrap();
        assert_eq!(read, [written, b"error".to_vec()]);
        assert!(!pipes.are_closed());
    }
}
