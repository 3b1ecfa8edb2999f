//! The harness's handle on a sandbox: builds it, sends requests to its init process, and tears it down.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use nix::sys::statvfs::statvfs;
use nix::unistd::pipe2;

use super::cgroup::MemoryCgroup;
use super::memory::{self, ActiveMemoryLimit};
use super::processes::{self, ProcessInfo};
use super::protocol::{
    ControlReply, ControlRequest, REPLY_TIMEOUT, SandboxInitRequest, TmpfsMount, receive_fd, receive_message,
    send_message,
};
use super::{
    BindMount, CompletedCommand, INIT_ARGUMENT, LaunchSpec, MountChange, ProcessExit, SandboxError,
    SeccompFilter,
};
use crate::locks::LockExt;

/// Bytes kept of each output of a command. Both outputs must fit into one reply, even if every byte is
/// escaped.
const MAX_OUTPUT_BYTES: usize = 12 * 1024;

/// How long the start of a fork server may take, imports included. Longer than init's own limit.
const FORK_SERVER_TIMEOUT: Duration = Duration::from_secs(150);

/// A tmpfs below the root.
#[derive(Debug, Clone)]
pub struct TmpfsSpec {
    /// Relative to the root.
    pub mount_point: PathBuf,
    /// Size limit.
    pub size_bytes: u64,
    /// Limit on the number of inodes. Default: the kernel's default for a tmpfs.
    pub inodes: Option<u64>,
}

/// What a sandbox is built from.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// An existing, empty directory. The sandbox's root is `root` in it.
    pub dir: PathBuf,
    /// Mounted before `binds`.
    pub mounts: Vec<TmpfsSpec>,
    /// Directories that are mounted a second time, at other paths.
    pub binds: Vec<BindMount>,
    /// Runs targets in their own memory cgroup, if this machine permits one.
    pub memory_cgroup: bool,
}

/// How a change to a mount was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedMountChange {
    /// The mechanism that was used, in a few words.
    pub mechanism: String,
}

/// Total and free space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystemSpace {
    /// Size of the file system.
    pub total_bytes: u64,
    /// Free space for unprivileged users.
    pub free_bytes: u64,
    /// Number of inodes, used and free.
    pub total_inodes: u64,
    /// Free inodes for unprivileged users.
    pub free_inodes: u64,
}

/// Exit and peak resident bytes of spawned processes, by spawn id, as reported by init.
type ProcessExits = Arc<(Mutex<HashMap<u64, (ProcessExit, u64)>>, Condvar)>;

/// The socket to init. It carries one request at a time.
pub(super) struct ControlSocket {
    socket: OwnedFd,
    replies: Mutex<Receiver<ControlReply>>,
}

/// A sandbox. Dropping it kills every process in it and removes its files.
pub struct Sandbox {
    root: PathBuf,
    dir: PathBuf,
    control: Arc<ControlSocket>,
    init_parent: Child,
    /// Pid of init in the harness's pid namespace.
    init_pid: i32,
    /// Whether the sandbox has its own /proc.
    fresh_proc: bool,
    exits: ProcessExits,
    next_id: AtomicU64,
    cgroup: Option<Arc<MemoryCgroup>>,
    reader_thread: Option<JoinHandle<()>>,
    closed: bool,
}

/// Kills all processes in a sandbox. It can be sent to another thread.
#[derive(Clone)]
pub struct KillSwitch {
    control: Arc<ControlSocket>,
}

/// A process that was started in a sandbox.
pub struct SpawnedProcess {
    id: u64,
    exits: ProcessExits,
    pid_inside: i32,
    outputs: Option<(OwnedFd, OwnedFd)>,
}

