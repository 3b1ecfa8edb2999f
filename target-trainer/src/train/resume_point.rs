//! Finds what a run resumes from: the newest valid checkpoint, or the newest snapshot if the checkpoints are
//! lost, or step 0 if there has been none. Removes and writes nothing but the mark of the first save.

use std::path::PathBuf;

use super::patience::with_patience;
use super::worker_config::WorkerConfig;
use super::worker_error::WorkerError;
use super::worker_event::WorkerEvent;
use crate::durable;
use crate::file_error::chain;
use crate::store::{CheckpointStore, ResumeError, ResumePoint, sync_policy};

/// The file beside a queued job's data that tells that it has been saved once.
const SAVED_MARK: &str = "has-checkpoints";

/// The checkpoints of a job, and their snapshots.
pub(super) struct ResumeSources<'a> {
    pub(super) checkpoints: &'a CheckpointStore,
    pub(super) snapshots: &'a CheckpointStore,
}

/// Reads the newest valid checkpoint, or snapshot.
///
/// # Errors
/// If there have been checkpoints, and nothing is left to resume from; or as for [`CheckpointStore::resume`].
pub(super) fn resume_point(
    config: &WorkerConfig<'_>,
    sources: &ResumeSources<'_>,
) -> Result<ResumePoint, WorkerError> {
    match with_patience(config, ResumeError::may_pass, || sources.checkpoints.resume()) {
        Ok(point) if point.state.is_some() => Ok(point),
        Ok(point) => {
            let is_new = !saved_mark(config).exists() || !config.settings.guards.lost_checkpoints;
            // Without the mark, there may be snapshots of an earlier version, or of a queue that was lost.
            match snapshot(config, sources, "there is no checkpoint")? {
                Some(point) => Ok(point),
                None if is_new => Ok(point),
                None => Err(WorkerError::CheckpointsLost { dir: config.layout.job_checkpoints(config.job) }),
            }
        }
        Err(ResumeError::NoneValid(count)) => {
            let reason = format!("none of the {count} checkpoints is valid");
            snapshot(config, sources, &reason)?.ok_or_else(|| ResumeError::NoneValid(count).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The newest valid snapshot, if there is one.
fn snapshot(
    config: &WorkerConfig<'_>,
    sources: &ResumeSources<'_>,
    reason: &str,
) -> Result<Option<ResumePoint>, WorkerError> {
    if !config.settings.guards.snapshots {
        return Ok(None);
    }
    let point = match with_patience(config, ResumeError::may_pass, || sources.snapshots.resume()) {
        Err(ResumeError::NoneValid(_)) => return Ok(None),
        point => point?,
    };
    let Some(state) = &point.state else { return Ok(None) };
    let (step, reason) = (state.cursor.step, reason.to_owned());
    (config.emit)(WorkerEvent::SnapshotUsed { step, reason });
    Ok(Some(point))
}

fn saved_mark(config: &WorkerConfig<'_>) -> PathBuf {
    config.layout.processing().join(config.job).join(SAVED_MARK)
}

/// Marks a job that has its first checkpoint, before that is announced: from now on, no checkpoint means that
/// they are lost. Returns whether the mark is there.
pub(super) fn mark_saved(config: &WorkerConfig<'_>, step: u64) -> bool {
    let path = saved_mark(config);
    if path.exists() {
        return true;
    }
    let text =
        format!("The job has been saved, first at step {step}. Without this file it may begin anew.\n");
    let written = durable::replace(&path, text.as_bytes(), sync_policy(&config.settings.guards));
    if let Err(error) = &written {
        tracing::warn!("that the job has been saved could not be recorded yet: {}", chain(error));
    }
    written.is_ok()
}
