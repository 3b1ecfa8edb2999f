//! Runs one command in a sandbox until it ends, and captures its output. Part of the init process: one
//! thread, no state.

use std::io::Error;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::captured_output::{CapturedOutput, DRAIN_TIME, set_nonblocking};
use super::protocol::{CompletedCommand, LaunchSpec, ProcessExit};
use super::sys;

/// How often the main process is polled while it neither writes output nor closes its outputs.
const POLL_INTERVAL_MS: u16 = 50;

/// Runs a command until its main process has ended or `limit` has passed. The caller kills the processes that
/// are left.
pub(super) fn run(
    launch: &LaunchSpec,
    limit: Duration,
    max_output_bytes: usize,
) -> Result<CompletedCommand, Error> {
    let mut command = launch.command().ok_or_else(|| Error::other("`argv` is empty"))?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + limit;
    let (mut stdout, mut stderr) =
        (CapturedOutput::new(max_output_bytes), CapturedOutput::new(max_output_bytes));
    let status = capture_until_exit(&mut child, deadline, &mut stdout, &mut stderr)?;
    let exit = status.map(|status| ProcessExit::from_wait_status(status.into_raw()));
    Ok(CompletedCommand { exit, stdout: stdout.text(), stderr: stderr.text(), left_processes: false })
}

/// Captures output until the child has ended. Returns `None` if it is still running at the deadline.
fn capture_until_exit(
    child: &mut Child,
    mut deadline: Instant,
    stdout: &mut CapturedOutput,
    stderr: &mut CapturedOutput,
) -> Result<Option<ExitStatus>, Error> {
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    out.as_ref().map(set_nonblocking).transpose()?;
    err.as_ref().map(set_nonblocking).transpose()?;
    let mut status = None;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if (out.is_none() && err.is_none() && status.is_some()) || left.is_zero() {
            return Ok(status);
        }
        if out.is_none() && err.is_none() {
            // Both outputs are closed. Most commands also end at this moment.
            status = wait_for_exit(child, left)?;
            continue;
        }
        let wait_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).clamp(1, POLL_INTERVAL_MS);
        let fds = out.as_ref().map(AsFd::as_fd).into_iter().chain(err.as_ref().map(AsFd::as_fd));
        let mut ready: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut ready, PollTimeout::from(wait_ms)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        drop(ready);
        stdout.read_available(&mut out)?;
        stderr.read_available(&mut err)?;
        if status.is_none() && (out.is_some() || err.is_some()) {
            status = child.try_wait()?;
            if status.is_some() {
                deadline = deadline.min(Instant::now() + DRAIN_TIME);
            }
        }
    }
}

/// Waits for the child to end, at most for `left`.
fn wait_for_exit(child: &mut Child, left: Duration) -> Result<Option<ExitStatus>, Error> {
    let pidfd = sys::open_pidfd(child.id())?;
    let mut ready = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let wait_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
    match poll(&mut ready, PollTimeout::from(wait_ms)) {
        Ok(_) | Err(Errno::EINTR) => child.try_wait(),
        Err(error) => Err(error.into()),
    }
}