impl Sandbox {
    /// Builds a sandbox. On return all mounts exist and init waits for requests.
    ///
    /// # Errors
    /// If this machine does not permit namespaces or mounts, or a directory can't be created.
    pub fn build(spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        let root = spec.dir.join("root");
        std::fs::create_dir_all(&root).map_err(SandboxError::file("create", &root))?;
        let cgroup = if spec.memory_cgroup { MemoryCgroup::create() } else { None };
        let mounts = spec.mounts.iter().map(|tmpfs| tmpfs_mount(&root, tmpfs)).collect();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(SandboxError::system("make a socket"))?;
        // /proc/self/exe is the running image, also if its file has been replaced by a newer build.
        let init_parent = Command::new("/proc/self/exe")
            .arg(INIT_ARGUMENT)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn();
        let init_parent = init_parent.map_err(SandboxError::system("start the sandbox's init"))?;
        send_message(ours.as_fd(), &SandboxInitRequest { mounts, binds: spec.binds }, &[])
            .map_err(SandboxError::system("send the specification to the sandbox's init"))?;
        let (sender, replies) = channel();
        let exits = ProcessExits::default();
        let reader_thread = start_reader(&ours, sender, Arc::clone(&exits))?;
        let control = Arc::new(ControlSocket { socket: ours, replies: Mutex::new(replies) });
        let mut sandbox = Sandbox {
            root,
            dir: spec.dir,
            control,
            init_parent,
            init_pid: 0,
            fresh_proc: false,
            exits,
            next_id: AtomicU64::new(1),
            cgroup: cgroup.map(Arc::new),
            reader_thread: Some(reader_thread),
            closed: false,
        };
        sandbox.await_init()?;
        Ok(sandbox)
    }

    /// Waits for `InitStarted`, sent by init's parent, and `Ready`, sent by init, in any order.
    fn await_init(&mut self) -> Result<(), SandboxError> {
        let mut ready = false;
        while !ready || self.init_pid == 0 {
            match self.control.next_reply()? {
                ControlReply::InitStarted { pid } => self.init_pid = pid,
                ControlReply::Ready { fresh_proc } => (ready, self.fresh_proc) = (true, fresh_proc),
                other => return Err(unexpected_reply("build the sandbox", other)),
            }
        }
        Ok(())
    }

    /// The sandbox's root directory, as processes in the sandbox see it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the sandbox has its own /proc, which shows only its own processes.
    pub fn has_fresh_proc(&self) -> bool {
        self.fresh_proc
    }

    /// The path by which the harness reaches a file in the sandbox's mounts. `relative` is relative to the
    /// root.
    pub fn host_path_in_root(&self, relative: &Path) -> PathBuf {
        self.host_path(&self.root.join(relative))
    }

    /// The path by which the harness reaches a file in the sandbox's mounts. `inside` is the path as
    /// processes in the sandbox see it. A rename works only between two paths that this function returned.
    pub fn host_path(&self, inside: &Path) -> PathBuf {
        let inside = inside.strip_prefix("/").unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root", self.init_pid)).join(inside)
    }

