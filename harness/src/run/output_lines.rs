//! Reads a target's output line by line, in threads of its own, with a bound on the length of a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use scenarios::OutputStream;

use crate::sandbox::SpawnedProcess;

/// Bytes of a line that are kept; the rest of a longer one is dropped.
const MAX_LINE_BYTES: u64 = 16 * 1024;

/// Both outputs of one process, interleaved as they came.
pub(super) struct OutputLines {
    receiver: Receiver<Option<(OutputStream, String)>>,
    open_outputs: u8,
}

/// What came.
pub(super) enum NextLine {
    Line(OutputStream, String),
    /// Nothing within the time.
    Timeout,
    /// Both outputs have been closed.
    Closed,
}

impl OutputLines {
    pub(super) fn read_from(running: &mut SpawnedProcess) -> OutputLines {
        let (sender, receiver) = channel();
        let outputs = running
            .take_outputs()
            .map(|(stdout, stderr)| [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)]);
        for (stream, output) in outputs.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || forward_lines(stream, output, &sender));
        }
        OutputLines { receiver, open_outputs: 2 }
    }

    pub(super) fn next_line(&mut self, wait: Duration) -> NextLine {
        let until = Instant::now() + wait;
        while self.open_outputs > 0 {
            match self.receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Some((stream, line))) => return NextLine::Line(stream, line),
                Ok(None) => self.open_outputs -= 1,
                Err(RecvTimeoutError::Timeout) => return NextLine::Timeout,
                Err(RecvTimeoutError::Disconnected) => self.open_outputs = 0,
            }
        }
        NextLine::Closed
    }
}

/// Ends with the output, or when nobody listens any more.
fn forward_lines(stream: OutputStream, output: OwnedFd, sender: &Sender<Option<(OutputStream, String)>>) {
    let mut reader = BufReader::new(File::from(output));
    while let Some(line) = read_line(&mut reader) {
        if sender.send(Some((stream, line))).is_err() {
            return;
        }
    }
    // A listener that is gone needs no goodbye.
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
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(used);
        if done {
            return;
        }
    }
}
