//! The harness's connection to a sandbox's init: sends requests, receives the replies, and collects the exits
//! of processes. Knows neither mounts nor directories.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::pipe2;

use super::error::SandboxError;
use super::inbox::Inbox;
use super::interruption::{RegisteredConnection, is_interrupted, register};
use super::packet::send_message;
use super::processes::SandboxProcesses;
use super::protocol::{
    ControlReply, ControlRequest, LaunchSpec, ProcessLimit, REPLY_TIMEOUT, StartConditions, StoredCommand,
};
use super::spawned_process::SpawnedProcess;
use super::start_changes::StartChanges;
use crate::landlock::LandlockRules;
use crate::locks::LockExt;
use crate::seccomp::SeccompProgram;

/// The connection to init. It carries one request at a time.
pub(super) struct InitClient {
    inbox: Arc<Inbox>,
    /// Held from a request to its reply.
    request: Mutex<()>,
    next_id: AtomicU64,
    _registered: RegisteredConnection,
}

/// An init that waits for requests.
#[derive(Clone, Copy)]
pub(super) struct ReadyInit {
    pub(super) processes: SandboxProcesses,
    /// Init's descriptor of the sandbox's root.
    pub(super) root_fd: i32,
}

/// A program to start, and what it is started with.
pub(super) struct SpawnSpec<'a> {
    pub(super) launch: &'a LaunchSpec,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) filter: Option<SpawnFilter>,
    pub(super) limits: Vec<ProcessLimit>,
    pub(super) conditions: StartConditions,
    /// The rules that it is under.
    pub(super) rules: Option<LandlockRules>,
}

/// A seccomp filter that a program is started behind, and the socket through which init sends its listener.
pub(super) struct SpawnFilter {
    pub(super) program: SeccompProgram,
    pub(super) listener_socket: OwnedFd,
}

/// Kills all processes in a sandbox. It can be sent to another thread.
#[derive(Clone)]
pub struct KillSwitch {
    client: Arc<InitClient>,
}

impl InitClient {
    /// The connection over this socket.
    pub(super) fn connect(socket: OwnedFd) -> Result<InitClient, SandboxError> {
        let registered = register(&socket)?;
        Ok(InitClient {
            inbox: Arc::new(Inbox::new(socket)),
            request: Mutex::default(),
            next_id: AtomicU64::new(1),
            _registered: registered,
        })
    }

    /// Closes the connection, also for other users of it. Init then ends.
    pub(super) fn close(&self) {
        // This fails if init has closed its end already.
        let _ = shutdown(self.inbox.socket().as_raw_fd(), Shutdown::Both);
    }

    /// Waits for `InitStarted`, sent by init's parent, and `Ready`, sent by init, in any order.
    pub(super) fn await_ready(&self) -> Result<ReadyInit, SandboxError> {
        let (mut started, mut ready) = (None, None);
        loop {
            match self.inbox.next_reply(REPLY_TIMEOUT).ok_or_else(gone)? {
                ControlReply::InitStarted { pid } => started = Some(pid),
                ControlReply::Ready { fresh_proc, root_fd } => {
                    let processes = SandboxProcesses { init_pid: 0, fresh_proc };
                    ready = Some(ReadyInit { processes, root_fd });
                }
                other => return Err(unexpected_reply("build the sandbox", other)),
            }
            if let (Some(init_pid), Some(ReadyInit { processes, root_fd })) = (started, ready) {
                return Ok(ReadyInit { processes: SandboxProcesses { init_pid, ..processes }, root_fd });
            }
        }
    }

    /// Sends a request and waits for its reply.
    pub(super) fn request(
        &self,
        request: &ControlRequest,
        fds: &[RawFd],
    ) -> Result<ControlReply, SandboxError> {
        self.request_within(request, fds, REPLY_TIMEOUT)
    }

    /// Sends a request and waits for its reply, at most for `wait`.
    pub(super) fn request_within(
        &self,
        request: &ControlRequest,
        fds: &[RawFd],
        wait: Duration,
    ) -> Result<ControlReply, SandboxError> {
        let _request = self.request.locked();
        send_message(self.inbox.socket(), request, fds).map_err(|error| sending_failed(request, error))?;
        self.inbox.next_reply(wait).ok_or_else(gone)
    }

    /// Sends a request whose reply is `Done`, and returns its note.
    pub(super) fn execute(&self, request: &ControlRequest) -> Result<String, SandboxError> {
        match self.request(request, &[])? {
            ControlReply::Done { note } => Ok(note),
            other => Err(unexpected_reply("handle a request", other)),
        }
    }

    /// Sends a signal request. Returns whether a process received the signal.
    pub(super) fn send_signal(&self, request: &ControlRequest) -> Result<bool, SandboxError> {
        match self.request(request, &[])? {
            ControlReply::Signalled { received } => Ok(received),
            other => Err(unexpected_reply("send a signal", other)),
        }
    }

