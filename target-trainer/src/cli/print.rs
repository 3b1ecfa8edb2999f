//! Prints to standard output and standard error, and writes the log file. Nothing else in the crate prints.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use tracing_subscriber::fmt::MakeWriter;

use crate::durable::{self, AppendFile};
use crate::locks::LockExt;
use crate::store::RootLayout;
use crate::train::WorkerEvent;

/// Size at which `daemon.log` is renamed to `daemon.log.1`.
const MAX_LOG_BYTES: u64 = 8 << 20;

/// Prints a line. Training continues if the reader has closed the pipe.
pub(super) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Prints an event for the daemon. Aborts if the daemon has closed the pipe: a worker must not outlive its
/// daemon.
pub(super) fn worker_event(event: &WorkerEvent) {
    let text = serde_json::to_string(event).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::abort();
    }
}

/// Prints an error on standard error.
pub(super) fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "target-trainer: {text}");
}

/// Sends log lines to standard error and, with a `layout`, to the root's log file.
pub(super) fn start_logging(layout: Option<&RootLayout>) {
    let file =
        |layout: &RootLayout| LogFile { path: layout.logs().join("daemon.log"), open: Mutex::new(None) };
    let sink = LogSink { file: layout.map(file) };
    let subscriber = tracing_subscriber::fmt().with_writer(sink).with_ansi(false).with_target(false);
    // Fails only if a subscriber is set already; that one stays.
    let _ = subscriber.try_init();
}

/// Where log lines go: always standard error, and a file if there is one.
struct LogSink {
    file: Option<LogFile>,
}

/// The log file of a root.
struct LogFile {
    path: PathBuf,
    /// Opened at the first line.
    open: Mutex<Option<AppendFile>>,
}

/// Writes one log line to its sink.
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
    /// Ignores write errors: a full disk must not stop training because of its log.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().lock().write_all(bytes);
        if let Some(LogFile { path, open }) = &self.sink.file {
            let mut file = open.locked();
            if file.as_ref().is_some_and(|file| file.len() > MAX_LOG_BYTES) {
                *file = None;
                let _ = durable::rename(path, &path.with_extension("log.1"));
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
