//! A queue of lines in front of a stream that may not be read. Whoever prints waits for a slow reader once,
//! and shortly: lines that do not fit are dropped and counted. Decides nothing about the text.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait for the reader. More are dropped.
const MAX_LINES: usize = 4096;
/// How long one line waits for its reader, once.
const WRITE_PATIENCE: Duration = Duration::from_millis(200);
/// How long a wait spins before it sleeps.
const SPIN_TIME: Duration = Duration::from_micros(100);
/// Bytes of a line that are kept, so that the whole queue is bounded too.
const MAX_LINE_BYTES: usize = 16 << 10;

/// A queue that a thread writes to a stream.
pub(super) struct OutputQueue {
    lines: SyncSender<Vec<u8>>,
    /// Lines that are in the queue or being written.
    unwritten: Arc<AtomicUsize>,
    /// Lines dropped since the last notice about them.
    dropped: AtomicU64,
    /// The last line was not written in time.
    is_stalled: AtomicBool,
}

impl OutputQueue {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub(super) fn start(out: impl Write + Send + 'static) -> std::io::Result<OutputQueue> {
        let (lines, queue) = sync_channel(MAX_LINES);
        let unwritten = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&unwritten);
        std::thread::Builder::new().name("output".into()).spawn(move || write_all(out, &queue, &counter))?;
        Ok(OutputQueue { lines, unwritten, dropped: AtomicU64::new(0), is_stalled: AtomicBool::new(false) })
    }

    /// Adds a line, with its line break, or drops it. Waits a moment until it is written, so that it is out
    /// before what comes next, unless the reader is known to be slow.
    pub(super) fn push(&self, line: &[u8]) {
        let reader_keeps_up = !self.is_stalled.load(Ordering::Relaxed) || self.is_written();
        self.enqueue(line);
        if reader_keeps_up {
            self.is_stalled.store(!self.flush(WRITE_PATIENCE), Ordering::Relaxed);
        }
    }

    fn enqueue(&self, line: &[u8]) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0
            && !self.try_send(format!("{dropped} lines were dropped: nobody reads this output\n").as_bytes())
        {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        } else if !self.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn try_send(&self, line: &[u8]) -> bool {
        let mut kept = line[..line.len().min(MAX_LINE_BYTES)].to_vec();
        if kept.len() < line.len() {
            kept.push(b'\n');
        }
        self.unwritten.fetch_add(1, Ordering::Relaxed);
        match self.lines.try_send(kept) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.unwritten.fetch_sub(1, Ordering::Relaxed);
                false
            }
        }
    }

    fn is_written(&self) -> bool {
        self.unwritten.load(Ordering::Acquire) == 0
    }

    /// Waits until all lines are written, but not longer than `patience`: perhaps nobody reads them. Returns
    /// whether they are.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let started = Instant::now();
        while !self.is_written() {
            match started.elapsed() {
                waited if waited > patience => return false,
                waited if waited < SPIN_TIME => std::thread::yield_now(),
                _ => std::thread::sleep(SPIN_TIME),
            }
        }
        true
    }
}

/// Writes line by line. If the reader has closed the pipe, the lines are taken and thrown away.
fn write_all(mut out: impl Write, queue: &Receiver<Vec<u8>>, unwritten: &AtomicUsize) {
    for line in queue {
        let _ = out.write_all(&line).and_then(|()| out.flush());
        unwritten.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::pipe;

    use super::*;

    #[test]
    fn nobody_waits_for_a_pipe_that_is_not_read_and_dropped_lines_are_counted() {
        let (mut reader, writer) = pipe().unwrap();
        let queue = OutputQueue::start(writer).unwrap();
        let line = format!("{}\n", "x".repeat(999));
        let pushed = 3 * MAX_LINES;
        for _ in 0..pushed {
            queue.push(line.as_bytes());
        }
        queue.flush(Duration::from_millis(1));
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        queue.flush(Duration::from_secs(30));
        queue.push(b"the last line\n");
        queue.flush(Duration::from_secs(30));
        drop(queue);
        let text = read.join().unwrap();
        assert!(text.ends_with("nobody reads this output\nthe last line\n"), "{}", &text[text.len() - 200..]);
        // There is more than one notice if the reader took a line in between.
        let dropped: usize = text
            .lines()
            .filter_map(|line| line.strip_suffix(" lines were dropped: nobody reads this output"))
            .map(|count| count.parse::<usize>().unwrap())
            .sum();
        assert!(dropped > 0 && text.matches(&line).count() + dropped == pushed, "{dropped}");
    }

    #[test]
    fn a_closed_pipe_holds_nobody_up() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let queue = OutputQueue::start(writer).unwrap();
        (0..3 * MAX_LINES).for_each(|_| queue.push(b"line\n"));
        queue.flush(Duration::from_secs(30));
        assert_eq!(queue.unwritten.load(Ordering::Relaxed), 0);
    }
}
