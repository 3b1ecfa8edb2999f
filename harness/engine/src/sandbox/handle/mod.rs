//! The harness's handle on a sandbox: builds it, lets its init start programs and change mounts, and tears it
//! down. `stored_commands` has the part about commands that it keeps and runs again and again.

mod confined_starts;
mod file_systems;
mod network_sockets;
mod planted_proc_files;
mod resource_limits;
mod stored_commands;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64};
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;

use nix::sys::statvfs::statvfs;
use scenarios::SandboxHint;

use super::cgroup::{Controller, MemoryCgroup, ProcessCgroup};
use super::confinement::Confinement;
use super::error::SandboxError;
use super::hints::hints_of;
use super::host_access::{HostAccess, NetworkAccess};
use super::init_client::{
    InitClient, KillSwitch, ReadyInit, SpawnFilter, SpawnSpec, full_device, unexpected_reply,
};
use super::memory::{self, ActiveMemoryLimit, BalloonHost};
use super::output_pause::OutputPause;
use super::packet::{PacketSocketPair, receive_fd, send_message};
use super::processes::{ProcessInfo, ProcessUse};
use super::protocol::{
    BindMount, ControlReply, ControlRequest, HostViewSpec, INIT_ARGUMENT, LaunchSpec, MountChange,
    OverlayMount, ProcessLimit, SandboxInitRequest, TmpfsMount,
};
use super::remove_tree::remove_tree;
use super::rundir::runs_paths_of_all_users;
use super::spawned_process::SpawnedProcess;
use super::start_changes::StartChanges;
use super::unmapped_files::unmapped_files;
use crate::landlock::LandlockRules;
use crate::locks::LockExt;
use crate::seccomp::SeccompProgram;

pub use network_sockets::{connect_to, listen_at};
pub use planted_proc_files::PlantedProcFile;
pub use stored_commands::RunTimes;

/// At most this many changes outside of the shared directories are listed.
const MAX_CHANGES: usize = 10_000;

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
    /// Where processes in the sandbox see the root. Default: nowhere.
    pub visible_root: Option<PathBuf>,
    /// Whether processes get numbers that no recording contains, so that a recorded pid file never names one.
    pub distinct_pids: bool,
    /// Mounted before `binds`.
    pub mounts: Vec<TmpfsSpec>,
    /// Directories that are mounted a second time, at other paths.
    pub binds: Vec<BindMount>,
    /// What can be limited by a cgroup of the targets' own, if this machine permits one.
    pub cgroups: Vec<Controller>,
    /// What of the host the target may touch.
    pub host_access: HostAccess,
    /// The working directory of the target, absolute.
    pub cwd: PathBuf,
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

/// A sandbox. Dropping it kills every process in it and removes its files.
pub struct Sandbox {
    /// The root on the host.
    root: PathBuf,
    /// Directories that are shared with the host.
    real_dirs: Vec<PathBuf>,
    init: ReadyInit,
    /// Those of programs that are started.
    limits: Mutex<Vec<ProcessLimit>>,
    /// The pid of the fork server within the sandbox. 0: there is none.
    fork_server: AtomicI32,
    /// What else faults change for them.
    start_changes: Mutex<StartChanges>,
    confinement: Mutex<Option<Confinement>>,
    output_pause: Arc<OutputPause>,
    next_proc_file: AtomicU64,
    parts: SandboxParts,
}

/// What has to be ended or removed with a sandbox. Dropping it does that.
struct SandboxParts {
    dir: PathBuf,
    client: Arc<InitClient>,
    init_parent: Child,
    cgroup: Option<Arc<MemoryCgroup>>,
    process_cgroup: Option<Arc<ProcessCgroup>>,
    is_torn_down: bool,
}

impl Sandbox {
    /// Builds a sandbox. On return all mounts exist and init waits for requests.
    ///
    /// # Errors
    /// If this machine does not permit namespaces or mounts, or a directory can't be created.
    pub fn build(spec: SandboxSpec) -> Result<Sandbox, SandboxError> {
        Sandbox::build_with_overlays(spec, Vec::new())
    }

