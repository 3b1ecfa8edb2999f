//! Jobs as files. A job moves by one synced rename, and the daemon removes unfinished moves when it starts.
//! Knows nothing of workers.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use super::error::AcceptError;
use crate::bounded_read::read_regular;
use crate::durable::{self, DurableError, SyncPolicy, TEMPORARY_MARKER};
use crate::file_error::{FileError, file_error};
use crate::plain_text::shown;
use crate::state::Recipe;
use crate::store::{FinishedResult, ResultProblem, RootLayout, read_result, refuse_newer};

/// The file that describes a queued job.
const JOB_FILE: &str = "job.json";
/// The files that the daemon and its workers make in the directory of a queued job.
const OWN_FILES: [&str; 4] = [JOB_FILE, "data.jsonl", "reason.json", "has-checkpoints"];
/// Largest JSON file of a job.
const MAX_JSON_BYTES: u64 = 1 << 20;
/// How much of a file's name names its job, if its content does not.
const MAX_NAME_ID_CHARS: usize = 64;

/// An accepted job, as `job.json` stores it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    /// Earlier versions have not written it.
    #[serde(default)]
    pub(super) format: u32,
    /// First half of the BLAKE3 of the ids of data and base and of the recipe, in hexadecimal.
    pub(super) id: String,
    /// Id of its data. An earlier version used it as the job's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<String>,
    /// Digest of the base model at the time when it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) base: Option<String>,
    /// The recipe at the time when it was accepted. Later changes of the settings are for later jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) recipe: Option<Recipe>,
    /// The file's name in the inbox, as it is shown.
    pub(super) name: String,
    /// The name itself, if it is shown differently.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) file: Option<String>,
    pub(super) samples: u64,
    /// The daemon trains jobs in ascending `order`.
    pub(super) order: u64,
}

/// The id of a job: equal only if data, base and recipe are equal.
pub(super) fn job_id(data: &str, base: &str, recipe: &Recipe) -> String {
    let recipe = serde_json::to_string(recipe).unwrap_or_default();
    let digest = blake3::hash(format!("{data}\n{base}\n{recipe}").as_bytes());
    digest.to_hex().as_str()[..data.len().min(64)].to_owned()
}

/// The id of a job that is named by its file, if the guard `content_names` is off: what is left of the name when it
/// is made comparable and short.
pub(super) fn name_id(file: &str) -> String {
    file.nfkc().flat_map(char::to_lowercase).take(MAX_NAME_ID_CHARS).collect()
}

/// The id of the data of a queued job, and its recipe if it has one of its own.
///
/// # Errors
/// If `job.json` can't be read.
pub fn queued_job(layout: &RootLayout, name: &str) -> std::io::Result<QueuedJob> {
    let job = read_job(layout, name)?;
    Ok(QueuedJob { data: job.data.unwrap_or(job.id), recipe: job.recipe })
}

/// What a queued job was accepted as.
#[derive(Debug, Clone, PartialEq)]
pub struct QueuedJob {
    /// Id of its data.
    pub data: String,
    /// `None` if an earlier version has accepted it. The settings then have its recipe.
    pub recipe: Option<Recipe>,
}

/// Removes the temporary entries that an earlier daemon left behind.
pub(super) fn remove_unfinished(layout: &RootLayout) -> Result<(), DurableError> {
    for dir in [layout.processing(), layout.done(), layout.failed(), layout.merged()] {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY_MARKER) {
                durable::remove_tree(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// Reads a job of the queue.
///
/// # Errors
/// If `job.json` can't be read or is not that of this job. Errors of the kind `InvalidData` stay until
/// somebody changes the entry; others may pass.
pub(super) fn read_job(layout: &RootLayout, name: &str) -> std::io::Result<Job> {
    let invalid = |text: String| std::io::Error::new(std::io::ErrorKind::InvalidData, text);
    let entry = layout.processing().join(name);
    let bytes = match read_regular(&entry.join(JOB_FILE), MAX_JSON_BYTES) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(invalid("there is no job.json".into()));
        }
        bytes => bytes?,
    };
    refuse_newer(&bytes).map_err(|error| invalid(format!("job.json: {error}")))?;
    let job: Job = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    if job.id != name {
        return Err(invalid(format!("job.json has the id `{}`", shown(&job.id))));
    }
    Ok(job)
}

/// The result of a job that is finished already. `None` if it is not, or if a part of it is gone or damaged.
///
/// # Errors
/// If it can't be told, because a file can't be read.
pub(super) fn finished_result(layout: &RootLayout, job: &Job) -> Result<Option<FinishedResult>, FileError> {
    match read_result(&layout.done().join(&job.id), &job.id) {
        Ok(result) => Ok(Some(result)),
        Err(ResultProblem::Incomplete { .. }) => Ok(None),
        Err(ResultProblem::File(error)) => Err(error),
        Err(ResultProblem::Newer { path, source }) => {
            Err(file_error("use", &path)(std::io::Error::new(ErrorKind::InvalidData, source)))
        }
    }
}

/// Whether the content of a new job is known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// It is neither queued nor done.
    No,
    /// There is a job of this content in the queue. Its data may be damaged.
    Queued,
    /// There is a complete result.
    Done,
}

