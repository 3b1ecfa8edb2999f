//! Runs one command in a sandbox until it ends, and captures its output. Part of the init process: one
//! thread, no state.

use std::io::Error;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use regex::RegexSet;

use super::captured_output::{DRAIN_TIME, OutputPipes};
use super::launchable_command::LaunchableCommand;
use super::protocol::{CompletedCommand, ProcessExit};

/// The longest time limit: a year. Longer ones are cut to it.
const MAX_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The limits of one run.
#[derive(Clone, Copy)]
pub(super) struct RunLimits {
    pub(super) timeout: Duration,
    /// How long the other processes are waited for after the main process has ended.
    pub(super) rest: Duration,
    /// At most this many bytes of each output are kept.
    pub(super) max_output_bytes: usize,
}

impl RunLimits {
    /// When a run that begins now has exceeded its time limit.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout.min(MAX_LIMIT)
    }

    /// Until when outputs are read that another process holds open, if the main process ends now.
    pub(super) fn end_of_outputs(&self) -> Instant {
        Instant::now() + self.rest.clamp(DRAIN_TIME, MAX_LIMIT)
    }
}

/// Runs a command until its main process has ended or its time limit has passed. The caller kills the
/// processes that are left. `child_signals` receives init's SIGCHLD, which is blocked.
pub(super) fn run(
    command: &mut LaunchableCommand,
    child_signals: &SignalFd,
    limits: RunLimits,
    patterns: &RegexSet,
) -> Result<CompletedCommand, Error> {
    let mut child = command.spawn()?;
    let mut deadline = limits.deadline();
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(Error::other("a command was started without pipes"));
    };
    let mut outputs = OutputPipes::new(stdout.into(), stderr.into(), limits.max_output_bytes, patterns);
    // It may have ended before its signal could be seen.
    let mut status = child.try_wait()?;
    if status.is_some() {
        deadline = limits.end_of_outputs();
    }
    while (status.is_none() || !outputs.are_closed()) && Instant::now() < deadline {
        let signals = status.is_none().then(|| child_signals.as_fd());
        if outputs.read_or_wait(signals, deadline)? {
            // The signal may be another child's. A later one sends a signal of its own.
            child_signals.read_signal()?;
            status = child.try_wait()?;
            if status.is_some() {
                deadline = limits.end_of_outputs();
            }
        }
    }
    outputs.read_written()?;
    Ok(outputs.complete(status.map(|status| ProcessExit::from_wait_status(status.into_raw()))))
}
