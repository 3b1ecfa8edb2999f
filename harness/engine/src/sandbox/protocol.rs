//! What the harness and a sandbox's init say to each other, as data. `packet` carries it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::libc;
use scenarios::Ending;
use serde::{Deserialize, Serialize};

use super::path_bytes;
use crate::seccomp::SeccompProgram;

/// First argument that makes our own binary run as a sandbox's init.
pub(super) const INIT_ARGUMENT: &str = "__sandbox-init";
/// First argument that makes our own binary serve a file system.
pub(super) const FILE_SYSTEM_ARGUMENT: &str = "__file-system";
/// First argument that makes our own binary run as a memory balloon.
pub(super) const BALLOON_ARGUMENT: &str = "__balloon";
/// How long the harness waits for a reply before it considers init lost.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// A program to start in a sandbox. Its standard input is empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchSpec {
    /// The program, looked up in this process's PATH, and its arguments.
    pub argv: Vec<OsString>,
    /// The whole environment: no variables are inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory. Default: the harness's.
    #[serde(with = "path_bytes::optional")]
    pub cwd: Option<PathBuf>,
}

impl LaunchSpec {
    /// The command that starts the program, with an empty standard input. Returns `None` if `argv` is empty.
    pub(super) fn command(&self) -> Option<Command> {
        let (program, arguments) = self.argv.split_first()?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.env.iter().cloned()).stdin(Stdio::null());
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        Some(command)
    }

    /// The program, for error messages.
    pub(super) fn program_name(&self) -> String {
        self.argv.first().map_or_else(String::new, |program| program.to_string_lossy().into_owned())
    }
}

/// A resource of which the kernel limits how much each process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LimitedResource {
    /// Open files: `RLIMIT_NOFILE`.
    OpenFiles,
    /// The size of a file that it writes: `RLIMIT_FSIZE`.
    FileSize,
}

/// A limit on a resource of each process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimit {
    /// What is limited.
    pub resource: LimitedResource,
    /// The largest value.
    pub max: u64,
    /// Whether a process can't raise the limit again. Then the limit can't be lifted for it either.
    pub is_final: bool,
}

/// What a process is started with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartConditions {
    /// Its umask, if not the harness's.
    pub umask: Option<u32>,
    /// The standard streams that are closed: 0 is the input, 2 the error output.
    pub closed_streams: Vec<i32>,
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
    /// Decodes a wait status, as waitpid returns it.
    pub(super) fn from_wait_status(status: i32) -> ProcessExit {
        if libc::WIFSIGNALED(status) {
            ProcessExit::Signalled(libc::WTERMSIG(status))
        } else {
            ProcessExit::Exited(libc::WEXITSTATUS(status))
        }
    }

    /// The same in a record, where `None` means that the process exceeded its time limit.
    pub fn ending(exit: Option<ProcessExit>) -> Ending {
        match exit {
            Some(ProcessExit::Exited(code)) => Ending::Exited(code),
            Some(ProcessExit::Signalled(signal)) => Ending::Signalled(signal),
            None => Ending::TimedOut,
        }
    }

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
    /// Relative to the root.
    #[serde(with = "path_bytes")]
    pub(super) mount_point: PathBuf,
    pub(super) options: String,
}

/// A directory to mount at another path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BindMount {
    /// The directory, as the harness sees it. It is created if it does not exist. Below the sandbox's root it may
    /// be in a mount of the sandbox.
    #[serde(with = "path_bytes")]
    pub source: PathBuf,
    /// Where processes in the sandbox see it. It is created in the sandbox if it does not exist.
    #[serde(with = "path_bytes")]
    pub mount_point: PathBuf,
}

/// A directory that the target sees as an overlay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OverlayMount {
    /// What lies below, the topmost first, as the harness sees it. Never changed.
    #[serde(with = "path_bytes::list")]
    pub lowers: Vec<PathBuf>,
    /// Takes what the target changes. Created if it does not exist. A directory of the same name that ends in
    /// `.work` is created next to it. Both lie in a directory that is shared with the sandbox, or in a mount of
    /// it.
    #[serde(with = "path_bytes")]
    pub upper: PathBuf,
    /// Where processes in the sandbox see it: an existing directory of the host.
    #[serde(with = "path_bytes")]
    pub mount_point: PathBuf,
}

