//! A room as the harness holds it.

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

/// Bytes of each output of a called command that fit into one answer, escapes and all.
const MAX_OUTPUT_BYTES: usize = 12 * 1024;

/// How long a fork server may take to import.
const FORK_SERVER_TIMEOUT: Duration = Duration::from_secs(150);

/// A tmpfs below the root.
#[derive(Debug, Clone)]
pub struct TmpfsSpec {
    /// Relative to the root.
    pub mount_point: PathBuf,
    pub size_bytes: u64,
    pub inodes: Option<u64>,
}

/// What a room is built from.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Existing, empty folder; the target's root is `root` in it.
    pub dir: PathBuf,
    pub mounts: Vec<TmpfsSpec>,
    /// Folders shown at other places.
    pub binds: Vec<BindMount>,
    /// Targets run in a memory cgroup of their own, where one is granted.
    pub memory_cgroup: bool,
}

/// What a change to a mount came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedMountChange {
    /// The real mechanism, in a few words.
    pub mechanism: String,
}

/// Room in a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystemSpace {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
}

/// Ends of spawned processes, as the warden tells of them.
type ProcessExits = Arc<(Mutex<HashMap<u64, (ProcessExit, u64)>>, Condvar)>;

/// The line to the warden; one question at a time.
pub(super) struct ControlSocket {
    socket: OwnedFd,
    replies: Mutex<Receiver<ControlReply>>,
}

/// A room. Dropping it ends everything in it.
pub struct Sandbox {
    root: PathBuf,
    dir: PathBuf,
    control: Arc<ControlSocket>,
    init_parent: Child,
    /// Pid of the warden as the harness sees it.
    init_pid: i32,
    fresh_proc: bool,
    exits: ProcessExits,
    next_id: AtomicU64,
    cgroup: Option<Arc<MemoryCgroup>>,
    reader_thread: Option<JoinHandle<()>>,
    closed: bool,
}

/// Kills everything in a room; can be sent to another thread.
#[derive(Clone)]
pub struct KillSwitch {
    control: Arc<ControlSocket>,
}

/// A process that was started in a room.
pub struct SpawnedProcess {
    id: u64,
    exits: ProcessExits,
    pid_inside: i32,
    outputs: Option<(OwnedFd, OwnedFd)>,
}

impl Sandbox {
    /// Builds it. When this returns, the warden waits for commands and all mounts are made.
    pub fn build(spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        let root = spec.dir.join("root");
        std::fs::create_dir_all(&root).map_err(SandboxError::file("create", &root))?;
        let cgroup = if spec.memory_cgroup { MemoryCgroup::create() } else { None };
        let mounts = spec.mounts.iter().map(|tmpfs| tmpfs_mount(&root, tmpfs)).collect();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(SandboxError::system("make a socket"))?;
        // The image that runs, also when its file has been replaced by a newer build.
        let outer = Command::new("/proc/self/exe")
            .arg(INIT_ARGUMENT)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn();
        let outer = outer.map_err(SandboxError::system("start a warden"))?;
        send_message(ours.as_fd(), &SandboxInitRequest { mounts, binds: spec.binds }, &[])
            .map_err(SandboxError::system("give the warden its orders"))?;
        let (sender, answers) = channel();
        let ends = ProcessExits::default();
        let listener = start_reader(&ours, sender, Arc::clone(&ends))?;
        let line = Arc::new(ControlSocket { socket: ours, replies: Mutex::new(answers) });
        let mut room = Sandbox {
            root,
            dir: spec.dir,
            control: line,
            init_parent: outer,
            init_pid: 0,
            fresh_proc: false,
            exits: ends,
            next_id: AtomicU64::new(1),
            cgroup: cgroup.map(Arc::new),
            reader_thread: Some(listener),
            closed: false,
        };
        room.await_init()?;
        Ok(room)
    }

    /// `Born` comes from the warden's parent and `Ready` from the warden: in any order.
    fn await_init(&mut self) -> Result<(), SandboxError> {
        let mut ready = false;
        while !ready || self.init_pid == 0 {
            match self.control.next_reply()? {
                ControlReply::InitStarted { pid } => self.init_pid = pid,
                ControlReply::Ready { fresh_proc } => (ready, self.fresh_proc) = (true, fresh_proc),
                other => return Err(unexpected_reply("build the room", other)),
            }
        }
        Ok(())
    }

    /// The target's folder, as it sees it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether processes of the room see a /proc of their own.
    pub fn has_fresh_proc(&self) -> bool {
        self.fresh_proc
    }

    /// A file below the root as the harness reaches it, through all the room's mounts.
    pub fn host_path_in_root(&self, relative: &Path) -> PathBuf {
        self.host_path(&self.root.join(relative))
    }

