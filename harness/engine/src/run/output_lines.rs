//! Reads both outputs of one process line by line, in one thread per output, with a bound on the length of a
//! line. Knows nothing of what the lines mean.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use scenarios::OutputStream;

use crate::sandbox::SpawnedProcess;

/// Longest line that is kept, in bytes. The rest of a longer line is dropped.
const MAX_LINE_BYTES: u64 = 16 * 1024;

/// The lines of both outputs of one process, in the order in which they arrived.
pub(super) struct OutputLines {
    receiver: Receiver<Option<(OutputStream, String)>>,
    open_outputs: u8,
}

/// Result of waiting for a line.
pub(super) enum NextLine {
    /// A line without its line end.
    Line(OutputStream, String),
    /// No line arrived within the timeout.
    Timeout,
    /// Both outputs are closed.
    Closed,
}

impl OutputLines {
    /// Starts the reading threads. A process gives its outputs only once.
    pub(super) fn read_from(process: &mut SpawnedProcess) -> OutputLines {
        let (sender, receiver) = channel();
        let outputs = process
            .take_outputs()
            .map(|outputs| [(OutputStream::Stdout, outputs.stdout), (OutputStream::Stderr, outputs.stderr)]);
        for (stream, output) in outputs.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || forward_lines(stream, output, &sender));
        }
        OutputLines { receiver, open_outputs: 2 }
    }

    /// Waits for the next line, at most for `timeout`.
    pub(super) fn next_line(&mut self, timeout: Duration) -> NextLine {
        let deadline = Instant::now() + timeout;
        while self.open_outputs > 0 {
            match self.receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Some((stream, line))) => return NextLine::Line(stream, line),
                Ok(None) => self.open_outputs -= 1,
                Err(RecvTimeoutError::Timeout) => return NextLine::Timeout,
                Err(RecvTimeoutError::Disconnected) => self.open_outputs = 0,
            }
        }
        NextLine::Closed
    }
}

/// Sends every line of `output`. Returns when the output ends or the receiver is dropped.
fn forward_lines(stream: OutputStream, output: OwnedFd, sender: &Sender<Option<(OutputStream, String)>>) {
    let mut reader = BufReader::new(File::from(output));
    while let Some(line) = read_line(&mut reader) {
        if sender.send(Some((stream, line))).is_err() {
            return;
        }
    }
    // If the receiver was dropped, the end mark is not needed.
    let _ = sender.send(None);
}

fn read_line(reader: &mut BufReader<File>) -> Option<String> {
    let mut bytes = Vec::new();
    let read = reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes).ok()?;
    if read == 0 {
        return None;
    }
    if bytes.last() != Some(&b'\n') && read as u64 == MAX_LINE_BYTES {
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
            Some(index) => (index + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(used);
        if done {
            return;
        }
    }
}
