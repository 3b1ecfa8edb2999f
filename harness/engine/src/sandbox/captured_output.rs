//! Captures the output of a command through pipes, up to a number of bytes. Part of the init process.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use regex::RegexSet;

use super::protocol::{CompletedCommand, ProcessExit};
use super::watched_lines::{KeptLines, WatchedLines};

/// How long outputs are still read after the main process has ended, if another process holds them open.
pub(super) const DRAIN_TIME: Duration = Duration::from_millis(20);
/// Bytes read from an output at once.
const READ_BYTES: usize = 8192;

/// The first and the last bytes of one output.
pub(super) struct CapturedOutput {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    max_bytes: usize,
    dropped_bytes: u64,
}

impl CapturedOutput {
    /// Keeps at most `max_bytes`: one half from the start, the other from the end.
    pub(super) fn new(max_bytes: usize) -> CapturedOutput {
        CapturedOutput { head: Vec::new(), tail: VecDeque::new(), max_bytes, dropped_bytes: 0 }
    }

    fn append(&mut self, bytes: &[u8]) {
        let head_bytes = (self.max_bytes / 2).saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend(&bytes[..head_bytes]);
        self.tail.extend(&bytes[head_bytes..]);
        let excess_bytes = self.tail.len().saturating_sub(self.max_bytes / 2);
        self.tail.drain(..excess_bytes);
        self.dropped_bytes += excess_bytes as u64;
    }

    /// Reads once from a pipe, and passes on what was read. Returns whether the pipe has been closed, or has nothing
    /// to read.
    fn read_once(
        &mut self,
        pipe: &mut impl Read,
        mut pass_on: impl FnMut(&[u8]),
    ) -> Result<ReadResult, Error> {
        let mut bytes = [0; READ_BYTES];
        match pipe.read(&mut bytes) {
            Ok(0) => Ok(ReadResult::Closed),
            Ok(len_bytes) => {
                self.append(&bytes[..len_bytes]);
                pass_on(&bytes[..len_bytes]);
                Ok(ReadResult::Bytes)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(ReadResult::Nothing),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(ReadResult::Bytes),
            Err(error) => Err(error),
        }
    }

    /// Appends all bytes that are available from a pipe with O_NONBLOCK.
    pub(super) fn read_available(&mut self, pipe: &mut impl Read) -> Result<(), Error> {
        while matches!(self.read_once(pipe, |_| ())?, ReadResult::Bytes) {}
        Ok(())
    }

    /// The captured output, with a note if bytes were left out.
    pub(super) fn text(mut self) -> String {
        if self.dropped_bytes > 0 {
            self.head.extend(format!("\n[{} bytes left out]\n", self.dropped_bytes).bytes());
        }
        self.head.extend(self.tail);
        String::from_utf8_lossy(&self.head).into_owned()
    }
}

/// What a read gave.
enum ReadResult {
    Bytes,
    Nothing,
    Closed,
}

/// Sets O_NONBLOCK.
pub(super) fn set_nonblocking(fd: &impl AsFd) -> Result<(), Error> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(Error::from)
}

/// The standard output and error of a running command, and what has been read from them.
pub(super) struct OutputPipes<'a> {
    /// `None` when it has been closed.
    pipes: [Option<File>; 2],
    captured: [CapturedOutput; 2],
    watched: WatchedLines<'a>,
}

impl<'a> OutputPipes<'a> {
    /// Captures from the reading ends of two pipes. At most `max_bytes` of each are kept, and the lines that match
    /// one of the patterns.
    pub(super) fn new(
        stdout: OwnedFd,
        stderr: OwnedFd,
        max_bytes: usize,
        patterns: &'a RegexSet,
    ) -> OutputPipes<'a> {
        OutputPipes {
            watched: WatchedLines::new(patterns),
            pipes: [stdout, stderr].map(|fd| Some(File::from(fd))),
            captured: [max_bytes, max_bytes].map(CapturedOutput::new),
        }
    }

    /// Whether no process has an output open any more.
    pub(super) fn are_closed(&self) -> bool {
        self.pipes.iter().all(Option::is_none)
    }

    /// Waits until something can be read from an output or from `other`, or until the deadline. Reads from the
    /// outputs, and returns whether `other` can be read.
    pub(super) fn read_or_wait(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let files = self.pipes.iter().flatten().map(AsFd::as_fd).chain(other);
        let mut polled: Vec<PollFd<'_>> = files.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, time_until(deadline)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut can_read = polled.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>().into_iter();
        drop(polled);
        for (number, (pipe, captured)) in self.pipes.iter_mut().zip(&mut self.captured).enumerate() {
            let Some(file) = pipe else { continue };
            // The pipe has no other reader: after poll has found something, a read does not block.
            let can_read = can_read.next().unwrap_or(false);
            let pass_on = |bytes: &[u8]| self.watched.add(number, bytes);
            if can_read && matches!(captured.read_once(file, pass_on)?, ReadResult::Closed) {
                *pipe = None;
            }
        }
        Ok(can_read.next().unwrap_or(false))
    }

    /// The result of the command.
    pub(super) fn complete(self, exit: Option<ProcessExit>) -> CompletedCommand {
        let [stdout, stderr] = self.captured.map(CapturedOutput::text);
        let KeptLines { lines, left_out } = self.watched.into_kept();
        let (watched_lines, watched_left_out) = (lines, left_out);
        CompletedCommand { exit, stdout, stderr, watched_lines, watched_left_out, left_processes: false }
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
    use super::*;

    #[test]
    fn the_first_and_the_last_bytes_are_kept() -> Result<(), Error> {
        let mut output = CapturedOutput::new(4);
        output.read_available(&mut &b"abcdefg"[..])?;
        assert_eq!(output.text(), "ab\n[3 bytes left out]\nfg");
        Ok(())
    }

    #[test]
    fn both_outputs_are_read_until_they_are_closed() -> Result<(), Error> {
        use std::io::Write;
        let ((out, mut their_out), (err, mut their_err)) = (std::io::pipe()?, std::io::pipe()?);
        let patterns = RegexSet::empty();
        let mut pipes = OutputPipes::new(out.into(), err.into(), 100, &patterns);
        let deadline = Instant::now() + Duration::from_secs(60);
        their_err.write_all(b"error")?;
        assert!(!pipes.read_or_wait(None, deadline)?);
        their_out.write_all(b"output")?;
        drop((their_out, their_err));
        while !pipes.are_closed() {
            assert!(!pipes.read_or_wait(None, deadline)?);
        }
        let completed = pipes.complete(None);
        assert_eq!([completed.stdout.as_str(), completed.stderr.as_str()], ["output", "error"]);
        Ok(())
    }
}
