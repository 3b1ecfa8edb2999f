//! The messages between the harness and a sandbox's init: one JSON value per packet, with file descriptors
//! attached.

use std::ffi::OsString;
use std::io::{Error, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest size of a packet. Argument lists and environments must fit into one.
const MAX_PACKET_BYTES: usize = 160 * 1024;

/// A program to start in a sandbox. Its standard input is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The program, looked up in this process's PATH, and its arguments.
    pub argv: Vec<OsString>,
    /// The whole environment: no variables are inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory. Default: the harness's.
    pub cwd: Option<PathBuf>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessExit {
    /// With this exit code.
    Exited(i32),
    /// Killed by this signal.
    Signalled(i32),
}

impl std::fmt::Display for ProcessExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProcessExit::Exited(code) => write!(f, "exit code {code}"),
            ProcessExit::Signalled(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl ProcessExit {
    /// Text for an exit, where `None` means that the process exceeded its time limit.
    pub fn describe(exit: Option<ProcessExit>) -> String {
        exit.map_or_else(|| "a timeout".into(), |exit| exit.to_string())
    }
}

/// A change to a mount below the sandbox's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountChange {
    /// Sets the size of a tmpfs.
    Resize { size_bytes: u64 },
    /// Sets the number of inodes of a tmpfs.
    Inodes { count: u64 },
    /// Makes the mount read-only.
    ReadOnly,
    /// Reverts `ReadOnly`.
    Writable,
}

/// A tmpfs to mount. `options` are mount options.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TmpfsMount {
    pub(super) mount_point: PathBuf,
    pub(super) options: String,
}

/// A directory to mount at another path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BindMount {
    /// The directory, as the harness sees it. It is created if it does not exist.
    pub source: PathBuf,
    /// Where processes in the sandbox see it. Must be an existing directory.
    pub mount_point: PathBuf,
}

/// The first message to a new init. Mounts are made before binds, so that the source of a bind may be in a
/// mount.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxInitRequest {
    pub(super) mounts: Vec<TmpfsMount>,
    pub(super) binds: Vec<BindMount>,
}

/// A seccomp program. Each instruction is a `sock_filter`: code, jump if true, jump if false, operand.
pub type SeccompFilter = Vec<(u16, u8, u8, u32)>;

/// The result of a command that has ended or has exceeded its time limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedCommand {
    /// `None` if it was killed because it exceeded its time limit.
    pub exit: Option<ProcessExit>,
    /// Its standard output. If more was written than is kept, the first and the last bytes.
    pub stdout: String,
    /// Its standard error, kept in the same way.
    pub stderr: String,
    /// Whether other processes of the command were still running when its main process had ended.
    pub left_processes: bool,
}

/// A request of the harness to init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ControlRequest {
    /// Starts a program. Two descriptors are attached: its standard output and error. With a filter, a third
    /// one is attached: a socket through which the filter's listener is sent.
    Spawn { id: u64, launch: LaunchSpec, cgroup_procs: Option<PathBuf>, filter: Option<SeccompFilter> },
    /// Runs a command, kills all processes that are left of it, and replies with `CommandEnded`.
    RunCommand {
        launch: LaunchSpec,
        timeout_ms: u64,
        max_output_bytes: usize,
        /// The fork server started by `StartForkServer` runs the command; `argv` is passed to it.
        in_fork_server: bool,
    },
    /// Starts a fork server.
    StartForkServer { launch: LaunchSpec },
    /// Keeps the attached descriptor open until the sandbox ends.
    HoldFd,
    /// Kills all processes but init.
    KillAll,
    /// Sends a signal to one process.
    Signal { pid_inside: i32, signal: i32 },
    /// Sends a signal to all processes but init.
    SignalAll { signal: i32 },
    /// Changes a mount.
    ChangeMount { mount_point: PathBuf, change: MountChange },
}

/// A message of init to the harness. Most reply to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ControlReply {
    /// Sent by init's parent: init's pid in the harness's pid namespace.
    InitStarted { pid: i32 },
    /// The sandbox is ready. `fresh_proc`: it has its own /proc.
    Ready { fresh_proc: bool },
    /// Replies to `Spawn`.
    Spawned { pid_inside: i32 },
    /// Replies to `RunCommand`.
    CommandEnded(CompletedCommand),
    /// A signal was sent, or there was no process that could receive it.
    Signalled { received: bool },
    /// Replies to the other requests. `note` is the mechanism of `ChangeMount`, and otherwise empty.
    Done { note: String },
    /// The request failed, or the sandbox could not be set up.
    Failed { doing: String, detail: String },
    /// Not a reply: a spawned process has ended.
    ProcessExited { id: u64, exit: ProcessExit, peak_bytes: u64 },
}

/// Sends one packet with the given descriptors attached.
pub(super) fn send_message<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[RawFd],
) -> Result<(), Error> {
    let bytes = encode(message)?;
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    loop {
        match sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop).map_err(Error::from),
        }
    }
}

/// Receives one packet. Returns `None` if the other side has closed the socket.
pub(super) fn receive_message<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<Option<(T, Vec<OwnedFd>)>, Error> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let mut control = cmsg_space!([RawFd; 3]);
    let (len_bytes, fds) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let fds =
                    received.cmsgs().map_err(Error::from)?.flat_map(received_fds).collect::<Vec<RawFd>>();
                break (received.bytes, fds);
            }
        }
    };
    let fds = fds.into_iter().map(super::sys::own_fd).collect();
    if len_bytes == 0 {
        return Ok(None);
    }
    decode(&bytes[..len_bytes]).map(|message| Some((message, fds)))
}

fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(message).map_err(Error::other)
}

fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(packet).map_err(Error::other)
}

/// Decodes a packet as a request to init or as a reply of init. For fuzzing and tests.
///
/// # Panics
/// If a decoded message changes when it is encoded and decoded again.
#[doc(hidden)]
pub fn check_packet_round_trip(is_request: bool, packet: &[u8]) {
    fn check<T: Serialize + DeserializeOwned>(packet: &[u8]) {
        let Ok(message) = decode::<T>(packet) else { return };
        let encoded = encode(&message).unwrap_or_default();
        let reencoded = decode::<T>(&encoded).ok().and_then(|decoded| encode(&decoded).ok());
        assert_eq!(
            reencoded.as_ref(),
            Some(&encoded),
            "a message changes if it is encoded and decoded again"
        );
    }
    if is_request {
        check::<ControlRequest>(packet);
        check::<SandboxInitRequest>(packet);
    } else {
        check::<ControlReply>(packet);
    }
}

/// The descriptors attached to a packet.
fn received_fds(message: ControlMessageOwned) -> Vec<RawFd> {
    if let ControlMessageOwned::ScmRights(fds) = message { fds } else { Vec::new() }
}

/// Sends one descriptor.
pub(super) fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>) -> Result<(), Error> {
    let rights = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"f")], &control, flags, None)?;
    Ok(())
}

/// Receives one descriptor. Returns `None` if the other side has closed the socket.
pub(super) fn receive_fd(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
    let (mut byte, mut control) = ([0], cmsg_space!([RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let fds: Vec<RawFd> = received.cmsgs().map_err(Error::from)?.flat_map(received_fds).collect();
                return Ok(fds.first().map(|fd| super::sys::own_fd(*fd)));
            }
        }
    }
}

/// How long the harness waits for a reply before it considers init lost.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
