//! Reads both outputs of one process line by line, in one thread per output, with bounds on the length of a line
//! and on the lines that wait. Knows nothing of what the lines mean.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use scenarios::OutputStream;

use crate::announcements::LineSplitter;
use crate::sandbox::{OutputPause, SpawnedProcess};

/// Lines that may wait to be handled. A target that prints more waits in its `write`.
const MAX_WAITING_LINES: usize = 1024;
/// Bytes read from an output at once.
const READ_BYTES: usize = 16 * 1024;

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
        OutputLines::read_from_pausable(process, &Arc::default())
    }

    /// The same, where the standard output is not read during a pause.
    pub(super) fn read_from_pausable(process: &mut SpawnedProcess, pause: &Arc<OutputPause>) -> OutputLines {
        let (sender, receiver) = sync_channel(MAX_WAITING_LINES);
        let outputs = process
            .take_outputs()
            .map(|outputs| [(OutputStream::Stdout, outputs.stdout), (OutputStream::Stderr, outputs.stderr)]);
        for (stream, output) in outputs.into_iter().flatten() {
            let sender = sender.clone();
            let pause = (stream == OutputStream::Stdout).then(|| Arc::clone(pause));
            if let Some(pause) = &pause {
                pause.attach(output.as_fd());
            }
            std::thread::spawn(move || forward_lines(stream, output, pause.as_deref(), &sender));
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
fn forward_lines(
    stream: OutputStream,
    output: OwnedFd,
    pause: Option<&OutputPause>,
    sender: &SyncSender<Option<(OutputStream, String)>>,
) {
    let mut output = File::from(output);
    let mut splitter = LineSplitter::default();
    let mut bytes = vec![0; READ_BYTES];
    let mut lines = Vec::new();
    let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let mut is_open = true;
    while is_open {
        if let Some(pause) = pause {
            pause.wait_until_over();
        }
        match output.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                lines.extend(splitter.take_rest().as_deref().map(text));
                is_open = false;
            }
            Ok(len_bytes) => splitter.push(&bytes[..len_bytes], |line| lines.push(text(line))),
        }
        for line in lines.drain(..) {
            if sender.send(Some((stream, line))).is_err() {
                return;
            }
        }
    }
    // If the receiver was dropped, the end mark is not needed.
    let _ = sender.send(None);
}
