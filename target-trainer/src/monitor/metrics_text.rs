//! The metrics as Prometheus reads them: the text format, version 0.0.4. Counts nothing itself.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use super::monitor_view::{MonitorView, SharedFigures};

/// The kind of a metric.
#[derive(Clone, Copy)]
enum MetricKind {
    Counter,
    Gauge,
}

/// Adds metrics to a text.
struct MetricsWriter(String);

impl MetricsWriter {
    fn add(&mut self, kind: MetricKind, name: &str, help: &str, value: f64) {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        // Writing to a text never fails.
        let _ = writeln!(
            self.0,
            "# HELP trainer_{name} {help}\n# TYPE trainer_{name} {kind}\ntrainer_{name} {value}"
        );
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.add(MetricKind::Counter, name, help, value as f64);
    }

    /// A gauge is left out while it has no value.
    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.add(MetricKind::Gauge, name, help, value);
        }
    }
}

/// All metrics.
pub(super) fn metrics_text(view: &MonitorView, figures: &SharedFigures) -> String {
    let mut text = MetricsWriter(String::new());
    let counts = &view.counts;
    text.counter("steps_total", "Steps that were done.", counts.steps);
    text.counter("saves_total", "Checkpoints that became durable.", counts.saves);
    text.counter("failed_saves_total", "Saves that failed or were put off.", counts.failed_saves);
    text.counter("skipped_steps_total", "Steps that were not finite.", counts.skipped_steps);
    text.counter("rollbacks_total", "Returns to a checkpoint.", counts.rollbacks);
    text.counter("resumes_total", "Starts of a worker, from a checkpoint or from step 0.", counts.resumes);
    text.counter("worker_restarts_total", "Workers that were replaced.", counts.worker_restarts);
    text.counter("finished_jobs_total", "Jobs that were finished.", counts.finished_jobs);
    text.counter("failed_jobs_total", "Jobs that have failed.", counts.failed_jobs);
    let is_training = view.job.is_some();
    let flag = |is_set: bool| Some(f64::from(u8::from(is_set)));
    text.gauge("training", "Whether a job is being trained.", flag(is_training));
    let in_job = |value: u64| is_training.then_some(value as f64);
    text.gauge("job_step", "Last step of the job.", in_job(view.step));
    text.gauge("job_steps", "Steps of the job.", in_job(view.steps));
    let saved = view.last_saved.map(|saved| saved.step);
    text.gauge("job_saved_step", "Last durable step of the job.", saved.and_then(in_job));
    let last = view.last_point().filter(|_| is_training);
    text.gauge("loss", "Loss of the last step.", last.and_then(|point| point.loss));
    text.gauge("gradient_norm", "Norm of its gradient.", last.and_then(|point| point.gradient_norm));
    text.gauge("learning_rate", "Its learning rate.", last.and_then(|point| point.learning_rate));
    text.gauge("tokens_per_second", "Tokens learned in a second.", last.and_then(|point| point.tokens_per_s));
    let temperature = view.gpu.as_ref().and_then(|gpu| gpu.temperature_c).map(f64::from);
    text.gauge("gpu_temperature_celsius", "Temperature of the GPU.", temperature);
    text.gauge("healthy", "Whether the daemon does its work.", flag(figures.daemon_hangs_for().is_none()));
    text.gauge(
        "journal_complete",
        "Whether journal.jsonl has all that is counted.",
        flag(view.journal_is_complete),
    );
    let count = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Relaxed);
    text.counter(
        "dropped_reports_total",
        "Events that the monitor had no room for.",
        count(&figures.dropped_reports),
    );
    text.counter("connections_total", "Connections that were accepted.", count(&figures.connections));
    text.counter(
        "closed_connections_total",
        "Connections that were closed to make room.",
        count(&figures.closed_connections),
    );
    text.0
}
