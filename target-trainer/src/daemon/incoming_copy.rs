//! The copy of one inbox file into the queue's directory. The file is copied and checked in one pass, so that
//! training reads exactly the bytes that were checked. The pass is made in pieces, and supervision goes on
//! between them.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Take};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::daemon_config::DaemonConfig;
use super::error::AcceptError;
use super::inbox_file::FileIdentity;
use super::jobs::{Job, job_id, name_id};
use crate::durable::{self, AppendFile, DurableError, SyncPolicy, TEMPORARY_MARKER};
use crate::intake::{ContentId, DataError, NextSample, ReadError, Sample, SampleReader};
use crate::names::shown_name;
use crate::plain_text::shown;
use crate::settings::Guards;
use crate::state::Recipe;
use crate::store::RECORD_FORMAT;

/// Name of the data in a job's directory.
const DATA_FILE: &str = "data.jsonl";
/// Errors of one file that are reported.
const MAX_ERRORS: usize = 20;
/// Keys that are named.
const MAX_NAMED_KEYS: usize = 8;

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
    unknown_keys: UnknownKeys,
    errors: Vec<DataError>,
    /// The whole file is in the copy and synced.
    is_complete: bool,
    context: usize,
    guards: Guards,
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

/// The keys of a file that are not used.
#[derive(Debug, Clone, Default)]
pub(super) struct UnknownKeys {
    samples: u64,
    /// The first of them.
    names: BTreeSet<String>,
}

impl UnknownKeys {
    fn add(&mut self, sample: &Sample) {
        self.samples += u64::from(!sample.unknown_keys.is_empty());
        for name in &sample.unknown_keys {
            if self.names.len() < MAX_NAMED_KEYS && !self.names.contains(name) {
                self.names.insert(name.clone());
            }
        }
    }

    /// Says which keys are not used, if there are any.
    pub(super) fn text(&self) -> Option<String> {
        let names: Vec<String> = self.names.iter().map(|name| format!("`{}`", shown(name))).collect();
        let count = self.samples;
        (count > 0).then(|| format!("{count} samples have keys that are not used: {}", names.join(", ")))
    }
}

/// How far a copy has come.
pub(super) enum CopyProgress {
    /// There is more to read.
    Unfinished,
    /// The whole file is in the copy and synced.
    Complete,
    /// The file is not valid. Holds the first errors, of which there is at least one.
    Invalid(Vec<DataError>),
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
        let temporary = config.layout.processing().join(format!("{TEMPORARY_MARKER}intake"));
        durable::remove_tree(&temporary)?;
        durable::create_dir(&temporary)?;
        Ok(IncomingCopy {
            name: name.to_owned(),
            identity,
            source,
            reader: SampleReader::new(input, &config.settings.limits, &config.settings.guards),
            copy: AppendFile::create(&temporary.join(DATA_FILE))?,
            temporary,
            content: ContentId::default(),
            counts: LearningCounts::default(),
            unknown_keys: UnknownKeys::default(),
            errors: Vec::new(),
            is_complete: false,
            context: config.settings.recipe.context,
            guards: config.settings.guards.clone(),
        })
    }

    /// Copies lines until `deadline`, but at least one.
    pub(super) fn advance(&mut self, deadline: Instant) -> Result<CopyProgress, AcceptError> {
        while !self.is_complete {
            let IncomingCopy { reader, copy, content, errors, .. } = self;
            let mut write_line = |line: &[u8]| -> Result<(), DurableError> {
                content.update(line);
                // The rest of a file that will be rejected is only checked.
                if errors.is_empty() { copy.write_all(line) } else { Ok(()) }
            };
            match reader.next_sample(&mut write_line) {
                Ok(NextSample::Sample(sample)) => {
                    self.counts.add(&sample, self.context);
                    self.unknown_keys.add(&sample);
                }
                Ok(NextSample::Blank) => {}
                Ok(NextSample::End) if !self.is_unchanged()? => return Ok(CopyProgress::Changed),
                Ok(NextSample::End) if !self.errors.is_empty() => {
                    return Ok(CopyProgress::Invalid(std::mem::take(&mut self.errors)));
                }
                Ok(NextSample::End) if !self.has_same_content()? => return Ok(CopyProgress::Changed),
                Ok(NextSample::End) => {
                    self.copy.sync(SyncPolicy::Full)?;
                    self.is_complete = true;
                }
                Err(ReadError::Data(_)) if !self.is_unchanged()? => return Ok(CopyProgress::Changed),
                Err(ReadError::Data(error)) => {
                    let is_last = error.ends_check || self.errors.len() + 1 >= MAX_ERRORS;
                    self.errors.push(error);
                    if is_last {
                        return Ok(CopyProgress::Invalid(std::mem::take(&mut self.errors)));
                    }
                }
                Err(ReadError::Input(error)) => return Err(AcceptError::Read(error)),
                Err(ReadError::Sink(error)) => return Err(AcceptError::Write(error)),
            }
            if !self.is_complete && Instant::now() >= deadline {
                return Ok(CopyProgress::Unfinished);
            }
        }
        Ok(CopyProgress::Complete)
    }

    fn is_unchanged(&self) -> std::io::Result<bool> {
        Ok(!self.guards.settled_files || FileIdentity::of(&self.source.metadata()?) == self.identity)
    }

    /// Reads the file again if its time may hide that it was written to while it was copied.
    fn has_same_content(&self) -> std::io::Result<bool> {
        let guards = &self.guards;
        if !(guards.settled_files && guards.compare_content && self.identity.has_coarse_time()) {
            return Ok(true);
        }
        let mut source = self.source.try_clone()?;
        source.rewind()?;
        Ok(ContentId::of_reader(source)? == self.content.finish())
    }

    /// The directory that holds the copy.
    pub(super) fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// The copy of the data in that directory.
    pub(super) fn data_path(&self) -> PathBuf {
        self.temporary.join(DATA_FILE)
    }

    /// What the samples have to learn.
    pub(super) fn counts(&self) -> LearningCounts {
        self.counts
    }

    /// The keys that are not used.
    pub(super) fn unknown_keys(&self) -> &UnknownKeys {
        &self.unknown_keys
    }

    /// Adds `job.json` to a complete copy, so that the directory can be renamed into the queue.
    pub(super) fn describe(&self, order: u64, base: &str, recipe: &Recipe) -> Result<Job, DurableError> {
        let data = self.content.finish();
        let has_identity = self.guards.job_identity;
        let id = match (self.guards.content_names, has_identity) {
            (false, _) => name_id(&self.name.to_string_lossy()),
            (true, true) => job_id(&data, base, recipe),
            (true, false) => data.clone(),
        };
        let job = Job {
            format: RECORD_FORMAT,
            id,
            data: Some(data),
            base: has_identity.then(|| base.to_owned()),
            recipe: has_identity.then(|| recipe.clone()),
            name: shown_name(&self.name),
            file: self.name.to_str().filter(|name| shown(name) != *name).map(str::to_owned),
            samples: self.counts.samples,
            order,
        };
        let text = serde_json::to_vec(&job).unwrap_or_default();
        durable::write_new(&self.temporary.join("job.json"), &text, SyncPolicy::Full)?;
        durable::sync_dir(&self.temporary, SyncPolicy::Full)?;
        Ok(job)
    }
}
