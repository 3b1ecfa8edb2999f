//! Writes `status.json`, which shows people and monitors what the daemon does. Training does not depend on
//! it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::device::GpuReading;
use crate::durable::{self, DurableError, SyncPolicy};
use crate::exit::Exit;
use crate::file_error::chain;
use crate::monitor::{DaemonReport, Monitor, MonitorState};
use crate::settings::Guards;
use crate::store::RootLayout;
use crate::train::WorkerEvent;

/// Minimum time between two writes that only report steps.
const STEP_WRITE_INTERVAL: Duration = Duration::from_millis(200);

/// The content of `status.json`.
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
    maintenance: Option<MaintenanceStatus>,
    /// `None` without a monitor.
    monitor: Option<MonitorState>,
    /// How the daemon ended. `None` while it runs, and if it was killed.
    ended: Option<DaemonEnd>,
}

/// The last maintenance of this daemon.
#[derive(Debug, Clone, Serialize)]
struct MaintenanceStatus {
    /// `None` if it was one in between.
    day: Option<String>,
    /// What is damaged. Nothing of it was deleted.
    damage: Vec<String>,
}

/// How a daemon ended.
#[derive(Debug, Clone, Serialize)]
struct DaemonEnd {
    exit_code: u8,
    /// `None` if it ended without an error.
    error: Option<String>,
}

/// Keeps `status.json` up to date, and the monitor, if there is one.
pub(super) struct StatusWriter {
    monitor: Option<Monitor>,
    path: PathBuf,
    content: StatusFile,
    last_write: Option<Instant>,
    is_failing: bool,
    /// Replaces the file as a whole, so that no reader sees a part of it.
    atomic: bool,
    /// Training goes on without the file.
    optional: bool,
    /// Why it could not be written, if it is not optional.
    failure: Option<DurableError>,
}

impl StatusWriter {
    /// Writes the first `status.json`.
    pub(super) fn new(layout: &RootLayout, guards: &Guards, monitor: Option<Monitor>) -> StatusWriter {
        let content = StatusFile {
            pid: std::process::id(),
            state: "idle",
            monitor: monitor.as_ref().map(|monitor| monitor.state().clone()),
            ..StatusFile::default()
        };
        let mut status = StatusWriter {
            monitor,
            path: layout.status(),
            content,
            last_write: None,
            is_failing: false,
            atomic: guards.atomic_status,
            optional: guards.optional_status,
            failure: None,
        };
        status.write();
        status
    }

    /// Passes a report on to the monitor, if there is one.
    pub(super) fn report(&self, report: impl FnOnce() -> DaemonReport) {
        if let Some(monitor) = &self.monitor {
            monitor.report(report());
        }
    }

    /// Reports that no job is being trained.
    pub(super) fn set_idle(&mut self) {
        self.report(|| DaemonReport::Idle);
        (self.content.state, self.content.job) = ("idle", None);
        self.write();
    }

    /// Reports that the daemon exits, and why.
    pub(super) fn set_ended(&mut self, exit: Exit, error: Option<String>) {
        self.content.state = if error.is_some() { "failed" } else { "stopped" };
        self.content.ended = Some(DaemonEnd { exit_code: exit.code(), error });
        self.write();
    }

    /// Reports an event of the worker.
    pub(super) fn record_event(&mut self, job: &str, event: &WorkerEvent, micro_batch: usize) {
        (self.content.state, self.content.micro_batch) = ("training", micro_batch);
        self.content.job = Some(job.to_owned());
        self.report(|| DaemonReport::Worker { job: job.to_owned(), event: event.clone() });
        match event {
            WorkerEvent::Step { step, loss, .. } => {
                (self.content.step, self.content.loss) = (*step, Some(loss.clone()))
            }
            WorkerEvent::Saved { step } => self.content.last_saved = Some(*step),
            WorkerEvent::SaveDeferred { reason, .. }
            | WorkerEvent::SaveFailed { reason, .. }
            | WorkerEvent::Waiting { reason } => self.content.last_trouble = Some(reason.clone()),
            WorkerEvent::StepSkipped { reason, .. } | WorkerEvent::RolledBack { reason, .. } => {
                self.content.last_trouble = Some(reason.clone())
            }
            WorkerEvent::Device { device } => self.content.device = Some(device.clone()),
            _ => {}
        }
        let is_step_only = matches!(event, WorkerEvent::Step { .. } | WorkerEvent::Saving { .. });
        if !is_step_only || self.last_write.is_none_or(|written| written.elapsed() > STEP_WRITE_INTERVAL) {
            self.write();
        }
    }

    /// Reports a problem of the GPU, which no worker event reports.
    pub(super) fn record_trouble(&mut self, trouble: &str) {
        self.report(|| DaemonReport::Trouble { reason: trouble.to_owned() });
        self.content.last_trouble = Some(trouble.to_owned());
        self.write();
    }

    /// Reports a maintenance.
    pub(super) fn set_maintenance(&mut self, day: Option<String>, damage: Vec<String>) {
        self.content.maintenance = Some(MaintenanceStatus { day, damage });
        self.write();
    }

    /// Stores the GPU's latest readings. They are written with the next event, because they change all the
    /// time.
    pub(super) fn set_gpu(&mut self, reading: Option<GpuReading>) {
        self.report(|| DaemonReport::Gpu(reading.clone()));
        self.content.gpu = reading;
    }

    /// Whether training goes on. To be called in each round of the daemon.
    ///
    /// # Errors
    /// The guard `optional_status` is off, and the file could not be written.
    pub(super) fn check(&mut self) -> Result<(), DurableError> {
        self.monitor.iter().for_each(Monitor::daemon_is_alive);
        self.failure.take().map_or(Ok(()), Err)
    }

    fn write(&mut self) {
        self.last_write = Some(Instant::now());
        let text = serde_json::to_vec_pretty(&self.content).unwrap_or_default();
        let write = if self.atomic { durable::replace } else { durable::write_in_place };
        let written = write(&self.path, &text, SyncPolicy::NoSync);
        match (&written, self.is_failing) {
            (Err(error), false) => tracing::warn!("status.json is out of date from now on: {}", chain(error)),
            (Ok(()), true) => tracing::info!("status.json is up to date again"),
            _ => {}
        }
        self.is_failing = written.is_err();
        if !self.optional {
            self.failure = written.err();
        }
    }
}
