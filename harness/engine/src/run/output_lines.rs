//! Reads both outputs of one process line by line, in the thread that follows the process: a line is seen as soon as
//! that thread looks, and all that a process printed before its end is seen, however late that is. Knows nothing of
//! what the lines mean.

use std::collections::VecDeque;
use std::io::Error;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scenarios::OutputStream;

use crate::announcements::LineSplitter;
use crate::sandbox::{OutputPause, ProcessPipes, SpawnedProcess};

const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

/// The lines of both outputs of one process, in the order in which they were read.
pub(super) struct OutputLines {
    /// `None`: it has no outputs.
    pipes: Option<ProcessPipes>,
    read: ReadLines,
    pause: Arc<OutputPause>,
    /// Once the process has ended: how long other processes are waited for.
    rest_until: Instant,
}

/// What was read and not passed on yet.
#[derive(Default)]
struct ReadLines {
    splitters: [LineSplitter; 2],
    lines: VecDeque<(OutputStream, String)>,
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
    /// Follows the outputs. A process gives them only once.
    pub(super) fn of(process: &mut SpawnedProcess) -> OutputLines {
        OutputLines::pausable(process, &Arc::default())
    }

    /// The same, where the standard output is not read during a pause.
    pub(super) fn pausable(process: &mut SpawnedProcess, pause: &Arc<OutputPause>) -> OutputLines {
        let outputs = process.take_outputs();
        if let Some(outputs) = &outputs {
            pause.attach(outputs.stdout.as_fd());
        }
        let pipes = outputs.map(|outputs| ProcessPipes::new(outputs.stdout, outputs.stderr));
        OutputLines::of_pipes(pipes, Arc::clone(pause))
    }

    fn of_pipes(pipes: Option<ProcessPipes>, pause: Arc<OutputPause>) -> OutputLines {
        OutputLines { pipes, read: ReadLines::default(), pause, rest_until: Instant::now() }
    }

    /// Waits for the next line, at most for `timeout`.
    ///
    /// # Errors
    /// If an output cannot be read.
    pub(super) fn next_line(&mut self, timeout: Duration) -> Result<NextLine, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some((stream, line)) = self.read.lines.pop_front() {
                return Ok(NextLine::Line(stream, line));
            }
            let Some(pipes) = self.pipes.as_mut().filter(|pipes| !pipes.are_closed()) else {
                self.read.end_last_lines();
                let line = self.read.lines.pop_front();
                return Ok(line.map_or(NextLine::Closed, |(stream, line)| NextLine::Line(stream, line)));
            };
            let is_read = [!self.pause.is_paused(), true];
            pipes.read_or_wait(is_read, None, deadline, |of, bytes| self.read.add(of, bytes))?;
            if self.read.lines.is_empty() && !pipes.are_closed() && Instant::now() >= deadline {
                return Ok(NextLine::Timeout);
            }
        }
    }

    /// The process has ended: reads what it wrote, and lets [`OutputLines::next_of_rest`] wait for what others print
    /// that still have its outputs open, at most for `patience`.
    ///
    /// # Errors
    /// If an output cannot be read.
    pub(super) fn begin_rest(&mut self, patience: Duration) -> Result<(), Error> {
        self.rest_until = Instant::now() + patience;
        let is_read = [!self.pause.is_paused(), true];
        let Some(pipes) = &mut self.pipes else { return Ok(()) };
        pipes.read_written(is_read, |of, bytes| self.read.add(of, bytes))
    }

    /// The next of the lines that are left. `None`: there are no more.
    ///
    /// # Errors
    /// If an output cannot be read.
    pub(super) fn next_of_rest(&mut self) -> Result<Option<(OutputStream, String)>, Error> {
        while self.read.lines.is_empty()
            && Instant::now() < self.rest_until
            && let Some(pipes) = self.pipes.as_mut().filter(|pipes| !pipes.are_closed())
        {
            let is_read = [!self.pause.is_paused(), true];
            pipes.read_or_wait(is_read, None, self.rest_until, |of, bytes| self.read.add(of, bytes))?;
        }
        if self.read.lines.is_empty() {
            self.read.end_last_lines();
        }
        Ok(self.read.lines.pop_front())
    }
}

impl ReadLines {
    fn add(&mut self, output: usize, bytes: &[u8]) {
        let lines = &mut self.lines;
        self.splitters[output].push(bytes, |line| {
            lines.push_back((STREAMS[output], String::from_utf8_lossy(line).into_owned()));
        });
    }

    /// The last line of an output may have no end.
    fn end_last_lines(&mut self) {
        for (stream, splitter) in STREAMS.into_iter().zip(&mut self.splitters) {
            let rest = splitter.take_rest();
            self.lines.extend(rest.map(|line| (stream, String::from_utf8_lossy(&line).into_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// The one who follows a process may get no time while it ends, and a process that it has left behind may have
    /// its outputs open.
    #[test]
    fn each_line_of_a_process_that_has_ended_is_seen_however_late() {
        let ((out, mut their_out), (err, _their_err)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
        let mut lines =
            OutputLines::of_pipes(Some(ProcessPipes::new(out.into(), err.into())), Arc::default());
        (1..=4000).for_each(|step| writeln!(their_out, "step {step}").unwrap());
        write!(their_out, "finished").unwrap();
        lines.begin_rest(Duration::ZERO).unwrap();
        let mut seen = Vec::new();
        while let Some((stream, line)) = lines.next_of_rest().unwrap() {
            assert_eq!(stream, OutputStream::Stdout);
            seen.push(line);
        }
        assert_eq!((seen.len(), seen[3999].as_str(), seen[4000].as_str()), (4001, "step 4000", "finished"));
    }
}
