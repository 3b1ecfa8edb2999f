//! Captures the output of a command through pipes, up to a number of bytes. Part of the init process.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use regex::RegexSet;

use super::process_pipes::ProcessPipes;
use super::protocol::{CompletedCommand, ProcessExit};
use super::watched_lines::{KeptLines, WatchedLines};

/// How long outputs are still read after the main process has ended, if another process holds them open.
pub(super) const DRAIN_TIME: Duration = Duration::from_millis(20);
/// Bytes read from an output at once.
const READ_BYTES: usize = 8192;
/// Both pipes are read.
const BOTH: [bool; 2] = [true, true];

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

    /// Appends all bytes that are available from a pipe with O_NONBLOCK.
    pub(super) fn read_available(&mut self, pipe: &mut impl Read) -> Result<(), Error> {
        let mut bytes = [0; READ_BYTES];
        loop {
            match pipe.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(len_bytes) => self.append(&bytes[..len_bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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

/// Sets O_NONBLOCK.
pub(super) fn set_nonblocking(fd: &impl AsFd) -> Result<(), Error> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(Error::from)
}

/// The standard output and error of a running command, and what has been read from them.
pub(super) struct OutputPipes<'a> {
    pipes: ProcessPipes,
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
            pipes: ProcessPipes::new(stdout, stderr),
            captured: [max_bytes, max_bytes].map(CapturedOutput::new),
        }
    }

    /// Whether no process has an output open any more.
    pub(super) fn are_closed(&self) -> bool {
        self.pipes.are_closed()
    }

    /// Waits until something can be read from an output or from `other`, or until the deadline. Reads from the
    /// outputs, and returns whether `other` can be read.
    pub(super) fn read_or_wait(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let OutputPipes { pipes, captured, watched } = self;
        pipes.read_or_wait(BOTH, other, deadline, |of, bytes| {
            captured[of].append(bytes);
            watched.add(of, bytes);
        })
    }

    /// Reads what the command wrote before its end: the time for the outputs may have passed unused.
    pub(super) fn read_written(&mut self) -> Result<(), Error> {
        let OutputPipes { pipes, captured, watched } = self;
        pipes.read_written(BOTH, |of, bytes| {
            captured[of].append(bytes);
            watched.add(of, bytes);
        })
    }

    /// The result of the command.
    pub(super) fn complete(self, exit: Option<ProcessExit>) -> CompletedCommand {
        let [stdout, stderr] = self.captured.map(CapturedOutput::text);
        let KeptLines { lines, left_out } = self.watched.into_kept();
        let (watched_lines, watched_left_out) = (lines, left_out);
        CompletedCommand { exit, stdout, stderr, watched_lines, watched_left_out, left_processes: false }
    }
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
}
