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
use super::memory::{self, MemoryLimited};
use super::message::{ANSWER, Orders, Reply, Request, TmpfsOrder, receive, receive_file, send};
use super::processes::{self, ProcessFacts};
use super::{Bind, Called, Ended, Filter, Launch, MountChange, SandboxError, WARDEN};

/// Bytes of each output of a called command that fit into one answer, escapes and all.
const CALL_KEEPS: usize = 12 * 1024;

/// How long a fork server may take to import.
const WARM_UP: Duration = Duration::from_secs(150);

/// A tmpfs below the root.
#[derive(Debug, Clone)]
pub struct TmpfsSpec {
    /// Relative to the root.
    pub at: PathBuf,
    pub size_bytes: u64,
    pub inodes: Option<u64>,
}

/// What a room is built from.
#[derive(Debug, Clone)]
pub struct RoomSpec {
    /// Existing, empty folder; the target's root is `root` in it.
    pub dir: PathBuf,
    pub mounts: Vec<TmpfsSpec>,
    /// Folders shown at other places.
    pub binds: Vec<Bind>,
    /// Targets run in a memory cgroup of their own, where one is granted.
    pub memory_cgroup: bool,
}

/// What a change to a mount came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The real mechanism, in a few words.
    pub mechanism: String,
}

/// Room in a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceFacts {
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub total_inodes: u64,
    pub free_inodes: u64,
}

/// Ends of spawned processes, as the warden tells of them.
type Ends = Arc<(Mutex<HashMap<u64, (Ended, u64)>>, Condvar)>;

/// The line to the warden; one question at a time.
pub(super) struct Line {
    socket: OwnedFd,
    answers: Mutex<Receiver<Reply>>,
}

/// A room. Dropping it ends everything in it.
pub struct Room {
    root: PathBuf,
    dir: PathBuf,
    line: Arc<Line>,
    outer: Child,
    /// Pid of the warden as the harness sees it.
    warden: i32,
    fresh_proc: bool,
    ends: Ends,
    next_id: AtomicU64,
    cgroup: Option<Arc<MemoryCgroup>>,
    listener: Option<JoinHandle<()>>,
    closed: bool,
}

/// Kills everything in a room; can be sent to another thread.
#[derive(Clone)]
pub struct Striker {
    line: Arc<Line>,
}

/// A process that was started in a room.
pub struct Running {
    id: u64,
    ends: Ends,
    pid_inside: i32,
    outputs: Option<(OwnedFd, OwnedFd)>,
}

impl Room {
    /// Builds it. When this returns, the warden waits for commands and all mounts are made.
    pub fn build(spec: RoomSpec) -> Result<Room, SandboxError> {
        let root = spec.dir.join("root");
        std::fs::create_dir_all(&root).map_err(SandboxError::file("create", &root))?;
        let cgroup = if spec.memory_cgroup { MemoryCgroup::create() } else { None };
        let mounts = spec.mounts.iter().map(|tmpfs| order(&root, tmpfs)).collect();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(SandboxError::system("make a socket"))?;
        // The image that runs, also when its file has been replaced by a newer build.
        let outer = Command::new("/proc/self/exe")
            .arg(WARDEN)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn();
        let outer = outer.map_err(SandboxError::system("start a warden"))?;
        send(ours.as_fd(), &Orders { mounts, binds: spec.binds }, &[])
            .map_err(SandboxError::system("give the warden its orders"))?;
        let (sender, answers) = channel();
        let ends = Ends::default();
        let listener = listen(&ours, sender, Arc::clone(&ends))?;
        let line = Arc::new(Line { socket: ours, answers: Mutex::new(answers) });
        let mut room = Room {
            root,
            dir: spec.dir,
            line,
            outer,
            warden: 0,
            fresh_proc: false,
            ends,
            next_id: AtomicU64::new(1),
            cgroup: cgroup.map(Arc::new),
            listener: Some(listener),
            closed: false,
        };
        room.await_warden()?;
        Ok(room)
    }