    /// Starts a program, with pipes as its standard output and error.
    ///
    /// # Errors
    /// If the program can't be started, or init has ended.
    pub fn spawn(&self, launch: &LaunchSpec) -> Result<SpawnedProcess, SandboxError> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::system("make a pipe"));
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        self.spawn_with(launch, [their_stdout, their_stderr], None, Some((stdout, stderr)))
    }

    /// Starts a program behind a seccomp filter, with the given standard output and error.
    ///
    /// `serve` receives the filter's listener and must start to respond to it: the start of the program may
    /// already wait for a response.
    ///
    /// # Errors
    /// If the filter can't be installed, the program can't be started, or init has ended.
    pub fn spawn_filtered(
        &self,
        launch: &LaunchSpec,
        filter: SeccompFilter,
        outputs: [OwnedFd; 2],
        serve: impl FnOnce(OwnedFd),
    ) -> Result<SpawnedProcess, SandboxError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(SandboxError::system("make a socket"))?;
        let control = Arc::clone(&self.control);
        std::thread::scope(|scope| {
            let spawned = scope.spawn(move || self.spawn_with(launch, outputs, Some((filter, theirs)), None));
            // Without a listener the filter was not installed, and init's reply to the spawn request contains
            // the reason.
            if let Some(listener) =
                receive_fd(ours.as_fd()).map_err(SandboxError::system("receive a listener"))?
            {
                let duplicate = listener.try_clone().map_err(SandboxError::system("duplicate a listener"))?;
                serve(listener);
                let process = join_spawned(spawned)?;
                // Init holds the listener, so that pending calls keep waiting if the harness is killed, until
                // the sandbox ends too. With the listener closed they would fail, and the target would
                // continue wrongly.
                control.request(&ControlRequest::HoldFd, &[duplicate.as_raw_fd()])?;
                return Ok(process);
            }
            join_spawned(spawned)
        })
    }

    /// Starts a fork server; see `fork_server`. Needs a sandbox with its own /proc.
    ///
    /// # Errors
    /// If the server does not become ready in time, or init has ended.
    pub fn start_fork_server(&self, launch: &LaunchSpec) -> Result<(), SandboxError> {
        let request = ControlRequest::StartForkServer { launch: launch.clone() };
        match self.control.request_within(&request, &[], FORK_SERVER_TIMEOUT)? {
            ControlReply::Done { .. } => Ok(()),
            other => Err(unexpected_reply("start a fork server", other)),
        }
    }

    /// Runs a command until it ends or `limit` has passed, then kills all processes that are left of it.
    ///
    /// `in_fork_server`: the fork server runs it. At most `max_output_bytes` of each output are kept, and
    /// never more than 12 KiB.
    ///
    /// # Errors
    /// If the command can't be started, or init has ended.
    pub fn run_command(
        &self,
        launch: &LaunchSpec,
        limit: Duration,
        max_output_bytes: usize,
        in_fork_server: bool,
    ) -> Result<CompletedCommand, SandboxError> {
        let max_output_bytes = max_output_bytes.min(MAX_OUTPUT_BYTES);
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = ControlRequest::RunCommand {
            launch: launch.clone(),
            timeout_ms,
            max_output_bytes,
            in_fork_server,
        };
        match self.control.request_within(&request, &[], limit.saturating_add(REPLY_TIMEOUT))? {
            ControlReply::CommandEnded(completed) => Ok(completed),
            other => Err(unexpected_reply("run a command", other)),
        }
    }

    fn spawn_with(
        &self,
        launch: &LaunchSpec,
        child_outputs: [OwnedFd; 2],
        filter: Option<(SeccompFilter, OwnedFd)>,
        outputs: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<SpawnedProcess, SandboxError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = ControlRequest::Spawn {
            id,
            launch: launch.clone(),
            cgroup_procs: self.cgroup.as_deref().map(MemoryCgroup::procs_file),
            filter: filter.as_ref().map(|(filter, _)| filter.clone()),
        };
        let mut files: Vec<i32> = child_outputs.iter().map(AsRawFd::as_raw_fd).collect();
        files.extend(filter.as_ref().map(|(_, socket)| socket.as_raw_fd()));
        match self.control.request(&request, &files)? {
            ControlReply::Spawned { pid_inside } => {
                Ok(SpawnedProcess { id, exits: Arc::clone(&self.exits), pid_inside, outputs })
            }
            other => Err(unexpected_reply("start a program", other)),
        }
    }

    /// Kills all processes in the sandbox but its init, with SIGKILL. Mounts and files stay. Returns when all
    /// processes have ended.
    ///
    /// # Errors
    /// If init has ended.
    pub fn kill_all(&self) -> Result<(), SandboxError> {
        self.kill_switch().kill_all()
    }

    /// A handle that can kill all processes from another thread.
    pub fn kill_switch(&self) -> KillSwitch {
        KillSwitch { control: Arc::clone(&self.control) }
    }

    /// Sends a signal to one process in the sandbox, by its pid within the sandbox. Returns whether there was
    /// such a process.
    ///
    /// # Errors
    /// If there is no such signal, or init has ended.
    pub fn signal(&self, pid_inside: i32, signal: i32) -> Result<bool, SandboxError> {
        self.control.send_signal(&ControlRequest::Signal { pid_inside, signal })
    }

    /// Sends a signal to all processes in the sandbox but its init. Returns whether there was one.
    ///
    /// # Errors
    /// If there is no such signal, or init has ended.
    pub fn signal_all(&self, signal: i32) -> Result<bool, SandboxError> {
        self.control.send_signal(&ControlRequest::SignalAll { signal })
    }

    /// Changes a mount. `mount_point` is relative to the root.
    ///
    /// # Errors
    /// If the kernel refuses the change, or init has ended.
    pub fn change_mount(
        &self,
        mount_point: &Path,
        change: MountChange,
    ) -> Result<AppliedMountChange, SandboxError> {
        let mechanism = self
            .control
            .execute(&ControlRequest::ChangeMount { mount_point: self.root.join(mount_point), change })?;
        Ok(AppliedMountChange { mechanism })
    }

    /// Total and free space of the file system that contains `relative` (a path relative to the root).
    ///
    /// # Errors
    /// If there is no such path.
    pub fn file_system_space(&self, relative: &Path) -> Result<FileSystemSpace, SandboxError> {
        let path = self.host_path_in_root(relative);
        let space = statvfs(&path)
            .map_err(|error| SandboxError::file("read the free space of", &path)(error.into()))?;
        let block_bytes = space.fragment_size();
        Ok(FileSystemSpace {
            total_bytes: space.blocks() * block_bytes,
            free_bytes: space.blocks_available() * block_bytes,
            total_inodes: space.files(),
            free_inodes: space.files_available(),
        })
    }

    /// The running processes in the sandbox, without its init.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        processes::in_sandbox(self.init_pid, self.fresh_proc)
    }

    /// Limits the memory of the sandbox. Dropping the returned value removes the limit.
    ///
    /// # Errors
    /// If the limit can't be set.
    pub fn limit_memory(&self, bytes: u64) -> Result<ActiveMemoryLimit, SandboxError> {
        match &self.cgroup {
            Some(cgroup) => memory::limit_cgroup(self, Arc::clone(cgroup), bytes),
            None => {
                Ok(memory::start_watcher(Arc::clone(&self.control), self.init_pid, self.fresh_proc, bytes))
            }
        }
    }

    /// The pid, in the harness's pid namespace, of a process in the sandbox.
    pub(super) fn pid_outside(&self, pid_inside: i32) -> Option<i32> {
        processes::pid_outside(self.init_pid, pid_inside)
    }

    /// Kills everything in the sandbox, and removes its directory and cgroup.
    ///
    /// # Errors
    /// If the directory or the cgroup can't be removed.
    pub fn close(mut self) -> Result<(), SandboxError> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<(), SandboxError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        // Init ends when the socket is closed, and the kernel then kills all other processes.
        let _ = shutdown(self.control.socket.as_raw_fd(), Shutdown::Both);
        let waited = self.init_parent.wait().map_err(SandboxError::system("wait for the sandbox's init"));
        let _ = self.reader_thread.take().map(JoinHandle::join);
        waited?;
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove()?;
        }
        std::fs::remove_dir_all(&self.dir).map_err(SandboxError::file("remove", &self.dir))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // `remove_leftovers` of a later run removes what could not be removed here.
        let _ = self.tear_down();
    }
}

