//! What harness and warden say to one another: one JSON value a packet, file descriptors beside it.

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

/// Bytes of the largest packet: argument lists and environments are smaller.
const MAX_PACKET_BYTES: usize = 160 * 1024;

/// A program to be started in a room. The environment is complete: nothing is inherited. Standard input is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchSpec {
    pub argv: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    pub cwd: Option<PathBuf>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessExit {
    Exited(i32),
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
    /// The same for what may not have ended in its time.
    pub fn describe(ended: Option<ProcessExit>) -> String {
        ended.map_or_else(|| "no end within its time".into(), |ended| ended.to_string())
    }
}

/// A change to a mount below the room's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountChange {
    /// New size of a tmpfs.
    Resize {
        size_bytes: u64,
    },
    /// New number of inodes of a tmpfs.
    Inodes {
        count: u64,
    },
    ReadOnly,
    /// Takes back what `ReadOnly` did.
    Writable,
}

/// A tmpfs to be mounted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct TmpfsMount {
    pub(super) mount_point: PathBuf,
    pub(super) options: String,
}

/// A folder to be shown at another place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BindMount {
    /// As the harness sees it.
    pub source: PathBuf,
    /// Where the room shows it; an existing folder.
    pub mount_point: PathBuf,
}

/// First word to a new warden. Mounts are made before binds, so that a bind may come out of a mount.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxInitRequest {
    pub(super) mounts: Vec<TmpfsMount>,
    pub(super) binds: Vec<BindMount>,
}

/// A seccomp program, instruction by instruction: code, jump if true, jump if false, operand.
pub type SeccompFilter = Vec<(u16, u8, u8, u32)>;

/// What a command came to that was run to its end, or to the end of its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedCommand {
    /// None: it was killed when its time was over.
    pub exit: Option<ProcessExit>,
    /// What it wrote; of more than was to be kept, the first half and the last.
    pub stdout: String,
    pub stderr: String,
    /// Its main process had ended, and others of it still ran.
    pub left_processes: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ControlRequest {
    /// Two descriptors come along: standard output and error. With a filter a third one: a socket for its listener.
    Spawn {
        id: u64,
        launch: LaunchSpec,
        cgroup_procs: Option<PathBuf>,
        filter: Option<SeccompFilter>,
    },
    /// Runs a command to its end, kills what is left of it, and says what it came to.
    RunCommand {
        launch: LaunchSpec,
        timeout_ms: u64,
        max_output_bytes: usize,
        /// By the fork server that `Warm` started; the words are then for it.
        in_fork_server: bool,
    },
    /// Starts a fork server.
    StartForkServer {
        launch: LaunchSpec,
    },
    /// One descriptor comes along, to be held until the room ends.
    HoldFd,
    KillAll,
    Signal {
        pid_inside: i32,
        signal: i32,
    },
    ChangeMount {
        mount_point: PathBuf,
        change: MountChange,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ControlReply {
    /// From the warden's parent: pid of the warden as the harness sees it.
    InitStarted {
        pid: i32,
    },
    /// The room is ready; `fresh_proc` is false where /proc could not be mounted anew.
    Ready {
        fresh_proc: bool,
    },
    Spawned {
        pid_inside: i32,
    },
    CommandEnded(CompletedCommand),
    Done {
        note: String,
    },
    Failed {
        doing: String,
        detail: String,
    },
    /// Not asked for: a spawned process ended.
    ProcessExited {
        id: u64,
        exit: ProcessExit,
        peak_bytes: u64,
    },
}

/// Sends one packet.
pub(super) fn send_message<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    files: &[RawFd],
) -> Result<(), Error> {
    let bytes = serde_json::to_vec(message).map_err(Error::other)?;
    let rights = [ControlMessage::ScmRights(files)];
    let control = if files.is_empty() { &rights[..0] } else { &rights[..] };
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

/// Receives one packet; none when the other side is gone.
pub(super) fn receive_message<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> Result<Option<(T, Vec<OwnedFd>)>, Error> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let mut control = cmsg_space!([RawFd; 3]);
    let (length, files) = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let files =
                    received.cmsgs().map_err(Error::from)?.flat_map(received_fds).collect::<Vec<RawFd>>();
                break (received.bytes, files);
            }
        }
    };
    let files = files.into_iter().map(super::sys::own_fd).collect();
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&bytes[..length]).map(|message| Some((message, files))).map_err(Error::other)
}

fn received_fds(message: ControlMessageOwned) -> Vec<RawFd> {
    if let ControlMessageOwned::ScmRights(files) = message { files } else { Vec::new() }
}

/// Sends one descriptor and nothing else.
pub(super) fn send_fd(socket: BorrowedFd<'_>, file: BorrowedFd<'_>) -> Result<(), Error> {
    let rights = [file.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&rights)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"f")], &control, flags, None)?;
    Ok(())
}

/// Receives one descriptor; none when the other side is gone.
pub(super) fn receive_fd(socket: BorrowedFd<'_>) -> Result<Option<OwnedFd>, Error> {
    let (mut byte, mut control) = ([0], cmsg_space!([RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(received) => {
                let files: Vec<RawFd> =
                    received.cmsgs().map_err(Error::from)?.flat_map(received_fds).collect();
                return Ok(files.first().map(|file| super::sys::own_fd(*file)));
            }
        }
    }
}

/// How long the harness waits for an answer before it takes the warden for lost.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