    /// `Born` comes from the warden's parent and `Ready` from the warden: in any order.
    fn await_warden(&mut self) -> Result<(), SandboxError> {
        let mut ready = false;
        while !ready || self.warden == 0 {
            match self.line.answer()? {
                Reply::Born { pid } => self.warden = pid,
                Reply::Ready { fresh_proc } => (ready, self.fresh_proc) = (true, fresh_proc),
                other => return Err(unexpected("build the room", other)),
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
    pub fn outside(&self, relative: &Path) -> PathBuf {
        self.through(&self.root.join(relative))
    }

    /// Any path as the room sees it, for the harness. Renames work only between paths that go through the same mounts.
    pub fn through(&self, inside: &Path) -> PathBuf {
        let inside = inside.strip_prefix("/").unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root", self.warden)).join(inside)
    }

    /// Starts a program.
    pub fn spawn(&self, launch: &Launch) -> Result<Running, SandboxError> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(SandboxError::system("make a pipe"));
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        self.spawn_with(launch, [their_stdout, their_stderr], None, Some((stdout, stderr)))
    }

    /// Starts a program behind a seccomp filter, with the given standard output and error. Whoever gets the listener must read it from then on: the
    /// program's start itself may wait for an answer.
    pub fn spawn_filtered(
        &self,
        launch: &Launch,
        filter: Filter,
        outputs: [OwnedFd; 2],
        attend: impl FnOnce(OwnedFd),
    ) -> Result<Running, SandboxError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(SandboxError::system("make a socket"))?;
        let line = Arc::clone(&self.line);
        std::thread::scope(|scope| {
            let spawned = scope.spawn(move || self.spawn_with(launch, outputs, Some((filter, theirs)), None));
            // None: it was never installed, and the answer of the warden says why.
            if let Some(listener) =
                receive_file(ours.as_fd()).map_err(SandboxError::system("receive a listener"))?
            {
                let held = listener.try_clone().map_err(SandboxError::system("duplicate a listener"))?;
                attend(listener);
                let running = joined(spawned)?;
                // If the harness dies, calls wait for an answer that never comes until the room is gone as well;
                // without a holder they would fail and the target would run on wrongly.
                line.ask(&Request::Hold, &[held.as_raw_fd()])?;
                return Ok(running);
            }
            joined(spawned)
        })
    }

    /// Starts a fork server: see `warm`. The room needs a /proc of its own.
    pub fn warm_up(&self, launch: &Launch) -> Result<(), SandboxError> {
        let request = Request::Warm { launch: launch.clone() };
        match self.line.ask_within(&request, &[], WARM_UP)? {
            Reply::Done { .. } => Ok(()),
            other => Err(unexpected("start a fork server", other)),
        }
    }

    /// Runs a command to its end or for so long, and kills what is left of it; `warm`: by the fork server. Of each output at most so many bytes
    /// are kept, no more than 32 KiB.
    pub fn call(
        &self,
        launch: &Launch,
        limit: Duration,
        keep_bytes: usize,
        warm: bool,
    ) -> Result<Called, SandboxError> {
        let keep_bytes = keep_bytes.min(CALL_KEEPS);
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Call { launch: launch.clone(), timeout_ms, keep_bytes, warm };
        match self.line.ask_within(&request, &[], limit.saturating_add(ANSWER))? {
            Reply::Called(called) => Ok(called),
            other => Err(unexpected("run a command", other)),
        }
    }

    fn spawn_with(
        &self,
        launch: &Launch,
        theirs: [OwnedFd; 2],
        filter: Option<(Filter, OwnedFd)>,
        outputs: Option<(OwnedFd, OwnedFd)>,
    ) -> Result<Running, SandboxError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request::Spawn {
            id,
            launch: launch.clone(),
            cgroup_procs: self.cgroup.as_deref().map(MemoryCgroup::procs),
            filter: filter.as_ref().map(|(filter, _)| filter.clone()),
        };
        let mut files: Vec<i32> = theirs.iter().map(AsRawFd::as_raw_fd).collect();
        files.extend(filter.as_ref().map(|(_, socket)| socket.as_raw_fd()));
        match self.line.ask(&request, &files)? {
            Reply::Spawned { pid_inside } => {
                Ok(Running { id, ends: Arc::clone(&self.ends), pid_inside, outputs })
            }
            other => Err(unexpected("start a program", other)),
        }
    }

    /// SIGKILL to everything in the room but its warden. Mounts and files stay. Returns when all are dead.
    pub fn strike(&self) -> Result<(), SandboxError> {
        self.striker().strike()
    }

    pub fn striker(&self) -> Striker {
        Striker { line: Arc::clone(&self.line) }
    }

    /// Sends a signal to one process of the room.
    pub fn signal(&self, pid_inside: i32, signal: i32) -> Result<(), SandboxError> {
        self.line.done(&Request::Signal { pid_inside, signal }).map(drop)
    }

    /// Changes a mount; `at` is relative to the root.
    pub fn remount(&self, at: &Path, change: MountChange) -> Result<Applied, SandboxError> {
        let mechanism = self.line.done(&Request::Mount { at: self.root.join(at), change })?;
        Ok(Applied { mechanism })
    }

    /// What is free where `at` (relative to the root) lies.
    pub fn space(&self, at: &Path) -> Result<SpaceFacts, SandboxError> {
        let path = self.outside(at);
        let facts = statvfs(&path)
            .map_err(|error| SandboxError::file("ask for the space of", &path)(error.into()))?;
        let unit = facts.fragment_size();
        Ok(SpaceFacts {
            total_bytes: facts.blocks() * unit,
            free_bytes: facts.blocks_available() * unit,
            total_inodes: facts.files(),
            free_inodes: facts.files_available(),
        })
    }

    /// Processes alive in the room, its warden left out.
    pub fn processes(&self) -> Vec<ProcessFacts> {
        processes::in_room(self.warden, self.fresh_proc)
    }

