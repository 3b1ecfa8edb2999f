//! A file of the inbox that is not dealt with yet, and the check whether its writer is done. Takes nothing.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::inbox_file::{self, FileIdentity};
use super::open_writers::{OpenWriters, open_writers};
use super::trouble::Trouble;
use crate::exit::Exit;
use crate::settings::Guards;

/// Wait before another look at a file that a process has open for writing.
const WRITER_INTERVAL: Duration = Duration::from_millis(100);
/// A file that is written for so long is reported.
const LONG_WRITE: Duration = Duration::from_secs(30);

/// Why a file with hard links is not taken.
const OTHER_NAMES: &str = "the file has other names (hard links), under which it can change; remove them";

/// A file that was seen and is not dealt with yet.
pub(super) struct PendingFile {
    /// `None` before the first look at it.
    pub(super) identity: Option<FileIdentity>,
    unchanged_since: Instant,
    pub(super) next_look: Instant,
    first_seen: Instant,
    /// A process that writes it has been reported.
    writer_reported: bool,
    /// The file is in the queue as this job, and only has to be removed.
    pub(super) accepted_as: Option<String>,
    /// The id of the content that is in the queue.
    pub(super) accepted_content: Option<String>,
    pub(super) trouble: Option<Trouble>,
    /// Exit code of a drain that ends because of the trouble.
    pub(super) exit: Exit,
}

/// Whether the writer of a file is done.
pub(super) enum SettleState {
    /// It may still be written. There will be another look.
    Waiting,
    /// It has been open for writing for a long time. Reported once for each file.
    WrittenForLong,
    /// It is not a regular file.
    OtherType { other_type: &'static str, identity: FileIdentity },
    /// Its writer is done, and `source` is open for reading.
    Ready { source: File, identity: FileIdentity },
}

impl PendingFile {
    /// A file that a listing has found at this time.
    pub(super) fn new(now: Instant) -> PendingFile {
        PendingFile {
            identity: None,
            unchanged_since: now,
            next_look: now,
            first_seen: now,
            writer_reported: false,
            accepted_as: None,
            accepted_content: None,
            trouble: None,
            exit: Exit::JobsFailed,
        }
    }

    /// Begins to wait until the file has not changed for a while.
    pub(super) fn wait_for_writer(&mut self, identity: FileIdentity, settle_time: Duration) {
        self.identity = Some(identity);
        self.unchanged_since = Instant::now();
        self.next_look = self.unchanged_since + settle_time;
    }

    /// Looks whether the file at `path` is complete: it has not changed for `settle_time`, or it is no longer
    /// writable, and no process has it open for writing.
    ///
    /// # Errors
    /// If the file can't be opened, or has other names.
    pub(super) fn check_settled(
        &mut self,
        path: &Path,
        settle_time: Duration,
        guards: &Guards,
    ) -> std::io::Result<SettleState> {
        let metadata = path.symlink_metadata()?;
        let identity = FileIdentity::of(&metadata);
        let other_type = inbox_file::other_type(&metadata);
        if !guards.regular_files && other_type.is_some() {
            return Ok(SettleState::Ready { source: File::open(path)?, identity });
        }
        if !guards.settled_files && other_type.is_none() {
            self.identity = Some(identity);
            return Ok(SettleState::Ready { source: inbox_file::open(path)?, identity });
        }
        if other_type.is_none() && metadata.nlink() > 1 {
            return Err(std::io::Error::other(OTHER_NAMES));
        }
        if self.identity != Some(identity) {
            self.wait_for_writer(identity, settle_time);
        }
        let has_settled = self.unchanged_since.elapsed() >= settle_time;
        if let Some(other_type) = other_type {
            // Somebody may still copy files into a directory.
            return Ok(match has_settled {
                true => SettleState::OtherType { other_type, identity },
                false => SettleState::Waiting,
            });
        }
        // `submit` takes the write permission from a file that is complete.
        if !has_settled && !metadata.permissions().readonly() {
            return Ok(SettleState::Waiting);
        }
        let source = inbox_file::open(path)?;
        if FileIdentity::of(&source.metadata()?) != identity {
            self.wait_for_writer(identity, settle_time);
            return Ok(SettleState::Waiting);
        }
        match open_writers(&source) {
            OpenWriters::None => Ok(SettleState::Ready { source, identity }),
            OpenWriters::Unknown if has_settled => Ok(SettleState::Ready { source, identity }),
            OpenWriters::Unknown => Ok(SettleState::Waiting),
            OpenWriters::Some => {
                self.next_look = Instant::now() + WRITER_INTERVAL;
                let is_long = self.first_seen.elapsed() > LONG_WRITE;
                let is_new = is_long && !std::mem::replace(&mut self.writer_reported, true);
                Ok(if is_new { SettleState::WrittenForLong } else { SettleState::Waiting })
            }
        }
    }
}
