//! Prints to standard output and standard error, and writes the log file. Nothing else in the crate prints.
//! Every line passes through `one_line`: a text from outside never starts a line of its own.

use std::io::Write;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use super::output_queue::OutputQueue;
use crate::day_logs::DayLog;
use crate::exit::Exit;
use crate::file_error::chain;
use crate::local_time::local_now;
use crate::locks::LockExt;
use crate::plain_text::{is_one_plain_line, one_line};
use crate::train::WorkerEvent;

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

/// Sends log lines to standard error and, if there is one, to the log file.
pub(super) fn start_logging(file: Option<LogFile>) {
    let sink = LogSink { file };
    let subscriber = tracing_subscriber::fmt().with_writer(sink).with_ansi(false).with_target(false);
    // Fails only if a subscriber is set already; that one stays.
    let _ = subscriber.try_init();
}

/// Where log lines go: always standard error, and a file if there is one.
struct LogSink {
    file: Option<LogFile>,
}

/// The log file of a root.
pub(super) struct LogFile {
    state: Mutex<LogState>,
    /// Errors are reported, and the process goes on.
    goes_on: bool,
}

struct LogState {
    log: DayLog,
    is_failing: bool,
}

impl LogFile {
    /// A log file. Without `goes_on`, an error of it ends the process.
    pub(super) fn new(log: DayLog, goes_on: bool) -> LogFile {
        LogFile { state: Mutex::new(LogState { log, is_failing: false }), goes_on }
    }

    /// Writes a line. An error is told on standard error, once until it has passed: a full disk must not stop
    /// training because of its log.
    fn write(&self, line: &[u8]) {
        let mut state = self.state.locked();
        let written = state.log.write_line(local_now().date(), line);
        match (&written, state.is_failing) {
            (Err(cause), _) if !self.goes_on => {
                error(&chain(cause));
                flush();
                std::process::exit(Exit::Disk.code().into());
            }
            (Err(cause), false) => error(&format!("the log is not written from now on: {}", chain(cause))),
            (Ok(()), true) => error("the log is written again"),
            _ => {}
        }
        state.is_failing = written.is_err();
    }
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
    /// Writes one line of the log. Never fails.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        let line = format!("{}\n", one_line(line.strip_suffix('\n').unwrap_or(&line)));
        to_stderr(line.as_bytes());
        if let Some(file) = &self.sink.file {
            file.write(line.as_bytes());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