/// What a sandbox's view of the host is made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HostViewSpec {
    /// Directories that are shared with the host: what the target writes there is really written.
    #[serde(with = "path_bytes::list")]
    pub(super) real_dirs: Vec<PathBuf>,
    /// The working directory of the target.
    #[serde(with = "path_bytes")]
    pub(super) cwd: PathBuf,
    /// Files and directories whose owner or group has no number in the sandbox. The upper layers begin with
    /// copies of them, because the kernel cannot copy them when the target changes them.
    #[serde(with = "path_bytes::list")]
    pub(super) copied: Vec<PathBuf>,
    /// Directories of the harness, which are not shown.
    #[serde(with = "path_bytes::list")]
    pub(super) hidden: Vec<PathBuf>,
}

/// The first message to a new init. Mounts are made before binds, so that the source of a bind may be in a
/// mount.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxInitRequest {
    pub(super) view: HostViewSpec,
    /// The directory of the host that is the sandbox's root.
    #[serde(with = "path_bytes")]
    pub(super) root: PathBuf,
    /// Where the target sees the root. `None`: nowhere.
    #[serde(with = "path_bytes::optional")]
    pub(super) visible_root: Option<PathBuf>,
    /// Whether the sandbox has a network of its own, with a loopback interface only.
    pub(super) private_network: bool,
    /// Whether the numbers of processes begin in the upper half of their range.
    pub(super) distinct_pids: bool,
    /// The files into which a process of the target writes to join the sandbox's cgroups.
    #[serde(with = "path_bytes::list")]
    pub(super) cgroup_procs: Vec<PathBuf>,
    pub(super) mounts: Vec<TmpfsMount>,
    pub(super) binds: Vec<BindMount>,
    pub(super) overlays: Vec<OverlayMount>,
}

/// The result of a command that has ended or has exceeded its time limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedCommand {
    /// `None` if it was killed because it exceeded its time limit.
    pub exit: Option<ProcessExit>,
    /// Its standard output. If more was written than is kept, the first and the last bytes.
    pub stdout: String,
    /// Its standard error, kept in the same way.
    pub stderr: String,
    /// The lines of both outputs that match one of the patterns of the stored command, in the order in which they
    /// arrived, without colours.
    pub watched_lines: Vec<String>,
    /// How many of them are left out in the middle, because there are too many.
    pub watched_left_out: u64,
    /// Whether other processes of the command were still running when the wait for them was over. They were killed.
    pub left_processes: bool,
}

/// A path at which the target changed something that is not shared with the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OutsideChange {
    /// The path as the target sees it.
    #[serde(with = "path_bytes")]
    pub(super) path: PathBuf,
    /// Whether it was removed.
    pub(super) removed: bool,
}

/// Connections that failed in the sandbox's own network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NetworkFailures {
    /// Connections and packets to addresses that the sandbox's network does not have.
    pub(super) no_route: u64,
    /// Connections to its own addresses at which nothing listened.
    pub(super) refused: u64,
}

/// What commands have left in the sandbox's view of the host, and what they met there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SandboxTraces {
    /// What has changed in the overlays, up to a bound.
    pub(super) changes: Vec<OutsideChange>,
    /// Directories of the host that can be changed in the sandbox without changing the host.
    #[serde(with = "path_bytes::list")]
    pub(super) private_dirs: Vec<PathBuf>,
    pub(super) network_failures: NetworkFailures,
}

/// What runs a stored command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CommandRunner {
    /// Each run is a new process of the program.
    NewProcess,
    /// Each run is a fork of the fork server; `argv` is passed to it. It has the server's environment and
    /// working directory.
    ForkServer,
}

/// A command that a sandbox keeps, to be run several times. Valid for that sandbox only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCommand {
    pub(super) index: u32,
}