    /// Any path as the room sees it, for the harness. Renames work only between paths that go through the same mounts.
    pub fn host_path(&self, inside: &Path) -> PathBuf {
        let inside = inside.strip_prefix("/").unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root", self.init_pid)).join(inside)
    }

    /// Starts a program.
    pub fn spawn(&self, launch: &LaunchSpec) -> Result<SpawnedProcess, SandboxError> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::system("make a pipe"));
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        self.spawn_with(launch, [their_stdout, their_stderr], None, Some((stdout, stderr)))
    }

    /// Starts a program behind a seccomp filter, with the given standard output and error. Whoever gets the listener must read it from then on: the
    /// program's start itself may wait for an answer.
    pub fn spawn_filtered(
        &self,
        launch: &LaunchSpec,
        filter: SeccompFilter,
        outputs: [OwnedFd; 2],
        attend: impl FnOnce(OwnedFd),
    ) -> Result<SpawnedProcess, SandboxError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(SandboxError::system("make a socket"))?;
        let line = Arc::clone(&self.control);
        std::thread::scope(|scope| {
            let spawned = scope.spawn(move || self.spawn_with(launch, outputs, Some((filter, theirs)), None));
            // None: it was never installed, and the answer of the warden says why.
            if let Some(listener) =
                receive_fd(ours.as_fd()).map_err(SandboxError::system("receive a listener"))?
            {
                let held = listener.try_clone().map_err(SandboxError::system("duplicate a listener"))?;
                attend(listener);
                let running = join_spawned(spawned)?;
                // If the harness dies, calls wait for an answer that never comes until the room is gone as well;
                // without a holder they would fail and the target would run on wrongly.
                line.request(&ControlRequest::HoldFd, &[held.as_raw_fd()])?;
                return Ok(running);
            }
            join_spawned(spawned)
        })
    }

    /// Starts a fork server: see `warm`. The room needs a /proc of its own.
    pub fn start_fork_server(&self, launch: &LaunchSpec) -> Result<(), SandboxError> {
        let request = ControlRequest::StartForkServer { launch: launch.clone() };
        match self.control.request_within(&request, &[], FORK_SERVER_TIMEOUT)? {
            ControlReply::Done { .. } => Ok(()),
            other => Err(unexpected_reply("start a fork server", other)),
        }
    }

    /// Runs a command to its end or for so long, and kills what is left of it; `warm`: by the fork server. Of each output at most so many bytes
    /// are kept, no more than 32 KiB.
    pub fn run_command(
        &self,
        launch: &LaunchSpec,
        limit: Duration,
        keep_bytes: usize,
        warm: bool,
    ) -> Result<CompletedCommand, SandboxError> {
        let keep_bytes = keep_bytes.min(MAX_OUTPUT_BYTES);
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = ControlRequest::RunCommand {
            launch: launch.clone(),
            timeout_ms,
            max_output_bytes: keep_bytes,
            in_fork_server: warm,
        };
        match self.control.request_within(&request, &[], limit.saturating_add(REPLY_TIMEOUT))? {
            ControlReply::CommandEnded(called) => Ok(called),
            other => Err(unexpected_reply("run a command", other)),
        }
    }

    fn spawn_with(
        &self,
        launch: &LaunchSpec,
        theirs: [OwnedFd; 2],
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
        let mut files: Vec<i32> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        files.extend(filter.as_ref().map(|(_, socket)| socket.as_raw_fd()));
        match self.control.request(&request, &files)? {
            ControlReply::Spawned { pid_inside } => {
                Ok(SpawnedProcess { id, exits: Arc::clone(&self.exits), pid_inside, outputs })
            }
            other => Err(unexpected_reply("start a program", other)),
        }
    }

    /// SIGKILL to everything in the room but its warden. Mounts and files stay. Returns when all are dead.
    pub fn kill_all(&self) -> Result<(), SandboxError> {
        self.kill_switch().kill_all()
    }

    pub fn kill_switch(&self) -> KillSwitch {
        KillSwitch { control: Arc::clone(&self.control) }
    }

    /// Sends a signal to one process of the room.
    pub fn signal(&self, pid_inside: i32, signal: i32) -> Result<(), SandboxError> {
        self.control.execute(&ControlRequest::Signal { pid_inside, signal }).map(drop)
    }

    /// Changes a mount; `at` is relative to the root.
    pub fn change_mount(&self, at: &Path, change: MountChange) -> Result<AppliedMountChange, SandboxError> {
        let mechanism =
            self.control.execute(&ControlRequest::ChangeMount { mount_point: self.root.join(at), change })?;
        Ok(AppliedMountChange { mechanism })
    }

    /// What is free where `at` (relative to the root) lies.
    pub fn file_system_space(&self, at: &Path) -> Result<FileSystemSpace, SandboxError> {
        let path = self.host_path_in_root(at);
        let facts = statvfs(&path)
            .map_err(|error| SandboxError::file("ask for the space of", &path)(error.into()))?;
        let unit = facts.fragment_size();
        Ok(FileSystemSpace {
            total_bytes: facts.blocks() * unit,
            free_bytes: facts.blocks_available() * unit,
            total_inodes: facts.files(),
            free_inodes: facts.files_available(),
        })
    }

    /// Processes alive in the room, its warden left out.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        processes::in_sandbox(self.init_pid, self.fresh_proc)
    }

    /// From now on the room has only so much memory; dropping what is returned takes the limit back.
    pub fn limit_memory(&self, bytes: u64) -> Result<ActiveMemoryLimit, SandboxError> {
        match &self.cgroup {
            Some(cgroup) => memory::limit_cgroup(self, Arc::clone(cgroup), bytes),
            None => {
                Ok(memory::start_watcher(Arc::clone(&self.control), self.init_pid, self.fresh_proc, bytes))
            }
        }
    }

    /// Pid as the harness sees it of a process of the room.
    pub(super) fn pid_outside(&self, pid_inside: i32) -> Option<i32> {
        processes::pid_outside(self.init_pid, pid_inside)
    }

    /// Ends everything, and removes the folder and the cgroup.
    pub fn close(mut self) -> Result<(), SandboxError> {
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<(), SandboxError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        // The warden ends with the line, and everything else with the warden.
        let _ = shutdown(self.control.socket.as_raw_fd(), Shutdown::Both);
        let waited = self.init_parent.wait().map_err(SandboxError::system("wait for the warden"));
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
        // What could not be removed here is swept at the next start.
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
        other => SandboxError::Init { doing: doing.into(), detail: format!("unexpected answer {other:?}") },
    }
}

