//! A fork server in a sandbox: a program that is started once, imports its modules, and forks for each
//! command. Part of the init process.
//!
//! Protocol: init replaces `{control}` in the server's arguments with the number of its socket. The server
//! sends `ready`. For each command init sends one byte with three descriptors: the standard output, the
//! standard error, and a file with the arguments, each followed by a zero byte. The byte says where the child runs:
//! `f`, in the process group of init; `s`, in a session of its own. The server sends `pid N`, and `status N` when the
//! child has ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::unistd::{Pid, SysconfVar, pipe2, sysconf};
use regex::RegexSet;

use super::captured_output::{CapturedOutput, OutputPipes, set_nonblocking};
use super::packet::{memory_file, send_byte_with_fds};
use super::process_pipes::time_until;
use super::protocol::{CompletedCommand, LaunchSpec, ProcessExit};
use super::run_command::RunLimits;
use super::sys;

/// How long the server's imports may take.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes kept of what a server writes that does not become ready.
const MAX_FAILURE_BYTES: usize = 2000;
/// Longest argument that the kernel gives to a program, with its zero byte: MAX_ARG_STRLEN, 32 pages.
const MAX_ARGUMENT_BYTES: usize = 128 * 1024;

/// A message of the server.
enum ForkServerMessage {
    Ready,
    Pid(i32),
    /// Wait status, as waitpid returns it.
    Status(i32),
    /// The server has ended, or has sent something else.
    Ended,
}

impl ForkServerMessage {
    fn parse(bytes: &[u8]) -> ForkServerMessage {
        let text = String::from_utf8_lossy(bytes);
        let (name, number) = text.split_once(' ').unwrap_or((&text, "0"));
        match (name, number.parse()) {
            ("ready", Ok(_)) => ForkServerMessage::Ready,
            ("pid", Ok(pid)) => ForkServerMessage::Pid(pid),
            ("status", Ok(status)) => ForkServerMessage::Status(status),
            _ => ForkServerMessage::Ended,
        }
    }
}

/// The arguments of a command that the server runs, in a file that each of its children reads.
pub(super) struct ForkedCommand {
    arguments: File,
}

impl ForkedCommand {
    /// Keeps the arguments. Fails with E2BIG where the kernel would, if a program were started with them.
    pub(super) fn new(argv: &[OsString]) -> Result<ForkedCommand, Error> {
        if argv.iter().any(|argument| argument.as_bytes().contains(&0)) {
            return Err(Error::other("an argument contains a zero byte"));
        }
        let bytes: Vec<u8> =
            argv.iter().flat_map(|argument| argument.as_bytes().iter().copied().chain([0])).collect();
        let needed_bytes = bytes.len() + argv.len() * size_of::<usize>();
        let max_bytes = sysconf(SysconfVar::ARG_MAX)?.and_then(|max| usize::try_from(max).ok());
        let has_long_argument = argv.iter().any(|argument| argument.len() >= MAX_ARGUMENT_BYTES);
        if has_long_argument || max_bytes.is_some_and(|max_bytes| needed_bytes > max_bytes) {
            return Err(Errno::E2BIG.into());
        }
        Ok(ForkedCommand { arguments: memory_file(&bytes)? })
    }
}

/// Where a child of the server runs.
#[derive(Clone, Copy)]
pub(super) enum ForkGroup {
    /// In the process group of init.
    Shared,
    /// In a session of its own.
    OwnSession,
}

impl ForkGroup {
    fn byte(self) -> u8 {
        match self {
            ForkGroup::Shared => b'f',
            ForkGroup::OwnSession => b's',
        }
    }
}

