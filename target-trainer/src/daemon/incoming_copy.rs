//! The copy of one inbox file into the queue's directory. The file is copied and checked in one pass, so that
//! training reads exactly the bytes that were checked. The pass is made in pieces, and supervision goes on
//! between them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Take};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::daemon_config::DaemonConfig;
use super::error::AcceptError;
use super::inbox_file::FileIdentity;
use super::jobs::Job;
use crate::durable::{self, AppendFile, DurableError, SyncPolicy, TEMPORARY_MARKER};
use crate::intake::{ContentId, DataError, NextSample, ReadError, Sample, SampleReader};
use crate::plain_text::shown;

/// A copy that is being made.
pub(super) struct IncomingCopy {
    pub(super) name: OsString,
    /// The file that is copied.
    pub(super) identity: FileIdentity,
    source: File,
    reader: SampleReader<Take<File>>,
    temporary: PathBuf,
    copy: AppendFile,
    content: ContentId,
    counts: LearningCounts,
    context: usize,
}

/// How many of a file's samples have something to learn, and why the others have not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LearningCounts {
    pub(super) samples: u64,
    /// Their `weight` is 0, or so small that it makes no difference.
    weightless: u64,
    /// The context ends before their first token to learn.
    cut: u64,
    /// All of their text is context.
    without_target: u64,
}

impl LearningCounts {
    fn add(&mut self, sample: &Sample, context: usize) {
        self.samples += 1;
        if sample.weight < f32::MIN_POSITIVE {
            self.weightless += 1;
        } else if sample.learned_tokens(usize::MAX) == 0 {
            self.without_target += 1;
        } else if sample.learned_tokens(context) == 0 {
            self.cut += 1;
        }
    }

    /// Samples without a token to learn.
    pub(super) fn without_effect(&self) -> u64 {
        self.weightless + self.cut + self.without_target
    }

    /// Says why samples have nothing to learn.
    pub(super) fn reasons(&self) -> String {
        let counts = [
            (self.weightless, "have weight 0"),
            (self.cut, "have nothing to learn within `recipe.context`"),
            (self.without_target, "have no text to learn"),
        ];
        let texts = counts.iter().filter(|(count, _)| *count > 0);
        texts.map(|(count, reason)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
    }
}

/// How far a copy has come.
pub(super) enum CopyProgress {
    /// There is more to read.
    Unfinished,
    /// The whole file is in the copy and synced.
    Complete,
    /// The file is not valid.
    Invalid(DataError),
    /// The file was written to meanwhile.
    Changed,
}

impl IncomingCopy {
    /// Begins a copy.
    pub(super) fn start(
        config: &DaemonConfig<'_>,
        name: &OsStr,
        source: File,
        identity: FileIdentity,
    ) -> Result<IncomingCopy, AcceptError> {
        // One byte more than it has: if there is one, the file grows.
        let input = source.try_clone()?.take(identity.len_bytes.saturating_add(1));
        let temporary = config.layout.processing().join(format!("{TEMPORARY_MARKER}-intake"));
        durable::remove_tree(&temporary)?;
        durable::create_dir(&temporary)?;
        Ok(IncomingCopy {
            name: name.to_owned(),
            identity,
            source,
            reader: SampleReader::new(input, &config.settings.limits, &config.settings.guards),
            copy: AppendFile::create(&temporary.join("data.jsonl"))?,
            temporary,
            content: ContentId::default(),
            counts: LearningCounts::default(),
            context: config.settings.recipe.context,
        })
    }

    /// Copies lines until `deadline`, but at least one.
    pub(super) fn advance(&mut self, deadline: Instant) -> Result<CopyProgress, AcceptError> {
        loop {
            let IncomingCopy { reader, copy, content, .. } = self;
            let mut write_line = |line: &[u8]| -> Result<(), DurableError> {
                content.update(line);
                copy.write_all(line)
            };
            match reader.next_sample(&mut write_line) {
                Ok(NextSample::Sample(sample)) => self.counts.add(&sample, self.context),
                Ok(NextSample::Blank) => {}
                Ok(NextSample::End) if self.is_unchanged()? => {
                    self.copy.sync(SyncPolicy::Full)?;
                    return Ok(CopyProgress::Complete);
                }
                Ok(NextSample::End) => return Ok(CopyProgress::Changed),
                Err(ReadError::Data(_)) if !self.is_unchanged()? => return Ok(CopyProgress::Changed),
                Err(ReadError::Data(error)) => return Ok(CopyProgress::Invalid(error)),
                Err(ReadError::Input(error)) => return Err(AcceptError::Read(error)),
                Err(ReadError::Sink(error)) => return Err(AcceptError::Write(error)),
            }
            if Instant::now() >= deadline {
                return Ok(CopyProgress::Unfinished);
            }
        }
    }

    fn is_unchanged(&self) -> std::io::Result<bool> {
        Ok(FileIdentity::of(&self.source.metadata()?) == self.identity)
    }

    /// The directory that holds the copy.
    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// What the samples have to learn.
    pub(super) fn counts(&self) -> LearningCounts {
        self.counts
    }

    /// Adds `job.json` to a complete copy, so that the directory can be renamed into the queue.
    pub(super) fn describe(&self, order: u64) -> Result<Job, DurableError> {
        let job = Job {
            id: self.content.finish(),
            name: shown(&self.name.to_string_lossy()),
            samples: self.counts.samples,
            order,
        };
        let text = serde_json::to_vec(&job).unwrap_or_default();
        durable::write_new(&self.temporary.join("job.json"), &text, SyncPolicy::Full)?;
        durable::sync_dir(&self.temporary, SyncPolicy::Full)?;
        Ok(job)
    }
}