    /// Starts a program.
    pub(super) fn spawn(&self, spec: SpawnSpec<'_>) -> Result<SpawnedProcess, SandboxError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut fds = vec![spec.stdout.as_raw_fd(), spec.stderr.as_raw_fd()];
        fds.extend(spec.filter.as_ref().map(|filter| filter.listener_socket.as_raw_fd()));
        fds.extend(spec.rules.as_ref().map(|rules| rules.as_fd().as_raw_fd()));
        let request = ControlRequest::Spawn {
            id,
            launch: spec.launch.clone(),
            filter: spec.filter.as_ref().map(|filter| filter.program.clone()),
            limits: spec.limits,
            conditions: spec.conditions,
            is_confined: spec.rules.is_some(),
        };
        match self.request(&request, &fds)? {
            ControlReply::Spawned { pid_inside } => {
                Ok(SpawnedProcess::new(id, Arc::clone(&self.inbox), pid_inside))
            }
            other => Err(unexpected_reply("start a program", other)),
        }
    }

    /// Starts a program, with pipes as its standard output and error, and with changes that a fault has made.
    pub(super) fn spawn_changed(
        &self,
        launch: &LaunchSpec,
        limits: Vec<ProcessLimit>,
        changes: &StartChanges,
        rules: Option<LandlockRules>,
    ) -> Result<SpawnedProcess, SandboxError> {
        let OutputPipeEnds { ours: [our_stdout, our_stderr], theirs: [stdout, stderr] } =
            OutputPipeEnds::new()?;
        let stderr = if changes.full_stderr { full_device()? } else { stderr };
        let (launch, conditions) = (&changes.changed(launch), changes.conditions.clone());
        let process =
            self.spawn(SpawnSpec { launch, stdout, stderr, filter: None, limits, conditions, rules })?;
        Ok(process.with_outputs(our_stdout, our_stderr))
    }

    /// Starts a stored command of the fork server, with pipes as its standard output and error.
    pub(super) fn spawn_forked(&self, command: StoredCommand) -> Result<SpawnedProcess, SandboxError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let OutputPipeEnds { ours: [our_stdout, our_stderr], theirs } = OutputPipeEnds::new()?;
        let fds = [theirs[0].as_raw_fd(), theirs[1].as_raw_fd()];
        match self.request(&ControlRequest::SpawnForked { id, command }, &fds)? {
            ControlReply::Spawned { pid_inside } => {
                let process = SpawnedProcess::new(id, Arc::clone(&self.inbox), pid_inside);
                Ok(process.with_outputs(our_stdout, our_stderr))
            }
            other => Err(unexpected_reply("start a command of the fork server", other)),
        }
    }
}

/// The reading ends of two pipes, and the writing ends for a program.
struct OutputPipeEnds {
    ours: [OwnedFd; 2],
    theirs: [OwnedFd; 2],
}

impl OutputPipeEnds {
    fn new() -> Result<OutputPipeEnds, SandboxError> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::system("make a pipe"));
        let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
        Ok(OutputPipeEnds { ours: [our_stdout, our_stderr], theirs: [stdout, stderr] })
    }
}

impl KillSwitch {
    pub(super) fn new(client: Arc<InitClient>) -> KillSwitch {
        KillSwitch { client }
    }

    /// Kills all processes in the sandbox but its init. Returns when they have ended.
    ///
    /// # Errors
    /// If init has ended.
    pub fn kill_all(&self) -> Result<(), SandboxError> {
        self.client.execute(&ControlRequest::KillAll).map(drop)
    }
}

/// The device that is always full.
pub(super) fn full_device() -> Result<OwnedFd, SandboxError> {
    let device = std::fs::File::options().write(true).open("/dev/full");
    Ok(device.map_err(SandboxError::system("open `/dev/full`"))?.into())
}

/// The error for a connection that has ended.
fn gone() -> SandboxError {
    if is_interrupted() { SandboxError::Interrupted } else { SandboxError::InitGone }
}

/// The error for a request that was not sent.
fn sending_failed(request: &ControlRequest, error: std::io::Error) -> SandboxError {
    match (request.program_name(), error.raw_os_error().map(Errno::from_raw)) {
        (_, Some(Errno::EPIPE | Errno::ECONNRESET)) => gone(),
        (Some(program), Some(Errno::E2BIG)) => SandboxError::ArgumentsTooLong { program },
        _ => SandboxError::System { doing: "send a request to the sandbox's init", source: error },
    }
}

/// The error for a reply that does not fit the request.
pub(super) fn unexpected_reply(doing: &str, reply: ControlReply) -> SandboxError {
    match reply {
        ControlReply::Failed { doing, detail } => SandboxError::Init { doing, detail },
        ControlReply::NotStarted { program, errno } if Errno::from_raw(errno) == Errno::E2BIG => {
            SandboxError::ArgumentsTooLong { program }
        }
        ControlReply::NotStarted { program, errno } => {
            SandboxError::NotStarted { program, source: std::io::Error::from_raw_os_error(errno) }
        }
        other => SandboxError::Init { doing: doing.into(), detail: format!("unexpected reply {other:?}") },
    }
}
