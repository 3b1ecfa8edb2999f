//! The queue of jobs. A job moves by one synced rename, and the daemon removes unfinished moves when it
//! starts. Knows nothing of workers.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::durable::{self, DurableError, SyncPolicy, TEMPORARY_MARKER};
use crate::file_error::{FileError, file_error};
use crate::store::RootLayout;

/// An accepted job, as `job.json` stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// First half of the BLAKE3 of its data, in hexadecimal.
    pub(super) id: String,
    /// The file's name in the inbox.
    pub(super) name: String,
    pub(super) samples: u64,
    /// The daemon trains jobs in ascending `order`.
    pub(super) order: u64,
}

/// Removes the temporary entries that an earlier daemon left behind.
pub(super) fn remove_unfinished(layout: &RootLayout) -> Result<(), DurableError> {
    for dir in [layout.processing(), layout.done(), layout.failed()] {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY_MARKER) {
                durable::remove_tree(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// All jobs in the queue, sorted by `order`. Entries that can't be read are logged and skipped.
pub(super) fn queued(layout: &RootLayout) -> Result<Vec<Job>, FileError> {
    let dir = layout.processing();
    let mut jobs = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(file_error("read", &dir))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY_MARKER) {
            continue;
        }
        match read_job(&entry.path()) {
            Ok(job) if job.id == name => jobs.push(job),
            Ok(job) => tracing::warn!("queue entry `{name}` has the job id `{}`; it is ignored", job.id),
            Err(error) => tracing::warn!("queue entry `{name}` can't be read and is ignored: {error}"),
        }
    }
    jobs.sort_by_key(|job| job.order);
    Ok(jobs)
}

fn read_job(entry: &Path) -> std::io::Result<Job> {
    // serde_json's error becomes an I/O error with the same text.
    Ok(serde_json::from_slice(&std::fs::read(entry.join("job.json"))?)?)
}

/// The first job in the queue.
pub(super) fn next_queued(layout: &RootLayout) -> Result<Option<Job>, FileError> {
    Ok(queued(layout)?.into_iter().next())
}

/// The result of a finished job, from its `report.json`.
pub(super) struct FinishedJob {
    pub(super) step: u64,
    /// Digest of the adapter.
    pub(super) adapter: String,
}

/// The result of a job that is finished already.
pub(super) fn finished_result(layout: &RootLayout, job: &Job) -> Option<FinishedJob> {
    let bytes = std::fs::read(layout.done().join(&job.id).join("report.json")).ok()?;
    let report: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    let adapter = report.get("adapter")?.as_str()?.to_owned();
    Some(FinishedJob { step: report.get("step")?.as_u64()?, adapter })
}

/// Whether a job with this id is queued or done.
pub(super) fn is_known(layout: &RootLayout, id: &str) -> bool {
    layout.processing().join(id).exists() || layout.done().join(id).exists()
}

/// Removes a finished job from the queue. With `whole`, a crash never leaves a part of it there.
pub(super) fn remove_from_queue(layout: &RootLayout, job: &Job, whole: bool) -> Result<(), DurableError> {
    let entry = layout.processing().join(&job.id);
    if whole {
        durable::remove_atomically(&entry, SyncPolicy::Full)?;
    } else {
        durable::remove_tree(&entry)?;
    }
    durable::sync_dir(&layout.processing(), SyncPolicy::Full)
}

/// Moves the job with its data and the reason to `failed/`. Its checkpoints stay where they are.
pub(super) fn move_to_failed(layout: &RootLayout, job: &Job, reason: &str) -> Result<(), DurableError> {
    let from = layout.processing().join(&job.id);
    let reason_file = serde_json::json!({
        "job": job.id,
        "file": job.name,
        "error": reason,
        "advice": "fix the cause and submit the data again",
    });
    durable::replace(&from.join("reason.json"), reason_file.to_string().as_bytes(), SyncPolicy::Full)?;
    let to = layout.failed().join(&job.id);
    durable::remove_tree(&to)?;
    durable::rename(&from, &to)?;
    durable::sync_dir(&layout.failed(), SyncPolicy::Full)?;
    durable::sync_dir(&layout.processing(), SyncPolicy::Full)
}