    /// The same, with directories of the host that the target sees as overlays. Each fresh run sees in them what
    /// the upper layers contain when it begins.
    ///
    /// # Errors
    /// Those of [`build`](Sandbox::build), or if an overlay cannot be mounted.
    pub fn build_with_overlays(
        spec: SandboxSpec,
        overlays: Vec<OverlayMount>,
    ) -> Result<Sandbox, SandboxError> {
        let root = spec.dir.join("root");
        std::fs::create_dir_all(&root).map_err(SandboxError::file("create", &root))?;
        let uses = |controller| spec.cgroups.contains(&controller);
        let cgroup = if uses(Controller::Memory) { MemoryCgroup::create() } else { None };
        let processes =
            if uses(Controller::Processes) { ProcessCgroup::create(cgroup.as_ref()) } else { None };
        let memory_procs = cgroup.as_ref().map(MemoryCgroup::procs_file);
        let process_procs = processes.as_ref().and_then(ProcessCgroup::procs_file);
        let mounts = spec.mounts.iter().map(tmpfs_mount).collect();
        let sockets = PacketSocketPair::new().map_err(SandboxError::system("make a socket"))?;
        // /proc/self/exe is the running image, also if its file has been replaced by a newer build.
        let init_parent = Command::new("/proc/self/exe")
            .arg(INIT_ARGUMENT)
            .stdin(Stdio::from(sockets.theirs))
            .stdout(Stdio::null())
            // The harness's standard error may be a file of the user, which a target could reach through init.
            .stderr(Stdio::null())
            // A terminal's Ctrl-C is for the harness, which lets its trials end. It does not reach the sandbox.
            .process_group(0)
            .spawn();
        let mut init_parent = init_parent.map_err(SandboxError::system("start the sandbox's init"))?;
        let request = SandboxInitRequest {
            view: host_view_spec(&spec),
            root: root.clone(),
            visible_root: spec.visible_root,
            private_network: spec.host_access.network == NetworkAccess::Private,
            distinct_pids: spec.distinct_pids,
            cgroup_procs: memory_procs.into_iter().chain(process_procs).collect(),
            mounts,
            binds: spec.binds,
            overlays,
        };
        send_message(sockets.ours.as_fd(), &request, &[])
            .map_err(SandboxError::system("send the specification to the sandbox's init"))?;
        let connected = InitClient::connect(sockets.ours);
        // Without a connection init ends. Until then it may still create directories.
        let client = connected.inspect_err(|_| drop(init_parent.wait()))?;
        let parts = SandboxParts {
            dir: spec.dir,
            client: Arc::new(client),
            init_parent,
            cgroup: cgroup.map(Arc::new),
            process_cgroup: processes.map(Arc::new),
            is_torn_down: false,
        };
        // If init does not become ready, dropping the parts tears them down.
        let init = parts.client.await_ready()?;
        let real_dirs = spec.host_access.writable;
        let (limits, start_changes, output_pause) = (Mutex::default(), Mutex::default(), Arc::default());
        let (fork_server, next_proc_file) = (AtomicI32::new(0), AtomicU64::new(0));
        Ok(Sandbox {
            root,
            real_dirs,
            init,
            limits,
            fork_server,
            start_changes,
            confinement: Mutex::default(),
            output_pause,
            next_proc_file,
            parts,
        })
    }

    /// The sandbox's root directory on the host, without what is mounted in it.
    pub fn root_on_host(&self) -> &Path {
        &self.root
    }

    /// Whether the sandbox has its own /proc, which shows only its own processes.
    pub fn has_fresh_proc(&self) -> bool {
        self.init.processes.fresh_proc
    }

    /// The path by which the harness reaches a file in the root, with what is mounted there. `relative` is
    /// relative to the root.
    pub fn host_path_in_root(&self, relative: &Path) -> PathBuf {
        let ReadyInit { processes, root_fd } = self.init;
        PathBuf::from(format!("/proc/{}/fd/{root_fd}", processes.init_pid)).join(relative)
    }

    /// The path by which the harness reaches a file in the sandbox's mounts. `inside` is the path as
    /// processes in the sandbox see it.
    pub fn host_path(&self, inside: &Path) -> PathBuf {
        let inside = inside.strip_prefix("/").unwrap_or(inside);
        PathBuf::from(format!("/proc/{}/root", self.init.processes.init_pid)).join(inside)
    }

    /// Starts a program, with pipes as its standard output and error.
    ///
    /// # Errors
    /// If the program can't be started, or init has ended.
    pub fn spawn(&self, launch: &LaunchSpec) -> Result<SpawnedProcess, SandboxError> {
        let changes = self.start_changes.locked().clone();
        let (limits, rules) = (self.limits.locked().clone(), self.rules_of_start()?);
        self.parts.client.spawn_changed(launch, limits, &changes, rules)
    }