/// Whether this job is queued, or done with a result that is still there.
///
/// # Errors
/// If it can't be told: a job must not be queued twice because of that. And if it is queued and can't be
/// read: its data must not be taken for safe.
pub(super) fn known(layout: &RootLayout, job: &Job) -> Result<Known, AcceptError> {
    let path = layout.processing().join(&job.id);
    if path.try_exists().map_err(file_error("look for", &path))? {
        return match read_job(layout, &job.id) {
            Ok(_) => Ok(Known::Queued),
            Err(source) => Err(AcceptError::BrokenJob { id: job.id.clone(), source }),
        };
    }
    match finished_result(layout, job) {
        Ok(found) => Ok(if found.is_some() { Known::Done } else { Known::No }),
        Err(error) if error.source.kind() == ErrorKind::InvalidData => Err(AcceptError::OtherResult(error)),
        Err(error) => Err(error.into()),
    }
}

/// Puts a good copy of the data, which is synced, into the place of that of the queued job: the old copy may
/// be cut or damaged, and to read it would take long. A worker that reads the old one keeps it open.
///
/// # Errors
/// If that is not possible. The old copy then stays.
pub(super) fn renew_data(layout: &RootLayout, job: &str, copy: &Path) -> Result<(), AcceptError> {
    let data = layout.job_data(job);
    if data.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        let source = std::io::Error::new(ErrorKind::IsADirectory, "data.jsonl is a directory");
        return Err(AcceptError::BrokenJob { id: job.to_owned(), source });
    }
    durable::rename(copy, &data)?;
    Ok(durable::sync_dir(&layout.processing().join(job), SyncPolicy::Full)?)
}

/// Removes a finished job from the queue. With `whole`, a crash never leaves a part of it there. If somebody
/// else has put files there, all of it is moved beside the result instead, and that path is returned.
pub(super) fn remove_from_queue(
    layout: &RootLayout,
    job: &Job,
    whole: bool,
) -> Result<Option<PathBuf>, DurableError> {
    let entry = layout.processing().join(&job.id);
    let mut kept = None;
    if has_other_files(&entry) {
        kept = Some(durable::move_to_old(&entry, &layout.done().join(&job.id))?);
        durable::sync_dir(&layout.done(), SyncPolicy::Full)?;
    } else if whole {
        durable::remove_atomically(&entry, SyncPolicy::Full)?;
    } else {
        durable::remove_tree(&entry)?;
    }
    durable::sync_dir(&layout.processing(), SyncPolicy::Full)?;
    Ok(kept)
}

/// Whether there is something in the directory that the daemon does not make.
fn has_other_files(entry: &Path) -> bool {
    let is_other = |name: &str| !OWN_FILES.contains(&name) && !name.starts_with(TEMPORARY_MARKER);
    let mut entries = std::fs::read_dir(entry).into_iter().flatten().flatten();
    entries.any(|entry| is_other(&entry.file_name().to_string_lossy()))
}

/// Moves the job with its data and the reason to `failed/`. Its checkpoints stay where they are. What is in
/// its place there, such as the data of an earlier attempt, is moved aside, and that path is returned.
pub(super) fn move_to_failed(
    layout: &RootLayout,
    job: &Job,
    reason: &str,
) -> Result<Option<PathBuf>, DurableError> {
    let from = layout.processing().join(&job.id);
    let reason_file = serde_json::json!({
        "job": job.id,
        "file": job.name,
        "error": reason,
        "advice": "fix the cause and submit the data again",
    });
    durable::replace(&from.join("reason.json"), reason_file.to_string().as_bytes(), SyncPolicy::Full)?;
    let to = layout.failed().join(&job.id);
    let aside = durable::move_aside(&to)?;
    durable::rename(&from, &to)?;
    durable::sync_dir(&layout.failed(), SyncPolicy::Full)?;
    durable::sync_dir(&layout.processing(), SyncPolicy::Full)?;
    Ok(aside)
}