/// What a server that runs a command has told since the last look.
pub(super) enum ForkNews {
    Nothing,
    ChildEnded(ProcessExit),
    ServerEnded,
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
        sys::before_exec(&mut command, || Ok(()));
        // A command that ends its whole process group must not end the server, so that one has its own.
        command.process_group(0);
        let mut server = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        drop(theirs);
        let server_stderr = server.stderr.take();
        let ready = receive_server_message(&control, Instant::now() + IMPORT_TIMEOUT)?;
        match ready {
            Some(ForkServerMessage::Ready) => Ok(ForkServer { control, server }),
            _ => {
                let _ = server.kill();
                let _ = server.wait();
                let mut output = CapturedOutput::new(MAX_FAILURE_BYTES);
                if let Some(mut stderr) = server_stderr {
                    set_nonblocking(&stderr)?;
                    output.read_available(&mut stderr)?;
                }
                let output = output.text();
                let last_line =
                    output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
                Err(Error::other(last_line.to_owned()))
            }
        }
    }

    /// The server's pid within the sandbox.
    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.server.id() as i32)
    }

    /// Becomes readable when there are news.
    pub(super) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// What it has told about the command that it runs.
    pub(super) fn news(&self) -> Result<ForkNews, Error> {
        Ok(match receive_server_message(&self.control, Instant::now())? {
            None => ForkNews::Nothing,
            Some(ForkServerMessage::Status(status)) => {
                ForkNews::ChildEnded(ProcessExit::from_wait_status(status))
            }
            Some(_) => ForkNews::ServerEnded,
        })
    }

    /// Starts one command. The server runs one at a time.
    pub(super) fn fork(
        &self,
        command: &ForkedCommand,
        outputs: [OwnedFd; 2],
        group: ForkGroup,
        timeout: Duration,
    ) -> Result<Pid, Error> {
        let fds = [outputs[0].as_fd(), outputs[1].as_fd(), command.arguments.as_fd()];
        match send_byte_with_fds(self.control.as_fd(), group.byte(), &fds) {
            Err(error) if has_no_receiver(&error) => return Err(server_ended()),
            sent => sent?,
        }
        drop(outputs);
        match receive_server_message(&self.control, Instant::now() + timeout)? {
            Some(ForkServerMessage::Pid(pid)) => Ok(Pid::from_raw(pid)),
            _ => Err(server_ended()),
        }
    }

    /// Runs one command until it ends or its time limit has passed, then kills it.
    pub(super) fn run(
        &mut self,
        command: &ForkedCommand,
        limits: RunLimits,
        patterns: &RegexSet,
    ) -> Result<CompletedCommand, Error> {
        let ((out, their_out), (err, their_err)) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        let mut deadline = limits.deadline();
        let timeout = time_left(deadline) + IMPORT_TIMEOUT;
        let pid = self.fork(command, [their_out, their_err], ForkGroup::Shared, timeout)?;
        let mut outputs = OutputPipes::new(out, err, limits.max_output_bytes, patterns);
        let mut exit = None;
        while (exit.is_none() || !outputs.are_closed()) && Instant::now() < deadline {
            let control = exit.is_none().then(|| self.control.as_fd());
            if outputs.read_or_wait(control, deadline)?
                && let Some(message) = receive_server_message(&self.control, Instant::now())?
            {
                let ForkServerMessage::Status(status) = message else {
                    return Err(server_ended());
                };
                exit = Some(ProcessExit::from_wait_status(status));
                deadline = limits.end_of_outputs();
            }
        }
        if exit.is_none() {
            kill(pid, Signal::SIGKILL)?;
            receive_server_message(&self.control, Instant::now() + IMPORT_TIMEOUT)?;
        }
        outputs.read_written()?;
        Ok(outputs.complete(exit))
    }
}

fn has_no_receiver(error: &Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EPIPE | Errno::ECONNRESET))
}

fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The interpreter that forks the commands has ended, such as by a signal of one of them.
pub(super) fn server_ended() -> Error {
    Error::other("the Python interpreter from which recoveries are forked has ended")
}

/// Receives the server's next message. Returns `None` if there is none before the deadline.
fn receive_server_message(control: &OwnedFd, deadline: Instant) -> Result<Option<ForkServerMessage>, Error> {
    loop {
        let mut ready = [PollFd::new(control.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, time_until(deadline)) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(None),
            Ok(_) => {}
        }
        let mut bytes = [0; 32];
        return match recv(control.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            Err(Errno::EINTR) => continue,
            Err(Errno::ECONNRESET) => Ok(Some(ForkServerMessage::Ended)),
            Err(error) => Err(error.into()),
            Ok(length) => Ok(Some(ForkServerMessage::parse(&bytes[..length]))),
        };
    }
}
