//! Copies data into the inbox under a name that is free and that the daemon takes. Never overwrites a file,
//! also if many copies of one name are made at once. For the command `submit` and for the monitor.

mod twin_file;

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::PathBuf;

use crate::durable::{self, AppendFile, DurableError, SyncPolicy};
use crate::names::{NameProblem, TwinNames, check_name, visible_name};
use crate::plain_text::shown;
use crate::settings::Guards;
use crate::store::RootLayout;
use twin_file::twin_file;

/// Why data does not get into the inbox.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// The name leads out of the inbox, or no file can have it.
    #[error("`{}` is not the name of a file: {problem}", shown(.name))]
    Name { name: String, problem: NameProblem },
    /// The data can't be read.
    #[error(transparent)]
    Read(std::io::Error),
    /// The copy can't be written.
    #[error(transparent)]
    Disk(#[from] DurableError),
}

/// A file that was submitted.
#[derive(Debug)]
pub struct Submitted {
    /// Its name in the inbox.
    pub name: OsString,
    /// The name looks like that of another file that waits.
    pub twins: Option<TwinNames>,
}

/// A complete copy that has no name of its own yet. Dropping it removes it.
pub struct Submission<'a> {
    layout: &'a RootLayout,
    temporary: PathBuf,
    name: String,
    guards: &'a Guards,
}

impl<'a> Submission<'a> {
    /// Copies the data into the inbox of a root, for a file of this name.
    ///
    /// # Errors
    /// If the name is that of no file, the data can't be read, or the copy can't be written.
    pub fn copy(
        layout: &'a RootLayout,
        name: &str,
        guards: &'a Guards,
        data: &mut dyn Read,
    ) -> Result<Submission<'a>, SubmissionError> {
        if guards.submit_names {
            match check_name(OsStr::new(name)) {
                // Its end is kept.
                Ok(()) | Err(NameProblem::TooLong) => {}
                Err(problem) => return Err(SubmissionError::Name { name: name.to_owned(), problem }),
            }
        }
        let name = if guards.submit_names { visible_name(name) } else { name.to_owned() };
        let temporary =
            layout.inbox().join(format!("{}submit-{}", durable::TEMPORARY_MARKER, durable::unique_number()));
        let submission = Submission { layout, temporary, name, guards };
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

    /// Gives the copy its name, or the first one that is free: `name`, `1-name`, `2-name` ..
    ///
    /// # Errors
    /// If the copy can't be renamed, or the inbox can't be synced.
    pub fn finish(self) -> Result<Submitted, SubmissionError> {
        let path = self.move_to_free_name()?;
        durable::sync_dir(&self.layout.inbox(), SyncPolicy::Full)?;
        let name = path.file_name().unwrap_or_default();
        let twins = self.guards.twin_names.then(|| twin_file(self.layout, name)).flatten();
        Ok(Submitted { name: name.to_owned(), twins })
    }

    fn move_to_free_name(&self) -> Result<PathBuf, DurableError> {
        if self.guards.submit_names {
            let inbox = self.layout.inbox();
            return durable::rename_to_free_name(&self.temporary, &inbox, OsStr::new(&self.name));
        }
        let target = self.layout.inbox().join(&self.name);
        durable::rename(&self.temporary, &target).map(|()| target)
    }
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        // Nothing has this name any more if the copy was given its own. Another error was reported already.
        let _ = durable::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_is_dropped_leaves_nothing_and_a_finished_one_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let guards = Guards::default();
        let layout = RootLayout::new(dir.path());
        std::fs::create_dir(layout.inbox()).unwrap();
        let copy = |name: &str| Submission::copy(&layout, name, &guards, &mut &b"data"[..]);
        drop(copy("a").unwrap());
        assert_eq!(std::fs::read_dir(layout.inbox()).unwrap().count(), 0);
        for name in ["../a", "a\0", "", ".", ".."] {
            assert!(copy(name).is_err(), "{name:?}");
        }
        assert_eq!(std::fs::read_dir(layout.inbox()).unwrap().count(), 0);
        assert_eq!(copy("a").unwrap().finish().unwrap().name, "a");
        assert_eq!(copy("a").unwrap().finish().unwrap().name, "1-a");
        assert_eq!(std::fs::read_dir(layout.inbox()).unwrap().count(), 2);
    }
}
