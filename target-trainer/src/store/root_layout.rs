//! The paths below a root. All of them are relative to the root, so that it can be moved,
//! unless the settings name other places for checkpoints, logs or snapshots. Reads and writes
//! nothing.

use std::path::{Path, PathBuf};

use crate::settings::Settings;

/// The directories and files of a root.
#[derive(Debug, Clone)]
pub struct RootLayout {
    root: PathBuf,
    /// Where the checkpoints are, if they are not below the root.
    checkpoints: Option<PathBuf>,
    /// Where the log files are, if they are not below the root.
    logs: Option<PathBuf>,
    /// Where the snapshots are, if they are not below the root.
    snapshots: Option<PathBuf>,
}

impl RootLayout {
    /// The layout of the root at this path, which need not exist.
    pub fn new(root: &Path) -> RootLayout {
        RootLayout { root: root.into(), checkpoints: None, logs: None, snapshots: None }
    }

    /// The layout with the directories that the settings name. A relative path begins at the root. Links that
    /// are there now are resolved; one that appears later is not followed.
    pub fn with_settings(self, settings: &Settings) -> RootLayout {
        let place = |dir: &str| {
            let path = self.root.join(dir);
            (!dir.is_empty()).then(|| path.canonicalize().unwrap_or(path))
        };
        let checkpoints = place(&settings.train.checkpoint_dir);
        let logs = place(&settings.maintenance.log_dir);
        let snapshots = place(&settings.maintenance.snapshot_dir);
        RootLayout { checkpoints, logs, snapshots, ..self }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The settings file.
    pub fn settings(&self) -> PathBuf {
        self.root.join("settings.toml")
    }

    /// The frozen base model: a directory in Hugging Face's Llama format.
    pub fn base(&self) -> PathBuf {
        self.root.join("base")
    }

    /// Submitted data files.
    pub fn inbox(&self) -> PathBuf {
        self.root.join("inbox")
    }

    /// Queued jobs, and the job that is being trained.
    pub fn processing(&self) -> PathBuf {
        self.root.join("queue/processing")
    }

    /// Results of finished jobs.
    pub fn done(&self) -> PathBuf {
        self.root.join("done")
    }

    /// Failed jobs and rejected files, with the reasons.
    pub fn failed(&self) -> PathBuf {
        self.root.join("failed")
    }

    /// The checkpoints of all jobs.
    pub fn checkpoints(&self) -> PathBuf {
        self.checkpoints.clone().unwrap_or_else(|| self.root.join("checkpoints"))
    }

    /// Merged models, one directory for each job.
    pub fn merged(&self) -> PathBuf {
        self.root.join("merged")
    }

    /// Jobs that somebody asks the daemon to consolidate, one file for each.
    pub fn consolidate_requests(&self) -> PathBuf {
        self.root.join("queue/consolidate")
    }

    /// Copies of checkpoints of all jobs.
    pub fn snapshots(&self) -> PathBuf {
        self.snapshots.clone().unwrap_or_else(|| self.root.join("snapshots"))
    }

    /// Copies of the checkpoints of one job.
    pub fn job_snapshots(&self, job: &str) -> PathBuf {
        self.snapshots().join(job)
    }

    /// Log files.
    pub fn logs(&self) -> PathBuf {
        self.logs.clone().unwrap_or_else(|| self.root.join("logs"))
    }

    /// The days whose maintenance is done.
    pub fn maintenance_record(&self) -> PathBuf {
        self.root.join("maintenance.json")
    }

    /// The events that the monitor has counted.
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal.jsonl")
    }

    /// The histories of jobs, for the monitor.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics")
    }

    /// The token that the monitor asks for.
    pub fn monitor_token(&self) -> PathBuf {
        self.root.join("monitor-token")
    }

    /// The status file.
    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    /// The file that the daemon locks.
    pub fn lock(&self) -> PathBuf {
        self.root.join("daemon.lock")
    }

    /// The file that the daemon locks as well if the checkpoints are elsewhere: other roots may use the same place.
    pub fn checkpoint_lock(&self) -> Option<PathBuf> {
        self.checkpoints.as_ref().map(|dir| dir.join("daemon.lock"))
    }

    /// The data of a queued job.
    pub fn job_data(&self, job: &str) -> PathBuf {
        self.processing().join(job).join("data.jsonl")
    }

    /// The checkpoints of one job.
    pub fn job_checkpoints(&self, job: &str) -> PathBuf {
        self.checkpoints().join(job)
    }

    /// The directories below the root that are written to.
    pub fn written_dirs(&self) -> [PathBuf; 8] {
        let queue = self.root.join("queue");
        [
            self.inbox(),
            queue,
            self.processing(),
            self.done(),
            self.failed(),
            self.checkpoints(),
            self.logs(),
            self.snapshots(),
        ]
    }

    /// All directories of a root, the root first.
    pub fn dirs(&self) -> [PathBuf; 9] {
        [
            self.root.clone(),
            self.base(),
            self.inbox(),
            self.processing(),
            self.done(),
            self.failed(),
            self.checkpoints(),
            self.logs(),
            self.snapshots(),
        ]
    }
}
