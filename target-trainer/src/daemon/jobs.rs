//! Jobs between the inbox and their end. Each move is one rename, synced; whatever a crash leaves is tidied at the start.

use serde::{Deserialize, Serialize};

use super::DaemonError;
use crate::durable::{self, DurableError, SyncPolicy, TEMPORARY_MARKER};
use crate::store::RootLayout;

/// A job that was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// First half of the BLAKE3 of its data, in hexadecimal.
    pub(super) id: String,
    /// Name that the file had in the inbox.
    pub(super) name: String,
    pub(super) samples: u64,
    /// Jobs are worked on in this order.
    pub(super) order: u64,
}

/// Removes what an earlier daemon left unfinished.
pub(super) fn remove_unfinished(layout: &RootLayout) -> Result<(), DurableError> {
    for folder in [layout.processing(), layout.done(), layout.failed()] {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY_MARKER) {
                durable::remove_tree(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// All jobs in the queue, in their order.
pub(super) fn queued(layout: &RootLayout) -> Result<Vec<Job>, DaemonError> {
    let folder = layout.processing();
    let failed = |error| DaemonError::Read { path: folder.display().to_string(), error };
    let mut jobs = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY_MARKER) {
            continue;
        }
        match std::fs::read(entry.path().join("job.json"))
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice::<Job>(&bytes).map_err(|error| error.to_string()))
        {
            Ok(job) if job.id == name => jobs.push(job),
            Ok(job) => tracing::warn!("queue entry `{name}` calls itself `{}`: left alone", job.id),
            Err(error) => tracing::warn!("queue entry `{name}` can't be read: {error}: left alone"),
        }
    }
    jobs.sort_by_key(|job| job.order);
    Ok(jobs)
}

pub(super) fn next_queued(layout: &RootLayout) -> Result<Option<Job>, DaemonError> {
    Ok(queued(layout)?.into_iter().next())
}

/// Step and adapter of a job whose result is there already.
pub(super) fn finished_result(layout: &RootLayout, job: &Job) -> Option<(u64, String)> {
    let bytes = std::fs::read(layout.done().join(&job.id).join("report.json")).ok()?;
    let report: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
    Some((report.get("step")?.as_u64()?, report.get("adapter")?.as_str()?.to_owned()))
}

/// Whether this data is known: waiting, or done.
pub(super) fn is_known(layout: &RootLayout, id: &str) -> bool {
    layout.processing().join(id).exists() || layout.done().join(id).exists()
}

/// Its result is safe: takes it out of the queue; `whole`: so that no half of it is ever left there.
pub(super) fn remove_from_queue(layout: &RootLayout, job: &Job, whole: bool) -> Result<(), DurableError> {
    let entry = layout.processing().join(&job.id);
    match whole {
        true => durable::remove_atomically(&entry, SyncPolicy::Full)?,
        false => durable::remove_tree(&entry)?,
    }
    durable::sync_dir(&layout.processing(), SyncPolicy::Full)
}

/// Puts it aside with its data and the reason. Its checkpoints stay where they are.
pub(super) fn move_to_failed(layout: &RootLayout, job: &Job, reason: &str) -> Result<(), DurableError> {
    let from = layout.processing().join(&job.id);
    let why = serde_json::json!({ "job": job.id, "file": job.name, "error": reason, "advice": "mend the cause and submit the data again" });
    durable::replace(&from.join("reason.json"), why.to_string().as_bytes(), SyncPolicy::Full)?;
    let to = layout.failed().join(&job.id);
    durable::remove_tree(&to)?;
    durable::rename(&from, &to)?;
    durable::sync_dir(&layout.failed(), SyncPolicy::Full)?;
    durable::sync_dir(&layout.processing(), SyncPolicy::Full)
}
