//! The monitor: a page for people, metrics for Prometheus and a door for jobs, over HTTP. It is a convenience:
//! two threads of their own do its work, and nothing that happens to them stops or slows the training.
//!
//! `recorder` receives what the daemon reports and keeps the `journal` and the `history`; `server` accepts
//! connections; `routes` answers, after `access` has looked at the request.

mod access;
mod daemon_report;
mod history;
mod in_memory;
mod journal;
mod listen;
mod metrics_text;
mod monitor_view;
mod page;
mod recorder;
mod routes;
mod server;
mod token;
mod upload;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::file_error::chain;
use crate::settings::Settings;
use crate::store::RootLayout;

pub use daemon_report::DaemonReport;
pub use in_memory::InMemoryServer;
pub use listen::ListenError;
use monitor_view::{MonitorView, SharedFigures};
use recorder::Recorder;
use routes::MonitorApp;

/// Reports that wait for the recorder. More are dropped and counted.
const MAX_QUEUED_REPORTS: usize = 4096;
/// How long the end of the daemon waits for the last lines of the journal.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// Whether there is a monitor, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct MonitorState {
    /// `None` if it does not listen.
    pub address: Option<SocketAddr>,
    /// Why it does not listen.
    pub error: Option<String>,
}

/// A running monitor. Dropping it waits a moment for the last lines of its journal.
pub struct Monitor {
    state: MonitorState,
    figures: Arc<SharedFigures>,
    reports: Option<SyncSender<DaemonReport>>,
    recorder_ended: Receiver<()>,
}

impl Monitor {
    /// Starts the monitor of a root. `None` if the settings have none.
    ///
    /// # Errors
    /// If it can't listen at the port that the settings pin.
    pub fn start(layout: &RootLayout, settings: &Settings) -> Result<Option<Monitor>, ListenError> {
        if !settings.monitor.enabled {
            return Ok(None);
        }
        let listener = match listen::listen(&settings.monitor, settings.guards.free_port) {
            Ok(listener) => Ok(listener),
            Err(error) if error.ends_the_daemon() => return Err(error),
            Err(error) => Err(chain(&error)),
        };
        let figures = Arc::new(SharedFigures::default());
        let view = Arc::new(Mutex::new(MonitorView::default()));
        let (reports, queue) = sync_channel(MAX_QUEUED_REPORTS);
        let (ended, recorder_ended) = channel();
        let recorder = Recorder::new(layout, settings, Arc::clone(&view));
        let spawned = std::thread::Builder::new().name("recorder".into()).spawn(move || {
            recorder.run(&queue);
            // Nobody waits if the daemon has ended.
            let _ = ended.send(());
        });
        let started = listener.and_then(|listener| {
            spawned.map_err(|error| format!("no thread can be started: {error}"))?;
            let app = MonitorApp::new(layout, settings, view, Arc::clone(&figures));
            server::start(listener, app).map_err(|error| format!("the server can't be started: {error}"))
        });
        let state = match started {
            Ok(address) => MonitorState { address: Some(address), error: None },
            Err(error) => {
                tracing::warn!("there is no monitor: {error}");
                MonitorState { address: None, error: Some(error) }
            }
        };
        Ok(Some(Monitor { state, figures, reports: Some(reports), recorder_ended }))
    }

    /// Where it listens, or why it does not.
    pub fn state(&self) -> &MonitorState {
        &self.state
    }

    /// Passes a report on. Never waits: if the recorder can't keep up, the report is dropped and counted.
    pub fn report(&self, report: DaemonReport) {
        if self.reports.as_ref().is_some_and(|reports| reports.try_send(report).is_err()) {
            self.figures.dropped_reports.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// To be called again and again: the daemon does its work.
    pub fn daemon_is_alive(&self) {
        self.figures.record_daemon_look();
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reports = None;
        match self.recorder_ended.recv_timeout(CLOSE_PATIENCE) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => tracing::warn!("the last lines of the journal are not written"),
        }
    }
}
