//! The journal: one JSON line for each event of all daemons of a root, and the counts of them. When it is
//! large, or could not be written for a while, one line with the counts takes its place. Shows nothing.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bounded_read::read_regular;
use crate::durable::{self, AppendFile, DurableError, SyncPolicy};

/// Size at which the counts take the place of the lines.
const MAX_JOURNAL_BYTES: u64 = 1 << 20;
/// Longest text of an event.
const MAX_TEXT_CHARS: usize = 300;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum EventKind {
    Step,
    Saved,
    SaveFailed,
    StepSkipped,
    RolledBack,
    Resumed,
    WorkerRestarted,
    JobFinished,
    JobFailed,
}

/// An event, as a line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct JournalEntry {
    /// Seconds since 1970.
    pub(super) at: u64,
    pub(super) event: EventKind,
    pub(super) job: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) step: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
}

impl JournalEntry {
    /// The entry with a text of bounded length.
    pub(super) fn with_text(self, text: &str) -> JournalEntry {
        JournalEntry { text: Some(text.chars().take(MAX_TEXT_CHARS).collect()), ..self }
    }
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum JournalLine {
    /// The counts of all that was before.
    Totals {
        totals: EventCounts,
    },
    Entry(JournalEntry),
}

/// How often each thing has happened since the root was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct EventCounts {
    pub(super) steps: u64,
    pub(super) saves: u64,
    pub(super) failed_saves: u64,
    pub(super) skipped_steps: u64,
    pub(super) rollbacks: u64,
    pub(super) resumes: u64,
    pub(super) worker_restarts: u64,
    pub(super) finished_jobs: u64,
    pub(super) failed_jobs: u64,
}

impl EventCounts {
    fn add(&mut self, kind: EventKind) {
        let count = match kind {
            EventKind::Step => &mut self.steps,
            EventKind::Saved => &mut self.saves,
            EventKind::SaveFailed => &mut self.failed_saves,
            EventKind::StepSkipped => &mut self.skipped_steps,
            EventKind::RolledBack => &mut self.rollbacks,
            EventKind::Resumed => &mut self.resumes,
            EventKind::WorkerRestarted => &mut self.worker_restarts,
            EventKind::JobFinished => &mut self.finished_jobs,
            EventKind::JobFailed => &mut self.failed_jobs,
        };
        *count = count.saturating_add(1);
    }

    /// Counts what the text of a journal has. A line that is torn, or that nobody knows, counts nothing.
    fn of_text(text: &[u8]) -> EventCounts {
        let mut counts = EventCounts::default();
        for line in text.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(JournalLine::Totals { totals }) => counts = totals,
                Ok(JournalLine::Entry(entry)) => counts.add(entry.event),
                Err(_) => {}
            }
        }
        counts
    }
}

/// The journal of a root.
pub(super) struct Journal {
    path: PathBuf,
    file: Option<AppendFile>,
    len_bytes: u64,
    counts: EventCounts,
    /// The file lacks something that is counted, or its end is torn.
    is_behind: bool,
}

impl Journal {
    /// Continues the journal at this path. With `from_file` off, the counts begin at 0.
    pub(super) fn open(path: PathBuf, from_file: bool) -> Journal {
        let mut journal =
            Journal { path, file: None, len_bytes: 0, counts: EventCounts::default(), is_behind: false };
        match read_regular(&journal.path, 4 * MAX_JOURNAL_BYTES) {
            Ok(text) => {
                journal.len_bytes = text.len() as u64;
                if from_file {
                    journal.counts = EventCounts::of_text(&text);
                    journal.is_behind = !text.is_empty() && !text.ends_with(b"\n");
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!("the journal of the monitor can't be read, its counts begin at 0: {error}");
                journal.is_behind = true;
            }
        }
        journal
    }

    /// The counts of all that was added, here or by earlier daemons.
    pub(super) fn counts(&self) -> EventCounts {
        self.counts
    }

    /// Whether the file has all that is counted.
    pub(super) fn is_complete(&self) -> bool {
        !self.is_behind
    }

    /// Counts an event and writes it. After an error, the counts as a whole are written as soon as that works.
    ///
    /// # Errors
    /// If the file can't be written. The event is counted.
    pub(super) fn add(&mut self, entry: &JournalEntry) -> Result<(), DurableError> {
        self.counts.add(entry.event);
        let line = JournalLine::Entry(entry.clone());
        let written = if self.is_behind || self.len_bytes > MAX_JOURNAL_BYTES {
            self.write_totals()
        } else {
            self.append(&line)
        };
        self.is_behind = written.is_err();
        written
    }

    fn append(&mut self, line: &JournalLine) -> Result<(), DurableError> {
        let text = text_of(line);
        let mut file = match self.file.take() {
            Some(file) => file,
            None => AppendFile::open_to_append(&self.path)?,
        };
        file.write_all(&text)?;
        self.len_bytes += text.len() as u64;
        self.file = Some(file);
        Ok(())
    }

    fn write_totals(&mut self) -> Result<(), DurableError> {
        self.file = None;
        let text = text_of(&JournalLine::Totals { totals: self.counts });
        durable::replace(&self.path, &text, SyncPolicy::NoSync)?;
        self.len_bytes = text.len() as u64;
        Ok(())
    }
}

fn text_of(line: &JournalLine) -> Vec<u8> {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(event: EventKind) -> JournalEntry {
        JournalEntry { at: 1, event, job: "j".into(), step: Some(3), text: None }
    }

    fn counts_in(path: &std::path::Path) -> EventCounts {
        EventCounts::of_text(&std::fs::read(path).unwrap())
    }

    #[test]
    fn the_counts_are_those_of_the_file_also_after_a_restart_a_torn_end_and_a_rewrite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let mut journal = Journal::open(path.clone(), true);
        (0..3).for_each(|_| journal.add(&entry(EventKind::Step)).unwrap());
        journal.add(&entry(EventKind::Saved)).unwrap();
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"at\":1,\"event\":\"st");
        std::fs::write(&path, text).unwrap();
        let mut journal = Journal::open(path.clone(), true);
        assert_eq!(journal.counts(), EventCounts { steps: 3, saves: 1, ..EventCounts::default() });
        assert!(!journal.is_complete());
        journal.add(&entry(EventKind::Step)).unwrap();
        assert!(journal.is_complete() && counts_in(&path) == journal.counts());
        journal.len_bytes = MAX_JOURNAL_BYTES + 1;
        journal.add(&entry(EventKind::JobFailed)).unwrap();
        journal.add(&entry(EventKind::Step)).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
        assert_eq!(counts_in(&path), journal.counts());
        assert_eq!(journal.counts().steps, 5);
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        std::fs::create_dir(&path).unwrap();
        let mut journal = Journal::open(path.clone(), true);
        assert!(journal.add(&entry(EventKind::Step)).is_err() && !journal.is_complete());
        std::fs::remove_dir(&path).unwrap();
        journal.add(&entry(EventKind::Saved)).unwrap();
        assert!(journal.is_complete());
        assert_eq!(counts_in(&path), EventCounts { steps: 1, saves: 1, ..EventCounts::default() });
    }

    proptest! {
        #[test]
        fn no_bytes_in_the_place_of_the_journal_are_a_problem(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal.jsonl");
            std::fs::write(&path, bytes).unwrap();
            let mut journal = Journal::open(path.clone(), true);
            journal.add(&entry(EventKind::Step)).unwrap();
            prop_assert_eq!(counts_in(&path), journal.counts());
        }
    }
}
