//! Copies data into the inbox under a name that is free and that the daemon takes. Never overwrites a file,
//! also if many copies of one name are made at once. For the command `submit` and for the monitor.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::durable::{self, AppendFile, DurableError, SyncPolicy};
use crate::file_name::MAX_NAME_BYTES;
use crate::plain_text::shown;
use crate::settings::Guards;

/// Longest name on file systems that encrypt names.
const SHORT_NAME_BYTES: usize = 143;
/// Names with a number that are tried before one with the time.
const MAX_NUMBER: u32 = 1000;

/// Copies of this process so far.
static COPIES: AtomicU64 = AtomicU64::new(0);

/// Why data does not get into the inbox.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// The name leads out of the inbox, or no file can have it.
    #[error("`{}` is not the name of a file: it has a `/` or a NUL", shown(.name))]
    Name { name: String },
    /// The data can't be read.
    #[error(transparent)]
    Read(std::io::Error),
    /// The copy can't be written.
    #[error(transparent)]
    Disk(#[from] DurableError),
}

/// A complete copy that has no name of its own yet. Dropping it removes it.
pub struct Submission<'a> {
    inbox: PathBuf,
    temporary: PathBuf,
    name: String,
    guards: &'a Guards,
}

impl<'a> Submission<'a> {
    /// Copies the data into this inbox, for a file of this name.
    ///
    /// # Errors
    /// If the name is that of no file, the data can't be read, or the copy can't be written.
    pub fn copy(
        inbox: &Path,
        name: &str,
        guards: &'a Guards,
        data: &mut dyn Read,
    ) -> Result<Submission<'a>, SubmissionError> {
        if guards.submit_names && name.contains(['/', '\0']) {
            return Err(SubmissionError::Name { name: name.to_owned() });
        }
        let name = if guards.submit_names { visible_name(name) } else { name.to_owned() };
        let temporary = inbox.join(format!("{}submit-{}", durable::TEMPORARY_MARKER, unique_number()));
        let submission = Submission { inbox: inbox.to_owned(), temporary, name, guards };
        submission.write(data)?;
        Ok(submission)
    }

    /// The copy is not writable: it is complete, and the daemon need not wait for its writer.
    fn write(&self, data: &mut dyn Read) -> Result<(), SubmissionError> {
        let mut copy = AppendFile::create(&self.temporary)?;
        let mut chunk = vec![0; 1 << 16];
        loop {
            match data.read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => copy.write_all(&chunk[..len])?,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SubmissionError::Read(error)),
            }
        }
        copy.make_read_only()?;
        Ok(copy.finish(SyncPolicy::Full)?)
    }

    /// Gives the copy its name, or the first one that is free: `name`, `1-name`, `2-name` .. Returns its path.
    ///
    /// # Errors
    /// If the copy can't be renamed, or the inbox can't be synced.
    pub fn finish(self) -> Result<PathBuf, SubmissionError> {
        let target = self.move_to_free_name()?;
        durable::sync_dir(&self.inbox, SyncPolicy::Full)?;
        Ok(target)
    }

    fn move_to_free_name(&self) -> Result<PathBuf, DurableError> {
        let mut max_bytes = MAX_NAME_BYTES;
        let mut number = 0;
        loop {
            let prefix = match number {
                0 => String::new(),
                1..=MAX_NUMBER => format!("{number}-"),
                _ => format!("{}-", unique_number()),
            };
            let is_checked = self.guards.submit_names;
            let end = if is_checked { end_of_name(&self.name, max_bytes - prefix.len()) } else { &self.name };
            let target = self.inbox.join(prefix + end);
            let renamed = match is_checked {
                true => durable::rename_new(&self.temporary, &target),
                false => durable::rename(&self.temporary, &target).map(|()| true),
            };
            match renamed {
                Ok(true) => return Ok(target),
                Ok(false) => number += 1,
                Err(error) if error.is_name_too_long() && max_bytes > SHORT_NAME_BYTES => {
                    max_bytes = SHORT_NAME_BYTES;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        // Nothing has this name any more if the copy was given its own. Another error was reported already.
        let _ = durable::remove_file(&self.temporary);
    }
}

/// A name like `name` that the daemon does not ignore: it has no leading dot and no end like
/// `.tmp`.
fn visible_name(name: &str) -> String {
    let name = match name.trim_start_matches('.') {
        "" => "data",
        name => name,
    };
    if durable::is_unfinished_name(name) { format!("{name}.jsonl") } else { name.to_owned() }
}

/// The last characters of the name, in at most `max_bytes` bytes. The end is kept because of its extension.
fn end_of_name(name: &str, max_bytes: usize) -> &str {
    let start =
        (name.len().saturating_sub(max_bytes)..name.len()).find(|start| name.is_char_boundary(*start));
    // A cut may not leave a name that is hidden.
    name[start.unwrap_or(0)..].trim_start_matches('.')
}

/// A number that nobody else uses at the same time.
fn unique_number() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let count = COPIES.fetch_add(1, Ordering::Relaxed);
    format!("{}-{}-{count}", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_one_that_the_daemon_ignores() {
        for (name, visible) in [
            ("a.jsonl", "a.jsonl"),
            (".hidden.jsonl", "hidden.jsonl"),
            ("..x", "x"),
            ("...", "data"),
            ("a.jsonl.tmp", "a.jsonl.tmp.jsonl"),
            (".tmp", "tmp"),
            (".tmp-1", "tmp-1"),
            ("..tmp.tmp", "tmp.tmp.jsonl"),
            ("a.PART", "a.PART.jsonl"),
            ("a~", "a~.jsonl"),
            ("data.tmpl.jsonl", "data.tmpl.jsonl"),
        ] {
            assert_eq!(visible_name(name), visible);
        }
    }

    #[test]
    fn a_cut_name_keeps_its_end_and_whole_characters() {
        assert_eq!(end_of_name("abc.jsonl", 255), "abc.jsonl");
        assert_eq!(end_of_name("abc.jsonl", 6), "jsonl");
        assert_eq!(end_of_name("é.jsonl", 7), "jsonl");
        assert_eq!(end_of_name(&"é".repeat(200), 255).len(), 254);
    }

    #[test]
    fn a_copy_that_is_dropped_leaves_nothing_and_a_finished_one_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let guards = Guards::default();
        let copy = |name: &str| Submission::copy(dir.path(), name, &guards, &mut &b"data"[..]);
        drop(copy("a").unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(copy("../a").is_err() && copy("a\0").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(copy("a").unwrap().finish().unwrap(), dir.path().join("a"));
        assert_eq!(copy("a").unwrap().finish().unwrap(), dir.path().join("1-a"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