/// Sorts what the warden says: ends to those who wait for them, the rest to those who asked.
fn start_reader(
    socket: &OwnedFd,
    answers: Sender<ControlReply>,
    ends: ProcessExits,
) -> Result<JoinHandle<()>, SandboxError> {
    let socket = socket.try_clone().map_err(SandboxError::system("duplicate a socket"))?;
    Ok(std::thread::spawn(move || {
        while let Ok(Some((reply, _))) = receive_message::<ControlReply>(socket.as_fd()) {
            match reply {
                ControlReply::ProcessExited { id, exit: ended, peak_bytes } => {
                    ends.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (ended, peak_bytes));
                    ends.1.notify_all();
                }
                answer => drop(answers.send(answer)),
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
        let answers = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        send_message(self.socket.as_fd(), request, files).map_err(|_| SandboxError::InitGone)?;
        answers.recv_timeout(wait).map_err(|_| SandboxError::InitGone)
    }

    fn next_reply(&self) -> Result<ControlReply, SandboxError> {
        let answers = self.replies.lock().unwrap_or_else(PoisonError::into_inner);
        answers.recv_timeout(REPLY_TIMEOUT).map_err(|_| SandboxError::InitGone)
    }

    pub(super) fn execute(&self, request: &ControlRequest) -> Result<String, SandboxError> {
        match self.request(request, &[])? {
            ControlReply::Done { note } => Ok(note),
            other => Err(unexpected_reply("obey", other)),
        }
    }
}

impl KillSwitch {
    pub fn kill_all(&self) -> Result<(), SandboxError> {
        self.control.execute(&ControlRequest::KillAll).map(drop)
    }
}

impl SpawnedProcess {
    /// Its pid as the room sees it.
    pub fn pid_inside(&self) -> i32 {
        self.pid_inside
    }

    /// Gives it the reading ends of the outputs that it was started with.
    #[must_use]
    pub fn with_outputs(self, stdout: OwnedFd, stderr: OwnedFd) -> SpawnedProcess {
        SpawnedProcess { outputs: Some((stdout, stderr)), ..self }
    }

    /// Standard output and error; once.
    pub fn take_outputs(&mut self) -> Option<(OwnedFd, OwnedFd)> {
        self.outputs.take()
    }

    /// How it ended, if it did within the time.
    pub fn wait_timeout(&self, wait: Duration) -> Option<ProcessExit> {
        let until = Instant::now() + wait;
        let mut ends = self.exits.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match ends.get(&self.id) {
                Some((ended, _)) => return Some(*ended),
                None if left.is_zero() => return None,
                None => {
                    ends = self.exits.1.wait_timeout(ends, left).unwrap_or_else(PoisonError::into_inner).0
                }
            }
        }
    }

    /// Largest resident memory of it and of those of its children that it waited for, once it ended.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.exits.0.lock().unwrap_or_else(PoisonError::into_inner).get(&self.id).map(|(_, peak)| *peak)
    }
}
