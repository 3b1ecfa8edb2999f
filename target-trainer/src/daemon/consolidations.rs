//! Consolidations of the daemon: those that somebody asked for, and those of finished jobs with
//! `consolidation.auto`. They run on a thread, one at a time, and not while a job is being trained.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::daemon_config::DaemonConfig;
use super::status::StatusWriter;
use crate::consolidate::{ConsolidateError, ConsolidateRequest, Consolidated, consolidate, read_request};
use crate::durable::{self, SyncPolicy, is_moved_aside};
use crate::file_error::chain;
use crate::names::is_job_id;
use crate::plain_text::shown;
use crate::store::{has_adapter, has_merge_report, sorted_names};

/// Minimum time between two looks at the directories.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A job that waits to be consolidated.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    job: String,
    remove_adapter: bool,
}

/// The consolidations of one daemon.
#[derive(Default)]
pub(super) struct Consolidations {
    running: Option<RunningConsolidation>,
    last_look: Option<Instant>,
    /// Those that can't be done. They are tried again by the next daemon.
    failed: BTreeSet<String>,
    /// Those that wait for the end of a training, as somebody was told.
    announced: BTreeSet<String>,
    has_waiting: bool,
}

struct RunningConsolidation {
    job: String,
    result: Receiver<Result<Consolidated, ConsolidateError>>,
}

impl Consolidations {
    /// Whether one runs. No job must begin to train then.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether one runs, or waits.
    pub(super) fn has_work(&self, config: &DaemonConfig<'_>) -> bool {
        self.running.is_some() || self.first_waiting(config).is_some()
    }

    /// Reports one that is done, and starts the next one. Returns whether one has failed.
    pub(super) fn look(
        &mut self,
        config: &DaemonConfig<'_>,
        status: &mut StatusWriter,
        is_training: bool,
    ) -> bool {
        let mut has_failed = false;
        if let Some(running) = &self.running {
            let result = match running.result.try_recv() {
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => Err(ConsolidateError::ThreadEnded),
                Ok(result) => result,
            };
            let job = running.job.clone();
            self.running = None;
            self.last_look = None;
            has_failed = !self.finish(config, status, &job, result);
        }
        // In a gap between two jobs, one that waits comes first.
        let is_gap = self.has_waiting && !is_training;
        if !is_gap && self.last_look.is_some_and(|look| look.elapsed() < LOOK_INTERVAL) {
            return has_failed;
        }
        self.last_look = Some(Instant::now());
        let waiting = self.first_waiting(config);
        self.has_waiting = waiting.is_some();
        let Some(waiting) = waiting else { return has_failed };
        if is_training && config.settings.guards.serial_merge {
            if self.announced.insert(waiting.job.clone()) {
                let job = shown(&waiting.job);
                (config.print_line)(&format!(
                    "consolidation of job {job} waits until no job is being trained"
                ));
            }
            return has_failed;
        }
        self.start(config, waiting);
        has_failed
    }

    fn first_waiting(&self, config: &DaemonConfig<'_>) -> Option<Waiting> {
        let layout = &config.layout;
        let is_open = |job: &String| is_job_id(job) && !self.failed.contains(job);
        let mut requests = sorted_names(&layout.consolidate_requests()).into_iter().filter(is_open);
        if let Some(job) = requests.next() {
            let remove_adapter = read_request(layout, &job).unwrap_or(false);
            return Some(Waiting { job, remove_adapter });
        }
        let settings = &config.settings.consolidation;
        if !settings.auto {
            return None;
        }
        let is_left = |job: &String| {
            // It gets its name as a whole. What somebody else has put there is no merged model.
            let has_model = has_merge_report(&layout.merged().join(job));
            !has_model || (settings.remove_adapter && has_adapter(&layout.done().join(job)))
        };
        let mut jobs = sorted_names(&layout.done()).into_iter().filter(|job| !is_moved_aside(job));
        let job = jobs.find(|job| is_open(job) && is_left(job))?;
        Some(Waiting { job, remove_adapter: settings.remove_adapter })
    }

    fn start(&mut self, config: &DaemonConfig<'_>, waiting: Waiting) {
        let (layout, settings, job) = (config.layout.clone(), config.settings.clone(), waiting.job.clone());
        let (sender, result) = channel();
        let work = move || {
            let Waiting { job, remove_adapter } = &waiting;
            let request = ConsolidateRequest {
                layout: &layout,
                settings: &settings,
                job,
                remove_adapter: *remove_adapter,
            };
            // The receiver is gone if the daemon exits.
            let _ = sender.send(consolidate(&request));
        };
        // Without a thread, the next look tries again.
        match std::thread::Builder::new().name("consolidation".into()).spawn(work) {
            Ok(_) => self.running = Some(RunningConsolidation { job, result }),
            Err(error) => tracing::warn!("no consolidation can be started, will try again: {error}"),
        }
    }

    /// Reports the end of one. Returns whether it was successful.
    fn finish(
        &mut self,
        config: &DaemonConfig<'_>,
        status: &mut StatusWriter,
        job: &str,
        result: Result<Consolidated, ConsolidateError>,
    ) -> bool {
        let request = config.layout.consolidate_requests().join(job);
        match result {
            Ok(consolidated) => {
                (config.print_line)(&consolidated.to_string());
                let asked = read_request(&config.layout, job).ok();
                if !is_answered(asked, consolidated.adapter_removed) {
                    return true;
                }
                let removed = durable::remove_file(&request).and_then(|()| match request.parent() {
                    Some(dir) if dir.exists() => durable::sync_dir(dir, SyncPolicy::Full),
                    _ => Ok(()),
                });
                if let Err(error) = removed {
                    tracing::warn!("a request could not be removed: {}", chain(&error));
                    self.failed.insert(job.to_owned());
                }
                true
            }
            Err(error) => {
                let reason = chain(&error);
                let message = format!(
                    "consolidation of job {} failed: {reason}; the next daemon tries again",
                    shown(job)
                );
                (config.print_line)(&message);
                status.record_trouble(&message);
                self.failed.insert(job.to_owned());
                false
            }
        }
    }
}

/// Whether what was done is all that a request asks for now: somebody may have asked for more in the meantime. `asked`:
/// whether the adapter is to go; `None` without a request.
fn is_answered(asked: Option<bool>, adapter_removed: bool) -> bool {
    asked != Some(true) || adapter_removed
}

#[cfg(test)]
mod tests {
    use super::is_answered;

    #[test]
    fn a_request_that_asks_for_more_than_was_done_stays() {
        assert!(!is_answered(Some(true), false));
        for (asked, removed) in [(None, false), (Some(false), false), (Some(false), true), (Some(true), true)]
        {
            assert!(is_answered(asked, removed), "{asked:?} {removed}");
        }
    }
}
