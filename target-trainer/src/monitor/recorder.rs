//! Turns what the daemon reports into the journal, the history and the view. Runs on a thread of its own, so
//! that a slow disk slows only the monitor.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use super::daemon_report::DaemonReport;
use super::history::{StepHistory, StepPoint};
use super::journal::{EventKind, Journal, JournalEntry};
use super::monitor_view::{MonitorView, SavedStep};
use crate::durable::DurableError;
use crate::file_error::chain;
use crate::locks::LockExt;
use crate::settings::Settings;
use crate::store::RootLayout;
use crate::train::{StepMeasures, WorkerEvent};

/// Keeps the journal, the history and the view.
pub(super) struct Recorder {
    journal_path: PathBuf,
    metrics_dir: PathBuf,
    history_bytes: u64,
    counts_from_journal: bool,
    view: Arc<Mutex<MonitorView>>,
    history: Option<StepHistory>,
    journal_trouble: WriteTrouble,
    history_trouble: WriteTrouble,
}

/// Whether a file of the monitor could be written last time.
#[derive(Default)]
struct WriteTrouble {
    is_failing: bool,
}

impl WriteTrouble {
    /// Says in the log that the file can't be written, once until that has passed.
    fn record(&mut self, written: Result<(), DurableError>) {
        match (&written, self.is_failing) {
            (Err(error), false) => {
                tracing::warn!("the monitor can't write, training goes on: {}", chain(error));
            }
            (Ok(()), true) => tracing::info!("the monitor can write again"),
            _ => {}
        }
        self.is_failing = written.is_err();
    }
}

impl Recorder {
    pub(super) fn new(layout: &RootLayout, settings: &Settings, view: Arc<Mutex<MonitorView>>) -> Recorder {
        Recorder {
            journal_path: layout.journal(),
            metrics_dir: layout.metrics(),
            history_bytes: settings.monitor.history_bytes,
            counts_from_journal: settings.guards.journal_counts,
            view,
            history: None,
            journal_trouble: WriteTrouble::default(),
            history_trouble: WriteTrouble::default(),
        }
    }

    /// Handles reports until the daemon ends.
    pub(super) fn run(mut self, reports: &Receiver<DaemonReport>) {
        let mut journal = Journal::open(self.journal_path.clone(), self.counts_from_journal);
        self.show_counts(&journal);
        for report in reports {
            self.handle(&mut journal, report);
        }
    }

    fn handle(&mut self, journal: &mut Journal, report: DaemonReport) {
        match report {
            DaemonReport::JobBegun { job, steps } => self.begin_job(job, steps),
            DaemonReport::Worker { job, event } => self.handle_event(journal, &job, event),
            DaemonReport::Restart { job, reason } => {
                let entry = entry(EventKind::WorkerRestarted, &job, None).with_text(&reason);
                self.view.locked().trouble = Some(reason);
                self.add_entry(journal, entry);
            }
            DaemonReport::JobFailed { job, reason } => {
                let entry = entry(EventKind::JobFailed, &job, None).with_text(&reason);
                self.view.locked().trouble = Some(reason);
                self.add_entry(journal, entry);
            }
            DaemonReport::Trouble { reason } => self.view.locked().trouble = Some(reason),
            DaemonReport::Idle => {
                let mut view = self.view.locked();
                (view.job, view.steps) = (None, 0);
                view.timed_steps.clear();
            }
            DaemonReport::Gpu(reading) => self.view.locked().gpu = reading,
        }
    }

    fn begin_job(&mut self, job: String, steps: u64) {
        let (history, curve) = StepHistory::open(&self.metrics_dir, &job, self.history_bytes);
        self.history = Some(history);
        let mut view = self.view.locked();
        let step = curve.points().last().map_or(0, |point| point.step);
        (view.step, view.steps, view.last_saved) = (step, steps, None);
        (view.job, view.curve) = (Some(job), curve);
        view.timed_steps.clear();
    }

    fn handle_event(&mut self, journal: &mut Journal, job: &str, event: WorkerEvent) {
        let text = |kind, step, reason: &str| Some(entry(kind, job, step).with_text(reason));
        let recorded = match &event {
            WorkerEvent::Step { step, .. } => Some(entry(EventKind::Step, job, Some(*step))),
            WorkerEvent::Saved { step } => Some(entry(EventKind::Saved, job, Some(*step))),
            WorkerEvent::Resumed { step } => Some(entry(EventKind::Resumed, job, Some(*step))),
            WorkerEvent::Finished { step, .. } => Some(entry(EventKind::JobFinished, job, Some(*step))),
            WorkerEvent::SaveDeferred { step, reason } | WorkerEvent::SaveFailed { step, reason } => {
                text(EventKind::SaveFailed, Some(*step), reason)
            }
            WorkerEvent::StepSkipped { step, reason } => text(EventKind::StepSkipped, Some(*step), reason),
            WorkerEvent::RolledBack { to, reason } => text(EventKind::RolledBack, Some(*to), reason),
            _ => None,
        };
        if let Some(entry) = recorded {
            self.add_entry(journal, entry);
        }
        match event {
            WorkerEvent::Step { step, loss, measured } => self.add_step(step, &loss, &measured),
            WorkerEvent::StepSkipped { step, .. } => self.view.locked().step = step,
            WorkerEvent::Saved { step } => {
                self.view.locked().last_saved = Some(SavedStep { step, at: SystemTime::now() });
            }
            WorkerEvent::Resumed { step } | WorkerEvent::RolledBack { to: step, .. } => {
                let mut view = self.view.locked();
                view.step = step;
                view.curve.return_to(step);
                view.timed_steps.clear();
            }
            WorkerEvent::SaveDeferred { reason, .. }
            | WorkerEvent::SaveFailed { reason, .. }
            | WorkerEvent::Waiting { reason } => self.view.locked().trouble = Some(reason),
            WorkerEvent::Device { device } => self.view.locked().device = Some(device),
            _ => {}
        }
    }

    fn add_step(&mut self, step: u64, loss: &str, measured: &StepMeasures) {
        let number = |text: &str| text.parse().ok().filter(|value: &f64| value.is_finite());
        let seconds = measured.microseconds as f64 / 1e6;
        let point = StepPoint {
            step,
            loss: number(loss),
            gradient_norm: number(&measured.gradient_norm),
            learning_rate: number(&measured.learning_rate),
            tokens_per_s: Some(measured.tokens as f64 / seconds).filter(|rate| rate.is_finite()),
        };
        if let Some(history) = &mut self.history {
            self.history_trouble.record(history.add(&point));
        }
        let mut view = self.view.locked();
        view.step = step;
        view.add_timed_step(step);
        view.curve.add(point);
    }

    /// Adds an entry to the journal, then shows it: what is shown is in the journal.
    fn add_entry(&mut self, journal: &mut Journal, entry: JournalEntry) {
        self.journal_trouble.record(journal.add(&entry));
        self.show_counts(journal);
        // They would push everything else out, and are shown elsewhere.
        if !matches!(entry.event, EventKind::Step | EventKind::Saved) {
            self.view.locked().add_recent(entry);
        }
    }

    fn show_counts(&self, journal: &Journal) {
        let mut view = self.view.locked();
        (view.counts, view.journal_is_complete) = (journal.counts(), journal.is_complete());
    }
}

fn entry(event: EventKind, job: &str, step: Option<u64>) -> JournalEntry {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    JournalEntry { at: now.as_secs(), event, job: job.to_owned(), step, text: None }
}
