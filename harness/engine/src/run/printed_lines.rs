//! The lines that the processes of a target print, read from their write calls: so they are in order with the other
//! calls of the process that prints them. Knows no meaning of a line.

use std::collections::{HashMap, HashSet};

use crate::announcements::LineSplitter;
use crate::gate::FileId;

/// At most this many bytes of one write are split into lines.
const MAX_WRITTEN_BYTES: usize = 64 * 1024;

/// Splits what is written to the outputs of the target's processes into lines.
#[derive(Default)]
pub(super) struct PrintedLines {
    /// Bytes of the current write. It is known later whether it goes to an output.
    written_bytes: Vec<u8>,
    by_pipe: HashMap<FileId, LineSplitter>,
}

/// A line, with the pipe in which it was printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PrintedLine {
    pub(super) pipe: FileId,
    pub(super) text: String,
}

impl PrintedLines {
    /// Another call begins, so what was written so far is not part of its lines.
    pub(super) fn clear_written(&mut self) {
        self.written_bytes.clear();
    }

    /// Bytes that the current call writes. They count only if the call turns out to write to an output.
    pub(super) fn on_payload(&mut self, bytes: &[u8]) {
        let len_bytes = MAX_WRITTEN_BYTES.saturating_sub(self.written_bytes.len()).min(bytes.len());
        self.written_bytes.extend_from_slice(&bytes[..len_bytes]);
    }

    /// The current call has written to this output. Returns the lines that are now complete.
    pub(super) fn on_output_written(&mut self, pipe: FileId) -> Vec<PrintedLine> {
        let mut lines = Vec::new();
        let splitter = self.by_pipe.entry(pipe).or_default();
        splitter.push(&self.written_bytes, |line| {
            lines.push(PrintedLine { pipe, text: String::from_utf8_lossy(line).trim_end().to_owned() });
        });
        self.written_bytes.clear();
        lines
    }
}

/// Tells a line that is printed for the first time from one that another process forwards, as a supervisor does with
/// the lines of its worker.
#[derive(Default)]
pub(super) struct FirstPrints {
    /// Outputs of the target's main process.
    main_outputs: HashSet<FileId>,
    /// A worker process prints such lines itself. The main process then only forwards them, later.
    workers_announce: bool,
    /// Lines that another process may forward, each with the pipe in which it was printed first.
    first_printed_in: HashMap<String, FileId>,
}

impl FirstPrints {
    /// Sets the outputs with which the target's main process is about to be started.
    pub(super) fn set_main_outputs(&mut self, outputs: &[FileId]) {
        (self.main_outputs, self.workers_announce) = (outputs.iter().copied().collect(), false);
    }

    /// Whether this line, one of those that are followed, is printed for the first time.
    pub(super) fn is_first(&mut self, line: &PrintedLine) -> bool {
        let is_from_main = self.main_outputs.contains(&line.pipe);
        self.workers_announce |= !is_from_main;
        if is_from_main && self.workers_announce {
            return false;
        }
        match self.first_printed_in.get(&line.text) {
            Some(first) if *first != line.pipe => {
                self.first_printed_in.remove(&line.text);
                false
            }
            _ => {
                self.first_printed_in.insert(line.text.clone(), line.pipe);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(inode: u64) -> FileId {
        FileId { dev: 1, ino: inode }
    }

    fn line(inode: u64, text: &str) -> PrintedLine {
        PrintedLine { pipe: pipe(inode), text: text.into() }
    }

    #[test]
    fn lines_are_split_for_each_output_and_only_of_writes_to_outputs() {
        let mut printed = PrintedLines::default();
        printed.on_payload(b"to a file\n");
        printed.clear_written();
        printed.on_payload(b"saved st");
        assert_eq!(printed.on_output_written(pipe(1)), []);
        printed.on_payload(b"other\n");
        assert_eq!(printed.on_output_written(pipe(2)), [line(2, "other")]);
        printed.on_payload(b"ep 1\r 5 %\rsaved step 2\n");
        let lines = ["saved step 1", " 5 %", "saved step 2"].map(|text| line(1, text));
        assert_eq!(printed.on_output_written(pipe(1)), lines);
    }

    #[test]
    fn a_forwarded_line_is_not_a_first_one() {
        let mut prints = FirstPrints::default();
        prints.set_main_outputs(&[pipe(1)]);
        assert!(prints.is_first(&line(2, "saved step 1")), "a worker's");
        assert!(!prints.is_first(&line(1, "saved step 1")), "its supervisor's");
        assert!(prints.is_first(&line(2, "saved step 1")), "the worker says it again");
        let mut alone = FirstPrints::default();
        alone.set_main_outputs(&[pipe(1)]);
        assert!(alone.is_first(&line(1, "saved step 1")) && alone.is_first(&line(1, "saved step 1")));
    }
}