fn tmpfs_mount(root: &Path, tmpfs: &TmpfsSpec) -> TmpfsMount {
    let inodes = tmpfs.inodes.map(|inodes| format!(",nr_inodes={inodes}")).unwrap_or_default();
    TmpfsMount {
        mount_point: root.join(&tmpfs.mount_point),
        options: format!("size={}{inodes},mode=0755", tmpfs.size_bytes),
    }
}

fn join_spawned(
    spawned: std::thread::ScopedJoinHandle<'_, Result<SpawnedProcess, SandboxError>>,
) -> Result<SpawnedProcess, SandboxError> {
    spawned.join().unwrap_or(Err(SandboxError::InitGone))
}

fn unexpected_reply(doing: &str, reply: ControlReply) -> SandboxError {
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
    exits: ProcessExits,
) -> Result<JoinHandle<()>, SandboxError> {
    let socket = socket.try_clone().map_err(SandboxError::system("duplicate a socket"))?;
    Ok(std::thread::spawn(move || {
        while let Ok(Some((reply, _))) = receive_message::<ControlReply>(socket.as_fd()) {
            match reply {
                ControlReply::ProcessExited { id, exit, peak_bytes } => {
                    exits.0.locked().insert(id, (exit, peak_bytes));
                    exits.1.notify_all();
                }
                reply => drop(replies.send(reply)),
            }
        }
    }))
}