    /// From now on the room has only so much memory; dropping what is returned takes the limit back.
    pub fn limit_memory(&self, bytes: u64) -> Result<MemoryLimited, SandboxError> {
        match &self.cgroup {
            Some(cgroup) => memory::limit_cgroup(self, Arc::clone(cgroup), bytes),
            None => Ok(memory::watch(Arc::clone(&self.line), self.warden, self.fresh_proc, bytes)),
        }
    }

    /// Pid as the harness sees it of a process of the room.
    pub(super) fn pid_outside(&self, pid_inside: i32) -> Option<i32> {
        processes::pid_outside(self.warden, pid_inside)
    }

    /// Ends everything, and removes the folder and the cgroup.
    pub fn close(mut self) -> Result<(), SandboxError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), SandboxError> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        // The warden ends with the line, and everything else with the warden.
        let _ = shutdown(self.line.socket.as_raw_fd(), Shutdown::Both);
        let waited = self.outer.wait().map_err(SandboxError::system("wait for the warden"));
        let _ = self.listener.take().map(JoinHandle::join);
        waited?;
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove()?;
        }
        std::fs::remove_dir_all(&self.dir).map_err(SandboxError::file("remove", &self.dir))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What could not be removed here is swept at the next start.
        let _ = self.end();
    }
}

fn order(root: &Path, tmpfs: &TmpfsSpec) -> TmpfsOrder {
    let inodes = tmpfs.inodes.map(|inodes| format!(",nr_inodes={inodes}")).unwrap_or_default();
    TmpfsOrder { at: root.join(&tmpfs.at), options: format!("size={}{inodes},mode=0755", tmpfs.size_bytes) }
}

fn joined(
    spawned: std::thread::ScopedJoinHandle<'_, Result<Running, SandboxError>>,
) -> Result<Running, SandboxError> {
    spawned.join().unwrap_or(Err(SandboxError::WardenGone))
}

fn unexpected(doing: &str, reply: Reply) -> SandboxError {
    match reply {
        Reply::Failed { doing, detail } => SandboxError::Warden { doing, detail },
        other => SandboxError::Warden { doing: doing.into(), detail: format!("unexpected answer {other:?}") },
    }
}

/// Sorts what the warden says: ends to those who wait for them, the rest to those who asked.
fn listen(socket: &OwnedFd, answers: Sender<Reply>, ends: Ends) -> Result<JoinHandle<()>, SandboxError> {
    let socket = socket.try_clone().map_err(SandboxError::system("duplicate a socket"))?;
    Ok(std::thread::spawn(move || {
        while let Ok(Some((reply, _))) = receive::<Reply>(socket.as_fd()) {
            match reply {
                Reply::Ended { id, ended, peak_bytes } => {
                    ends.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, (ended, peak_bytes));
                    ends.1.notify_all();
                }
                answer => drop(answers.send(answer)),
            }
        }
    }))
}

impl Line {
    fn ask(&self, request: &Request, files: &[i32]) -> Result<Reply, SandboxError> {
        self.ask_within(request, files, ANSWER)
    }

    fn ask_within(&self, request: &Request, files: &[i32], wait: Duration) -> Result<Reply, SandboxError> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        send(self.socket.as_fd(), request, files).map_err(|_| SandboxError::WardenGone)?;
        answers.recv_timeout(wait).map_err(|_| SandboxError::WardenGone)
    }

    fn answer(&self) -> Result<Reply, SandboxError> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.recv_timeout(ANSWER).map_err(|_| SandboxError::WardenGone)
    }

    pub(super) fn done(&self, request: &Request) -> Result<String, SandboxError> {
        match self.ask(request, &[])? {
            Reply::Done { note } => Ok(note),
            other => Err(unexpected("obey", other)),
        }
    }
}

impl Striker {
    pub fn strike(&self) -> Result<(), SandboxError> {
        self.line.done(&Request::Strike).map(drop)
    }
}

impl Running {
    /// Its pid as the room sees it.
    pub fn pid_inside(&self) -> i32 {
        self.pid_inside
    }

    /// Gives it the reading ends of the outputs that it was started with.
    #[must_use]
    pub fn with_outputs(self, stdout: OwnedFd, stderr: OwnedFd) -> Running {
        Running { outputs: Some((stdout, stderr)), ..self }
    }

    /// Standard output and error; once.
    pub fn take_outputs(&mut self) -> Option<(OwnedFd, OwnedFd)> {
        self.outputs.take()
    }

    /// How it ended, if it did within the time.
    pub fn wait_timeout(&self, wait: Duration) -> Option<Ended> {
        let until = Instant::now() + wait;
        let mut ends = self.ends.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match ends.get(&self.id) {
                Some((ended, _)) => return Some(*ended),
                None if left.is_zero() => return None,
                None => ends = self.ends.1.wait_timeout(ends, left).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
    }

    /// Largest resident memory of it and of those of its children that it waited for, once it ended.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.ends.0.lock().unwrap_or_else(PoisonError::into_inner).get(&self.id).map(|(_, peak)| *peak)
    }
}
