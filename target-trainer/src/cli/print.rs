//! The only place that prints, and where log lines go.

use std::io::Write;
use std::sync::Mutex;

use tracing_subscriber::fmt::MakeWriter;

use crate::durable::AppendFile;
use crate::store::RootLayout;
use crate::train::WorkerEvent;

/// A log file is put aside at this size; the one before it is kept.
const MAX_LOG_BYTES: u64 = 8 << 20;

/// One line for whoever listens. A listener that is gone is no reason to stop training.
pub(super) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// One word for the daemon. Without a daemon there is nobody to work for.
pub(super) fn worker_event(word: &WorkerEvent) {
    let text = serde_json::to_string(word).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::abort();
    }
}

pub(super) fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "target-trainer: {text}");
}

/// Log lines go to standard error, and to a file of the root where one is given.
pub(super) fn start_logging(layout: Option<&RootLayout>) {
    let file = layout.map(|layout| layout.logs().join("daemon.log"));
    let logs = LogSink { file: file.map(|path| (Mutex::new(None), path)) };
    let subscriber = tracing_subscriber::fmt().with_writer(logs).with_ansi(false).with_target(false);
    // A second start in one process keeps the first.
    let _ = subscriber.try_init();
}

struct LogSink {
    file: Option<(Mutex<Option<AppendFile>>, std::path::PathBuf)>,
}

struct LogWriter<'a> {
    sink: &'a LogSink,
}

impl<'a> MakeWriter<'a> for LogSink {
    type Writer = LogWriter<'a>;

    fn make_writer(&'a self) -> LogWriter<'a> {
        LogWriter { sink: self }
    }
}

impl Write for LogWriter<'_> {
    /// A log that can't be written is not worth a stop.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().lock().write_all(bytes);
        if let Some((file, path)) = &self.sink.file {
            let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if file.as_ref().is_some_and(|file| file.len() > MAX_LOG_BYTES) {
                *file = None;
                let _ = crate::durable::rename(path, &path.with_extension("log.1"));
            }
            if file.is_none() {
                *file = AppendFile::open_to_append(path).ok();
            }
            if let Some(file) = file.as_mut() {
                let _ = file.write_all(bytes);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
