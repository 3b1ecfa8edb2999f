//! Prints to standard output and standard error, and writes the log file. Nothing else in the crate prints.
//! Every line passes through `one_line`: a text from outside never starts a line of its own.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::output_queue::OutputQueue;
use crate::durable::{self, AppendFile};
use crate::locks::LockExt;
use crate::plain_text::{is_one_plain_line, one_line};
use crate::store::RootLayout;
use crate::train::WorkerEvent;

/// Size at which `daemon.log` is renamed to `daemon.log.1`.
const MAX_LOG_BYTES: u64 = 8 << 20;

/// How long the process waits at its end for a reader of its output.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// The queues in front of standard output and standard error, once [`start_queues`] has started them.
static QUEUES: OnceLock<OutputQueues> = OnceLock::new();

struct OutputQueues {
    stdout: OutputQueue,
    stderr: OutputQueue,
}

/// From now on nobody waits for the readers of standard output and standard error. For processes that must
/// not stop because of them: the daemon and its workers.
pub(super) fn start_queues() {
    let queues = OutputQueue::start(std::io::stdout())
        .and_then(|stdout| Ok(OutputQueues { stdout, stderr: OutputQueue::start(std::io::stderr())? }));
    if let Ok(queues) = queues {
        // Fails only if they are started already.
        let _ = QUEUES.set(queues);
    }
}

/// Waits a short time until everything is written.
pub(super) fn flush() {
    if let Some(queues) = QUEUES.get() {
        queues.stdout.flush(FLUSH_PATIENCE);
        queues.stderr.flush(FLUSH_PATIENCE);
    }
}

/// Prints a line. Training continues if the reader has closed the pipe, or does not read.
pub(super) fn line(text: &str) {
    let line = format!("{}\n", one_line(text));
    if let Some(queues) = QUEUES.get() {
        return queues.stdout.push(line.as_bytes());
    }
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Prints a text of several lines.
pub(super) fn lines(text: &str) {
    text.lines().for_each(line);
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

/// Prints the error of the command line, which quotes arguments. It has several lines, unless an argument
/// would add some.
pub(super) fn usage_error(text: &str) {
    let is_plain = |argument: std::ffi::OsString| is_one_plain_line(&argument.to_string_lossy());
    if std::env::args_os().all(is_plain) {
        text.trim_end().lines().for_each(|line| to_stderr(format!("{}\n", one_line(line)).as_bytes()));
    } else {
        error(text.trim_end());
    }
}

/// Prints an error on standard error.
pub(super) fn error(text: &str) {
    to_stderr(format!("target-trainer: {}\n", one_line(text)).as_bytes());
}

fn to_stderr(line: &[u8]) {
    match QUEUES.get() {
        Some(queues) => queues.stderr.push(line),
        None => drop(std::io::stderr().lock().write_all(line)),
    }
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
    /// Writes one line of the log. Ignores write errors: a full disk must not stop training because of its
    /// log.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let line = format!("{}\n", one_line(line.strip_suffix('\n').unwrap_or(&line)));
        to_stderr(line.as_bytes());
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
                let _ = file.write_all(line.as_bytes());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