/// A request of the harness to init.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ControlRequest {
    /// Starts a program. Two descriptors are attached: its standard output and error. With a filter, a third
    /// one is attached: a socket through which the filter's listener is sent. It has the limits from its start on. If it
    /// is confined, the last one that is attached is a ruleset of Landlock.
    Spawn {
        id: u64,
        launch: LaunchSpec,
        filter: Option<SeccompProgram>,
        limits: Vec<ProcessLimit>,
        conditions: StartConditions,
        is_confined: bool,
    },
    /// Keeps a command that will be run several times, so that its arguments and environment are sent once.
    /// Replies with `Stored`.
    /// `patterns`: which of its lines are kept, however long its output.
    StoreCommand { launch: LaunchSpec, runner: CommandRunner, patterns: Vec<String> },
    /// Runs a stored command, kills all processes that are left of it, and replies with `CommandEnded`.
    RunStored {
        command: StoredCommand,
        timeout_ms: u64,
        /// How long the other processes of the command are waited for after its main process has ended.
        rest_ms: u64,
        max_output_bytes: usize,
        /// Before that, undoes what commands have changed in the view of the host, and replaces the network and
        /// the IPC objects if they left some.
        fresh: bool,
    },
    /// Starts a fork server. Replies with `ForkServer`.
    StartForkServer { launch: LaunchSpec },
    /// Starts a stored command of the fork server in a session of its own, as `Spawn` starts a program. Two
    /// descriptors are attached: its standard output and error.
    SpawnForked { id: u64, command: StoredCommand },
    /// Undoes what programs have changed in the view of the host, and replaces the network and the IPC objects if they
    /// left some. None of them may be running. Replies with `ForkServer`.
    Reset,
    /// Lists at most `max` changes in the view of the host since the last fresh run.
    ListChanges { max: usize },
    /// Keeps the attached descriptor open until the sandbox ends.
    HoldFd,
    /// Makes a TCP socket in the sandbox's network, and sends it through the attached socket.
    MakeTcpSocket,
    /// Kills all processes but init and the fork server.
    KillAll,
    /// Sends a signal to one process.
    Signal { pid_inside: i32, signal: i32 },
    /// Sends a signal to all processes but init.
    SignalAll { signal: i32 },
    /// Mounts a file with this text over a file of `/proc`.
    PlantProcFile {
        #[serde(with = "path_bytes")]
        path: PathBuf,
        id: u64,
        text: String,
    },
    /// Removes it.
    RemoveProcFile {
        #[serde(with = "path_bytes")]
        path: PathBuf,
        id: u64,
    },
    /// Changes a mount. The path is relative to the root.
    ChangeMount {
        #[serde(with = "path_bytes")]
        mount_point: PathBuf,
        change: MountChange,
    },
    /// Mounts a FUSE file system over a directory. The path is relative to the root. Sends through the attached socket
    /// the FUSE device, then the directory below.
    MountFuse {
        #[serde(with = "path_bytes")]
        mount_point: PathBuf,
    },
    /// Unmounts it. What is open in it stays usable.
    UnmountFuse {
        #[serde(with = "path_bytes")]
        mount_point: PathBuf,
    },
}

impl ControlRequest {
    /// The program that the request would start. `None`: it starts none.
    pub(super) fn program_name(&self) -> Option<String> {
        match self {
            ControlRequest::Spawn { launch, .. }
            | ControlRequest::StoreCommand { launch, .. }
            | ControlRequest::StartForkServer { launch } => Some(launch.program_name()),
            _ => None,
        }
    }
}

/// A message of init to the harness. Most reply to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ControlReply {
    /// Sent by init's parent: init's pid in the harness's pid namespace.
    InitStarted { pid: i32 },
    /// The sandbox is ready. `fresh_proc`: it has its own /proc. `root_fd`: init's descriptor of the root.
    Ready { fresh_proc: bool, root_fd: i32 },
    /// Replies to `Spawn` and `SpawnForked`.
    Spawned { pid_inside: i32 },
    /// Replies to `StartForkServer` and `Reset`. `None`: none was started.
    ForkServer { pid_inside: Option<i32> },
    /// Replies to `StoreCommand`.
    Stored(StoredCommand),
    /// Replies to `RunStored`.
    CommandEnded(CompletedCommand),
    /// A program could not be started, for the reason that this error number stands for.
    NotStarted { program: String, errno: i32 },
    /// Replies to `ListChanges`.
    Changes(SandboxTraces),
    /// A signal was sent, or there was no process that could receive it.
    Signalled { received: bool },
    /// Replies to the other requests. `note` is the mechanism of `ChangeMount`, and otherwise empty.
    Done { note: String },
    /// The request failed, or the sandbox could not be set up.
    Failed { doing: String, detail: String },
    /// Not a reply: a spawned process has ended.
    ProcessExited { id: u64, exit: ProcessExit },
}
