//! Runs one command in a sandbox until it ends, and captures its output. Part of the init process: one
//! thread, no state.

use std::io::{Error, Read};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::protocol::{CompletedCommand, LaunchSpec};
use super::{ProcessExit, init};

/// How long outputs are still read after the main process has ended, if another process holds them open.
const DRAIN_TIME: Duration = Duration::from_millis(20);
/// How often the main process is polled while it neither writes output nor closes its outputs.
const POLL_INTERVAL_MS: u16 = 50;

/// The first and the last bytes of one output.
pub(super) struct CapturedOutput {
    head: Vec<u8>,
    tail: std::collections::VecDeque<u8>,
    max_bytes: usize,
    dropped_bytes: u64,
}

impl CapturedOutput {
    /// Keeps at most `max_bytes`: one half from the start, the other from the end.
    pub(super) fn new(max_bytes: usize) -> CapturedOutput {
        CapturedOutput {
            head: Vec::new(),
            tail: std::collections::VecDeque::new(),
            max_bytes,
            dropped_bytes: 0,
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        let head_bytes = (self.max_bytes / 2).saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend(&bytes[..head_bytes]);
        self.tail.extend(&bytes[head_bytes..]);
        while self.tail.len() > self.max_bytes / 2 {
            self.tail.pop_front();
            self.dropped_bytes += 1;
        }
    }

    /// The captured output, with a note if bytes were left out.
    pub(super) fn text(mut self) -> String {
        if self.dropped_bytes > 0 {
            self.head.extend(format!("\n[{} bytes left out]\n", self.dropped_bytes).bytes());
        }
        self.head.extend(self.tail);
        String::from_utf8_lossy(&self.head).into_owned()
    }
}

/// Runs a command until its main process has ended or `limit` has passed. The caller kills the processes that
/// are left.
pub(super) fn run(
    launch: &LaunchSpec,
    limit: Duration,
    max_output_bytes: usize,
) -> Result<CompletedCommand, Error> {
    let mut command = init::build_command(launch).ok_or_else(|| Error::other("`argv` is empty"))?;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + limit;
    let (mut stdout, mut stderr) =
        (CapturedOutput::new(max_output_bytes), CapturedOutput::new(max_output_bytes));
    let status = capture_until_exit(&mut child, deadline, &mut stdout, &mut stderr)?;
    let exit = status.map(|status| match status.signal() {
        Some(signal) => ProcessExit::Signalled(signal),
        None => ProcessExit::Exited(status.code().unwrap_or(-1)),
    });
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
        read_available(&mut out, stdout)?;
        read_available(&mut err, stderr)?;
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
    let pidfd = super::sys::open_pidfd(child.id())?;
    let mut ready = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let wait_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
    match poll(&mut ready, PollTimeout::from(wait_ms)) {
        Ok(_) | Err(Errno::EINTR) => child.try_wait(),
        Err(error) => Err(error.into()),
    }
}

/// Sets O_NONBLOCK.
pub(super) fn set_nonblocking(fd: &impl AsFd) -> Result<(), Error> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop).map_err(Error::from)
}

/// Reads all bytes that are available from a pipe. Sets it to `None` when it has been closed.
pub(super) fn read_available(pipe: &mut Option<impl Read>, output: &mut CapturedOutput) -> Result<(), Error> {
    let mut bytes = [0; 8192];
    while let Some(reader) = pipe {
        match reader.read(&mut bytes) {
            Ok(0) => *pipe = None,
            Ok(len_bytes) => output.append(&bytes[..len_bytes]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
