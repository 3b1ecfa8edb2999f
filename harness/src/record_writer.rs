//! Writes each event of a run to `record.jsonl` at once, so that a killed harness leaves a record too. Also
//! keeps the record in memory for the reports.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;

use scenarios::{Event, Record, RecordEntry, RecordLines};

use engine::locks::LockExt;
use engine::observe::Observer;

/// An observer that writes the record.
pub(crate) struct RecordWriter {
    state: Mutex<RecordWriterState>,
}

struct RecordWriterState {
    file: BufWriter<File>,
    lines: RecordLines,
    record: Record,
    /// The first error. It is reported by [`RecordWriter::finish`], because an observer cannot return it.
    failure: Option<std::io::Error>,
}

impl RecordWriter {
    /// Creates the file, which must not exist yet.
    pub(crate) fn create(path: &Path) -> std::io::Result<RecordWriter> {
        let file = BufWriter::new(File::create_new(path)?);
        let (lines, record) = (RecordLines::default(), Record::default());
        Ok(RecordWriter { state: Mutex::new(RecordWriterState { file, lines, record, failure: None }) })
    }

    /// Flushes the file. Returns the record, and the first error that occurred while it was written.
    pub(crate) fn finish(&self) -> (Record, Option<std::io::Error>) {
        let mut state = self.state.locked();
        if let Err(error) = state.file.flush() {
            state.failure.get_or_insert(error);
        }
        (std::mem::take(&mut state.record), state.failure.take())
    }
}

impl Observer for RecordWriter {
    fn observe(&self, entry: &RecordEntry) {
        let mut state = self.state.locked();
        let line = entry.to_line(&mut state.lines);
        let mut written = writeln!(state.file, "{line}");
        // Steps are frequent, so they are flushed with the next event of another kind.
        if !matches!(entry.event, Event::Step { .. }) {
            written = written.and_then(|()| state.file.flush());
        }
        if let Err(error) = written {
            state.failure.get_or_insert(error);
        }
        state.record.entries.push(entry.clone());
    }
}
