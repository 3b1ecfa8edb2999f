//! `status.json`: where the daemon stands, replaced as a whole, for people and monitors. Training goes on without it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::device::GpuReading;
use crate::durable::{self, SyncPolicy};
use crate::settings::Guards;
use crate::store::RootLayout;
use crate::train::WorkerEvent;

/// Between two writes of mere steps.
const STEP_WRITE_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Default, Serialize)]
struct StatusFile {
    pid: u32,
    state: &'static str,
    job: Option<String>,
    step: u64,
    loss: Option<String>,
    last_saved: Option<u64>,
    micro_batch: usize,
    last_trouble: Option<String>,
    device: Option<String>,
    gpu: Option<GpuReading>,
}

pub(super) struct StatusWriter {
    path: PathBuf,
    content: StatusFile,
    last_write: Option<Instant>,
    is_failing: bool,
    /// A reader sees the old one or the new one, never a part.
    atomic: bool,
}

impl StatusWriter {
    pub(super) fn new(layout: &RootLayout, guards: &Guards) -> StatusWriter {
        let facts = StatusFile { pid: std::process::id(), state: "idle", ..StatusFile::default() };
        let mut status = StatusWriter {
            path: layout.status(),
            content: facts,
            last_write: None,
            is_failing: false,
            atomic: guards.atomic_status,
        };
        status.write();
        status
    }

    pub(super) fn set_idle(&mut self) {
        (self.content.state, self.content.job) = ("idle", None);
        self.write();
    }

    pub(super) fn record_event(&mut self, job: &str, word: &WorkerEvent, micro_batch: usize) {
        (self.content.state, self.content.micro_batch) = ("training", micro_batch);
        self.content.job = Some(job.to_owned());
        match word {
            WorkerEvent::Step { step, loss } => {
                (self.content.step, self.content.loss) = (*step, Some(loss.clone()))
            }
            WorkerEvent::Saved { step } => self.content.last_saved = Some(*step),
            WorkerEvent::SaveDeferred { reason: why, .. } | WorkerEvent::SaveFailed { reason: why, .. } => {
                self.content.last_trouble = Some(why.clone())
            }
            WorkerEvent::StepSkipped { reason: what, .. } | WorkerEvent::RolledBack { reason: what, .. } => {
                self.content.last_trouble = Some(what.clone())
            }
            WorkerEvent::Device { device } => self.content.device = Some(device.clone()),
            _ => {}
        }
        let only_a_step = matches!(word, WorkerEvent::Step { .. } | WorkerEvent::Saving { .. });
        if !only_a_step || self.last_write.is_none_or(|at| at.elapsed() > STEP_WRITE_INTERVAL) {
            self.write();
        }
    }

    /// Told by the GPU, not by a worker.
    pub(super) fn record_trouble(&mut self, what: &str) {
        self.content.last_trouble = Some(what.to_owned());
        self.write();
    }

    /// Written with the next word: it changes with every look.
    pub(super) fn set_gpu(&mut self, facts: Option<GpuReading>) {
        self.content.gpu = facts;
    }

    fn write(&mut self) {
        self.last_write = Some(Instant::now());
        let text = serde_json::to_vec_pretty(&self.content).unwrap_or_default();
        let write = if self.atomic { durable::replace } else { durable::write_in_place };
        let written = write(&self.path, &text, SyncPolicy::NoSync);
        match (&written, self.is_failing) {
            (Err(error), false) => tracing::warn!("status.json is out of date from now on: {error}"),
            (Ok(()), true) => tracing::info!("status.json is up to date again"),
            _ => {}
        }
        self.is_failing = written.is_err();
    }
}
