//! Captures the output of a command through pipes, up to a number of bytes. Part of the init process.

use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// How long outputs are still read after the main process has ended, if another process holds them open.
pub(super) const DRAIN_TIME: Duration = Duration::from_millis(20);

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
        while self.tail.len() > self.max_bytes / 2 {
            self.tail.pop_front();
            self.dropped_bytes += 1;
        }
    }

    /// Appends all bytes that are available from a pipe. Sets the pipe to `None` when it has been closed.
    pub(super) fn read_available(&mut self, pipe: &mut Option<impl Read>) -> Result<(), Error> {
        let mut bytes = [0; 8192];
        while let Some(reader) = pipe {
            match reader.read(&mut bytes) {
                Ok(0) => *pipe = None,
                Ok(len_bytes) => self.append(&bytes[..len_bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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

/// Sets O_NONBLOCK.
pub(super) fn set_nonblocking(fd: &impl AsFd) -> Result<(), Error> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_bytes_are_kept() -> Result<(), Error> {
        let mut output = CapturedOutput::new(4);
        let mut pipe = Some(&b"abcdefg"[..]);
        output.read_available(&mut pipe)?;
        assert!(pipe.is_none());
        assert_eq!(output.text(), "ab\n[3 bytes left out]\nfg");
        Ok(())
    }
}
