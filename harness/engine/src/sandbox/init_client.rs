//! The harness's connection to a sandbox's init: sends requests, receives the replies, and collects the exits
//! of processes. Knows neither mounts nor directories.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::pipe2;

use super::error::SandboxError;
use super::interruption::{RegisteredConnection, is_interrupted, register};
use super::packet::{receive_message, send_message};
use super::processes::SandboxProcesses;
use super::protocol::{ControlReply, ControlRequest, LaunchSpec, REPLY_TIMEOUT};
use super::spawned_process::{ProcessExits, SpawnedProcess};
use crate::locks::LockExt;
use crate::seccomp::SeccompProgram;

/// The connection to init. It carries one request at a time.
pub(super) struct InitClient {
    socket: OwnedFd,
    replies: Mutex<Receiver<ControlReply>>,
    exits: Arc<ProcessExits>,
    next_id: AtomicU64,
    _registered: RegisteredConnection,
}

/// A program to start, and what it is started with.
pub(super) struct SpawnSpec<'a> {
    pub(super) launch: &'a LaunchSpec,
    /// The file of the cgroup that the program joins.
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) filter: Option<SpawnFilter>,
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
    /// Starts to receive from init. The thread that does it ends when the connection is closed.
    pub(super) fn connect(socket: OwnedFd) -> Result<(InitClient, JoinHandle<()>), SandboxError> {
        let registered = register(&socket)?;
        let (sender, replies) = channel();
        let exits = Arc::<ProcessExits>::default();
        let reader_thread = start_reader(&socket, sender, Arc::clone(&exits))?;
        let next_id = AtomicU64::new(1);
        let replies = Mutex::new(replies);
        Ok((InitClient { socket, replies, exits, next_id, _registered: registered }, reader_thread))
    }

    /// Closes the connection, also for other users of it. Init then ends.
    pub(super) fn close(&self) {
        // This fails if init has closed its end already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Waits for `InitStarted`, sent by init's parent, and `Ready`, sent by init, in any order.
    pub(super) fn await_ready(&self) -> Result<SandboxProcesses, SandboxError> {
        let (mut init_pid, mut fresh_proc) = (None, None);
        loop {
            match self.next_reply()? {
                ControlReply::InitStarted { pid } => init_pid = Some(pid),
                ControlReply::Ready { fresh_proc: is_fresh } => fresh_proc = Some(is_fresh),
                other => return Err(unexpected_reply("build the sandbox", other)),
            }
            if let (Some(init_pid), Some(fresh_proc)) = (init_pid, fresh_proc) {
                return Ok(SandboxProcesses { init_pid, fresh_proc });
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
        let replies = self.replies.locked();
        send_message(self.socket.as_fd(), request, fds).map_err(|_| gone())?;
        replies.recv_timeout(wait).map_err(|_| gone())
    }

    fn next_reply(&self) -> Result<ControlReply, SandboxError> {
        let replies = self.replies.locked();
        replies.recv_timeout(REPLY_TIMEOUT).map_err(|_| gone())
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
        let request = ControlRequest::Spawn {
            id,
            launch: spec.launch.clone(),
            filter: spec.filter.as_ref().map(|filter| filter.program.clone()),
        };
        match self.request(&request, &fds)? {
            ControlReply::Spawned { pid_inside } => {
                Ok(SpawnedProcess::new(id, Arc::clone(&self.exits), pid_inside))
            }
            other => Err(unexpected_reply("start a program", other)),
        }
    }

    /// Starts a program, with pipes as its standard output and error.
    pub(super) fn spawn_piped(&self, launch: &LaunchSpec) -> Result<SpawnedProcess, SandboxError> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::system("make a pipe"));
        let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
        let process = self.spawn(SpawnSpec { launch, stdout, stderr, filter: None })?;
        Ok(process.with_outputs(our_stdout, our_stderr))
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

/// The error for a connection that has ended.
fn gone() -> SandboxError {
    if is_interrupted() { SandboxError::Interrupted } else { SandboxError::InitGone }
}

/// The error for a reply that does not fit the request.
pub(super) fn unexpected_reply(doing: &str, reply: ControlReply) -> SandboxError {
    match reply {
        ControlReply::Failed { doing, detail } => SandboxError::Init { doing, detail },
        other => SandboxError::Init { doing: doing.into(), detail: format!("unexpected reply {other:?}") },
    }
}

/// Starts the thread that receives from init: it stores exits of processes, and passes on replies to
/// requests.
fn start_reader(
    socket: &OwnedFd,
    replies: Sender<ControlReply>,
    exits: Arc<ProcessExits>,
) -> Result<JoinHandle<()>, SandboxError> {
    let socket = socket.try_clone().map_err(SandboxError::system("duplicate a socket"))?;
    Ok(std::thread::spawn(move || {
        while let Ok(Some(packet)) = receive_message::<ControlReply>(socket.as_fd()) {
            match packet.message {
                ControlReply::ProcessExited { id, exit } => exits.report(id, exit),
                reply => drop(replies.send(reply)),
            }
        }
        // The kernel ends every process of a sandbox with its init.
        exits.report_all_killed();
    }))
}