    /// Starts a program behind a seccomp filter, with the given standard output and error.
    ///
    /// `serve` receives the filter's listener, and the rules that the program is under. It must start to respond to it: the start of the program may
    /// already wait for a response.
    ///
    /// # Errors
    /// If the filter can't be installed, the program can't be started, or init has ended.
    pub fn spawn_filtered(
        &self,
        launch: &LaunchSpec,
        filter: SeccompProgram,
        outputs: [OwnedFd; 2],
        serve: impl FnOnce(OwnedFd, Option<LandlockRules>),
    ) -> Result<SpawnedProcess, SandboxError> {
        let sockets = PacketSocketPair::new().map_err(SandboxError::system("make a socket"))?;
        let filter = Some(SpawnFilter { program: filter, listener_socket: sockets.theirs });
        let [stdout, stderr] = outputs;
        let limits = self.limits.locked().clone();
        let changes = self.start_changes.locked().clone();
        let stderr = if changes.full_stderr { full_device()? } else { stderr };
        let launch = &changes.changed(launch);
        let rules = self.rules_of_start()?;
        let conditions = changes.conditions;
        let spec = SpawnSpec { launch, stdout, stderr, filter, limits, conditions, rules: rules.clone() };
        let client = &self.parts.client;
        std::thread::scope(|scope| {
            let spawned = scope.spawn(move || client.spawn(spec));
            // Without a listener the filter was not installed, and init's reply to the spawn request contains
            // the reason.
            if let Some(listener) =
                receive_fd(sockets.ours.as_fd()).map_err(SandboxError::system("receive a listener"))?
            {
                let duplicate = listener.try_clone().map_err(SandboxError::system("duplicate a listener"))?;
                serve(listener, rules);
                let process = join_spawned(spawned)?;
                // Init holds the listener, so that pending calls keep waiting if the harness is killed, until
                // the sandbox ends too. With the listener closed they would fail, and the target would
                // continue wrongly.
                client.request(&ControlRequest::HoldFd, &[duplicate.as_raw_fd()])?;
                return Ok(process);
            }
            join_spawned(spawned)
        })
    }

    /// What commands have met in the sandbox and would not have met outside of it, and what they have changed
    /// outside of the directories that are bound or shared. `written` has paths that were opened for writing.
    ///
    /// # Errors
    /// If init has ended.
    pub fn hints(&self, written: &[PathBuf]) -> Result<Vec<SandboxHint>, SandboxError> {
        match self.parts.client.request(&ControlRequest::ListChanges { max: MAX_CHANGES }, &[])? {
            ControlReply::Changes(traces) => {
                // What is written to a real directory is what the user asked for.
                let is_private = |path: &&PathBuf| !self.real_dirs.iter().any(|dir| path.starts_with(dir));
                let private: Vec<PathBuf> = written.iter().filter(is_private).cloned().collect();
                Ok(hints_of(&traces, &private))
            }
            other => Err(unexpected_reply("list changes", other)),
        }
    }

    /// Kills all processes in the sandbox but its init and its fork server, with SIGKILL. Mounts and files stay. Returns
    /// when all processes have ended.
    ///
    /// # Errors
    /// If init has ended.
    pub fn kill_all(&self) -> Result<(), SandboxError> {
        self.kill_switch().kill_all()
    }

    /// A handle that can kill all processes from another thread.
    pub fn kill_switch(&self) -> KillSwitch {
        KillSwitch::new(Arc::clone(&self.parts.client))
    }

    /// Sends a signal to one process in the sandbox, by its pid within the sandbox. Returns whether there was
    /// such a process.
    ///
    /// # Errors
    /// If there is no such signal, or init has ended.
    pub fn signal(&self, pid_inside: i32, signal: i32) -> Result<bool, SandboxError> {
        self.parts.client.send_signal(&ControlRequest::Signal { pid_inside, signal })
    }

    /// Sends a signal to all processes in the sandbox but its init. Returns whether there was one.
    ///
    /// # Errors
    /// If there is no such signal, or init has ended.
    pub fn signal_all(&self, signal: i32) -> Result<bool, SandboxError> {
        self.parts.client.send_signal(&ControlRequest::SignalAll { signal })
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
            .parts
            .client
            .execute(&ControlRequest::ChangeMount { mount_point: mount_point.into(), change })?;
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

    /// The running processes in the sandbox, without its init and its fork server.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        let mut processes = self.init.processes.list();
        processes.retain(|process| !self.is_fork_server(process.pid_inside));
        processes
    }

