//! Reads a target's output line by line, in threads of its own, with a bound on the length of a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use scenarios::Stream;

use crate::sandbox::Running;

/// Bytes of a line that are kept; the rest of a longer one is dropped.
const LINE_MAX: u64 = 16 * 1024;

/// Both outputs of one process, interleaved as they came.
pub(super) struct Lines {
    receiver: Receiver<Option<(Stream, String)>>,
    open: u8,
}

/// What came.
pub(super) enum Next {
    Line(Stream, String),
    /// Nothing within the time.
    Quiet,
    /// Both outputs have been closed.
    Closed,
}

impl Lines {
    pub(super) fn of(running: &mut Running) -> Lines {
        let (sender, receiver) = channel();
        let outputs = running
            .take_outputs()
            .map(|(stdout, stderr)| [(Stream::Stdout, stdout), (Stream::Stderr, stderr)]);
        for (stream, output) in outputs.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || pump(stream, output, &sender));
        }
        Lines { receiver, open: 2 }
    }

    pub(super) fn next(&mut self, wait: Duration) -> Next {
        let until = Instant::now() + wait;
        while self.open > 0 {
            match self.receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Some((stream, line))) => return Next::Line(stream, line),
                Ok(None) => self.open -= 1,
                Err(RecvTimeoutError::Timeout) => return Next::Quiet,
                Err(RecvTimeoutError::Disconnected) => self.open = 0,
            }
        }
        Next::Closed
    }
}

/// Ends with the output, or when nobody listens any more.
fn pump(stream: Stream, output: OwnedFd, sender: &Sender<Option<(Stream, String)>>) {
    let mut reader = BufReader::new(File::from(output));
    while let Some(line) = next_line(&mut reader) {
        if sender.send(Some((stream, line))).is_err() {
            return;
        }
    }
    // A listener that is gone needs no goodbye.
    let _ = sender.send(None);
}

fn next_line(reader: &mut BufReader<File>) -> Option<String> {
    let mut bytes = Vec::new();
    let read = reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut bytes).ok()?;
    if read == 0 {
        return None;
    }
    if bytes.last() != Some(&b'\n') && read as u64 == LINE_MAX {
        skip_line(reader);
    }
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn skip_line(reader: &mut BufReader<File>) {
    while let Ok(buffer) = reader.fill_buf() {
        let (used, done) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(used);
        if done {
            return;
        }
    }
}
