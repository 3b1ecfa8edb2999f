//! Where things lie below a root. Everything is relative to it, so that a root can be moved.

use std::path::{Path, PathBuf};

/// The folders and files of a root.
#[derive(Debug, Clone)]
pub struct RootLayout {
    root: PathBuf,
}

impl RootLayout {
    pub fn new(root: &Path) -> RootLayout {
        RootLayout { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn settings(&self) -> PathBuf {
        self.root.join("settings.toml")
    }

    /// The frozen model: a Hugging Face Llama folder.
    pub fn base(&self) -> PathBuf {
        self.root.join("base")
    }

    pub fn inbox(&self) -> PathBuf {
        self.root.join("inbox")
    }

    /// Jobs that are being worked on or wait their turn.
    pub fn processing(&self) -> PathBuf {
        self.root.join("queue/processing")
    }

    pub fn done(&self) -> PathBuf {
        self.root.join("done")
    }

    pub fn failed(&self) -> PathBuf {
        self.root.join("failed")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn status(&self) -> PathBuf {
        self.root.join("status.json")
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("daemon.lock")
    }

    /// The data that a job was taken in with.
    pub fn job_data(&self, job: &str) -> PathBuf {
        self.processing().join(job).join("data.jsonl")
    }

    pub fn job_checkpoints(&self, job: &str) -> PathBuf {
        self.checkpoints().join(job)
    }

    /// All folders that a root has.
    pub fn dirs(&self) -> [PathBuf; 8] {
        [
            self.root.clone(),
            self.base(),
            self.inbox(),
            self.processing(),
            self.done(),
            self.failed(),
            self.checkpoints(),
            self.logs(),
        ]
    }
}