    /// The directory in /proc of a process in the sandbox. If the sandbox has its own /proc, no other process can have
    /// this directory later, when the pid is used again.
    pub fn process_dir(&self, pid_inside: i32) -> Option<PathBuf> {
        self.init.processes.dir_of(pid_inside)
    }

    /// What each process in the sandbox uses, without its init and its fork server. Zombies are among them.
    pub fn process_use(&self) -> Vec<ProcessUse> {
        let mut processes = self.init.processes.list_use();
        processes.retain(|process| !self.is_fork_server(process.pid_inside));
        processes
    }

    /// Limits the memory of the sandbox. Dropping the returned value removes the limit.
    ///
    /// # Errors
    /// If the limit can't be set.
    pub fn limit_memory(&self, bytes: u64) -> Result<ActiveMemoryLimit, SandboxError> {
        let client = Arc::clone(&self.parts.client);
        match &self.parts.cgroup {
            Some(cgroup) => {
                memory::limit_cgroup(&BalloonHost { client, processes: self.init.processes }, cgroup, bytes)
            }
            None => Ok(memory::start_watcher(client, self.init.processes, bytes)),
        }
    }

    /// Changes what programs are started with from now on, in place of earlier changes.
    pub fn change_starts(&self, changes: StartChanges) {
        *self.start_changes.locked() = changes;
    }

    /// Whether the standard output of the target is read.
    pub fn output_pause(&self) -> &Arc<OutputPause> {
        &self.output_pause
    }

    /// Kills everything in the sandbox, and removes its directory and cgroups.
    ///
    /// # Errors
    /// If the directory or the cgroup can't be removed.
    pub fn close(mut self) -> Result<(), SandboxError> {
        self.parts.tear_down()
    }
}

impl SandboxParts {
    fn tear_down(&mut self) -> Result<(), SandboxError> {
        if std::mem::replace(&mut self.is_torn_down, true) {
            return Ok(());
        }
        // Init ends when the socket is closed, and the kernel then kills all other processes.
        self.client.close();
        self.init_parent.wait().map_err(SandboxError::system("wait for the sandbox's init"))?;
        if let Some(cgroup) = self.process_cgroup.take() {
            cgroup.remove()?;
        }
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove()?;
        }
        remove_tree(&self.dir)
    }
}

impl Drop for SandboxParts {
    fn drop(&mut self) {
        // `remove_leftovers` of a later run removes what could not be removed here.
        let _ = self.tear_down();
    }
}

/// What the sandbox shows of the host. What belongs to the harness is hidden, unless the target needs something
/// in it.
fn host_view_spec(spec: &SandboxSpec) -> HostViewSpec {
    let HostAccess { writable, hidden, .. } = &spec.host_access;
    let runs = runs_paths_of_all_users();
    let mount_points = spec.binds.iter().map(|bind| &bind.mount_point);
    let needed: Vec<&PathBuf> = mount_points.chain(writable).chain([&spec.cwd]).collect();
    let is_needed = |dir: &PathBuf| needed.iter().any(|needed| needed.starts_with(dir));
    let copied = needed.iter().map(|dir| dir.to_path_buf());
    HostViewSpec {
        real_dirs: writable.clone(),
        cwd: spec.cwd.clone(),
        copied: unmapped_files(&spec.cwd).into_iter().chain(copied).collect(),
        hidden: hidden.iter().chain(&runs).filter(|dir| !is_needed(dir)).cloned().collect(),
    }
}

fn tmpfs_mount(tmpfs: &TmpfsSpec) -> TmpfsMount {
    let inodes = tmpfs.inodes.map(|inodes| format!(",nr_inodes={inodes}")).unwrap_or_default();
    TmpfsMount {
        mount_point: tmpfs.mount_point.clone(),
        options: format!("size={}{inodes},mode=0755", tmpfs.size_bytes),
    }
}

fn join_spawned(
    spawned: ScopedJoinHandle<'_, Result<SpawnedProcess, SandboxError>>,
) -> Result<SpawnedProcess, SandboxError> {
    spawned.join().unwrap_or(Err(SandboxError::InitGone))
}