impl ControlSocket {
    fn request(&self, request: &ControlRequest, files: &[i32]) -> Result<ControlReply, SandboxError> {
        self.request_within(request, files, REPLY_TIMEOUT)
    }

    fn request_within(
        &self,
        request: &ControlRequest,
        files: &[i32],
        wait: Duration,
    ) -> Result<ControlReply, SandboxError> {
        let replies = self.replies.locked();
        send_message(self.socket.as_fd(), request, files).map_err(|_| SandboxError::InitGone)?;
        replies.recv_timeout(wait).map_err(|_| SandboxError::InitGone)
    }

    fn next_reply(&self) -> Result<ControlReply, SandboxError> {
        let replies = self.replies.locked();
        replies.recv_timeout(REPLY_TIMEOUT).map_err(|_| SandboxError::InitGone)
    }

    /// Sends a request whose reply is `Done`, and returns its note.
    pub(super) fn execute(&self, request: &ControlRequest) -> Result<String, SandboxError> {
        match self.request(request, &[])? {
            ControlReply::Done { note } => Ok(note),
            other => Err(unexpected_reply("handle a request", other)),
        }
    }

    /// Sends a signal request. Returns whether a process received the signal.
    ///
    /// # Errors
    /// If init reports a failure, or has ended.
    pub(super) fn send_signal(&self, request: &ControlRequest) -> Result<bool, SandboxError> {
        match self.request(request, &[])? {
            ControlReply::Signalled { received } => Ok(received),
            other => Err(unexpected_reply("send a signal", other)),
        }
    }
}

impl KillSwitch {
    /// Kills all processes in the sandbox but its init. Returns when they have ended.
    ///
    /// # Errors
    /// If init has ended.
    pub fn kill_all(&self) -> Result<(), SandboxError> {
        self.control.execute(&ControlRequest::KillAll).map(drop)
    }
}

impl SpawnedProcess {
    /// Its pid within the sandbox.
    pub fn pid_inside(&self) -> i32 {
        self.pid_inside
    }

    /// Attaches the reading ends of the pipes that are its standard output and error.
    #[must_use]
    pub fn with_outputs(self, stdout: OwnedFd, stderr: OwnedFd) -> SpawnedProcess {
        SpawnedProcess { outputs: Some((stdout, stderr)), ..self }
    }

    /// The reading ends of its standard output and error. Returns `None` on later calls.
    pub fn take_outputs(&mut self) -> Option<(OwnedFd, OwnedFd)> {
        self.outputs.take()
    }

    /// Waits until the process ends. Returns `None` if it is still running after `wait`.
    pub fn wait_timeout(&self, wait: Duration) -> Option<ProcessExit> {
        let deadline = Instant::now() + wait;
        let mut exits = self.exits.0.locked();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match exits.get(&self.id) {
                Some((exit, _)) => return Some(*exit),
                None if left.is_zero() => return None,
                None => {
                    exits = self.exits.1.wait_timeout(exits, left).unwrap_or_else(PoisonError::into_inner).0
                }
            }
        }
    }

    /// Peak resident memory of the process and of the children that it waited for. `None` until it has ended.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.exits.0.locked().get(&self.id).map(|(_, peak)| *peak)
    }
}
