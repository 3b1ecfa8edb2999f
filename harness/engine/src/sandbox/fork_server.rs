//! A fork server in a sandbox: a program that is started once, imports its modules, and forks for each
//! command. Part of the init process.
//!
//! Protocol: init replaces `{control}` in the server's arguments with the number of its socket. The server
//! sends `{"ready": N}`. For each command init sends the arguments as a JSON list together with the
//! descriptors for standard output and error. The server sends `{"pid": N}`, and `{"status": N}` when the
//! child has ended.

use std::io::{Error, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::{Pid, pipe2};
use serde::Deserialize;

use super::captured_output::{CapturedOutput, DRAIN_TIME, set_nonblocking};
use super::protocol::{CompletedCommand, LaunchSpec, ProcessExit};

/// How long the server's imports may take.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes kept of what a server writes that does not become ready.
const MAX_FAILURE_BYTES: usize = 2000;

/// A message of the server. At most one field is set; none if the server has ended.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ForkServerMessage {
    ready: Option<u64>,
    pid: Option<i32>,
    /// Wait status, as waitpid returns it.
    status: Option<i32>,
}

/// A running fork server.
pub(super) struct ForkServer {
    control: OwnedFd,
    server: Child,
}

impl ForkServer {
    /// Starts the server. Returns when it is ready.
    pub(super) fn start(launch: &LaunchSpec) -> Result<ForkServer, Error> {
        // The server inherits its end, so the socket is made without close-on-exec.
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty())?;
        nix::fcntl::fcntl(&control, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        let number = theirs.as_raw_fd().to_string();
        let mut launch = launch.clone();
        launch
            .argv
            .iter_mut()
            .filter(|argument| *argument == "{control}")
            .for_each(|argument| *argument = number.clone().into());
        let mut command = launch.command().ok_or_else(|| Error::other("`argv` is empty"))?;
        let mut server = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        drop(theirs);
        let mut server_stderr = server.stderr.take();
        let ready = receive_server_message(&control, Instant::now() + IMPORT_TIMEOUT)?;
        match ready {
            Some(ForkServerMessage { ready: Some(_), .. }) => Ok(ForkServer { control, server }),
            _ => {
                let _ = server.kill();
                let _ = server.wait();
                let mut output = CapturedOutput::new(MAX_FAILURE_BYTES);
                server_stderr.as_ref().map(set_nonblocking).transpose()?;
                output.read_available(&mut server_stderr)?;
                let output = output.text();
                let last_line =
                    output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
                Err(Error::other(format!("it did not become ready: {last_line}")))
            }
        }
    }

    /// The server's pid within the sandbox.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.server.id() as i32)
    }

    /// Runs one command until it ends or `limit` has passed, then kills it.
    pub(super) fn run(
        &mut self,
        launch: &LaunchSpec,
        limit: Duration,
        max_output_bytes: usize,
    ) -> Result<CompletedCommand, Error> {
        let ((out, their_out), (err, their_err)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        let argv: Vec<String> =
            launch.argv.iter().map(|argument| argument.to_string_lossy().into_owned()).collect();
        let message = serde_json::to_vec(&argv).map_err(Error::other)?;
        let files = [their_out.as_raw_fd(), their_err.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&files)];
        sendmsg::<()>(
            self.control.as_raw_fd(),
            &[IoSlice::new(&message)],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        drop((their_out, their_err));
        let limit_end = Instant::now() + limit;
        let Some(ForkServerMessage { pid: Some(pid), .. }) =
            receive_server_message(&self.control, limit_end + IMPORT_TIMEOUT)?
        else {
            return Err(Error::other("the fork server has ended"));
        };
        set_nonblocking(&out)?;
        set_nonblocking(&err)?;
        let (mut out, mut err) = (Some(std::fs::File::from(out)), Some(std::fs::File::from(err)));
        let (mut stdout, mut stderr) =
            (CapturedOutput::new(max_output_bytes), CapturedOutput::new(max_output_bytes));
        let mut exit = None;
        let mut deadline = limit_end;
        while Instant::now() < deadline && (exit.is_none() || out.is_some() || err.is_some()) {
            self.wait_for_output(&out, &err, deadline, exit.is_none())?;
            stdout.read_available(&mut out)?;
            stderr.read_available(&mut err)?;
            if exit.is_none()
                && let Some(ForkServerMessage { status: Some(status), .. }) =
                    receive_server_message(&self.control, Instant::now())?
            {
                exit = Some(ProcessExit::from_wait_status(status));
                deadline = deadline.min(Instant::now() + DRAIN_TIME);
            }
        }
        if exit.is_none() {
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            receive_server_message(&self.control, Instant::now() + IMPORT_TIMEOUT)?;
        }
        Ok(CompletedCommand { exit, stdout: stdout.text(), stderr: stderr.text(), left_processes: false })
    }

    /// Waits for output, or for a message of the server if `await_control`.
    fn wait_for_output(
        &self,
        out: &Option<std::fs::File>,
        err: &Option<std::fs::File>,
        deadline: Instant,
        await_control: bool,
    ) -> Result<(), Error> {
        let files = out.iter().chain(err).map(AsFd::as_fd);
        let files = files.chain(await_control.then_some(self.control.as_fd()));
        let mut ready: Vec<PollFd<'_>> = files.map(|file| PollFd::new(file, PollFlags::POLLIN)).collect();
        let left_ms =
            u16::try_from(deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u16::MAX);
        match poll(&mut ready, PollTimeout::from(left_ms.max(1))) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Receives the server's next message. Returns `None` if there is none before the deadline, and an empty
/// message if the server has ended.
fn receive_server_message(control: &OwnedFd, deadline: Instant) -> Result<Option<ForkServerMessage>, Error> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut ready = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut ready, wait) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(None),
            Ok(_) => {}
        }
        let mut bytes = [0; 256];
        return match recv(control.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ECONNRESET) | Ok(0) => Ok(Some(ForkServerMessage::default())),
            Err(error) => Err(error.into()),
            Ok(length) => serde_json::from_slice(&bytes[..length]).map(Some).map_err(Error::other),
        };
    }
}
