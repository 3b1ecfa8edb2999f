//! The sandbox's init process, pid 1 of its pid namespace: sets up namespaces and mounts, handles the
//! harness's requests, and reaps processes.
//!
//! It is a child process of the harness, so it may end with `process::exit`: the harness itself does that
//! nowhere. It has one thread and keeps nothing on disk. It reports failures to the harness and does not
//! panic on purpose.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Error, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{ForkResult, Pid, geteuid};

use super::command_runs::{CommandRuns, StartFailure};
use super::host_view::HostView;
use super::id_map::IdMapper;
use super::init_error::{InitError, InitResult, with_context};
use super::kernel_objects::KernelObjects;
use super::mounts::ReadOnlyMounts;
use super::overlay_mounts::OverlayMounts;
use super::packet::{Packet, receive_message, send_fds, send_message};
use super::protocol::{
    CompletedCommand, ControlReply, ControlRequest, LaunchSpec, SandboxInitRequest, SandboxTraces,
    StoredCommand,
};
use super::run_command::RunLimits;
use super::sys::ReapedChild;
use super::sys::{attach_mount, clone_mount, make_read_only};
use super::{processes, sys};
use crate::seccomp::SeccompProgram;

/// The pid with which kill reaches every process in the pid namespace but init itself.
const ALL_PROCESSES: Pid = Pid::from_raw(-1);
/// Pid of init in its pid namespace.
const INIT_PID: i32 = 1;
/// Time that pid 1 has to end by itself when the harness has closed the socket.
const END_TIME_MS: u16 = 200;

/// Entry point of the process. Ends it with exit code 0 when the harness has closed the socket.
pub(super) fn main() -> ! {
    let closed = with_context("close inherited descriptors", sys::close_inherited_fds());
    let socket = sys::own_stdin();
    let code = match closed.and_then(|()| create_namespaces(&socket)) {
        Ok(code) => code,
        Err(error) => report_failure(&socket, &error),
    };
    std::process::exit(code)
}

/// Tells the harness why init ends. Returns the exit code.
fn report_failure(socket: &OwnedFd, error: &InitError) -> i32 {
    // This fails if the harness has ended; then nothing needs to be reported.
    let _ = send_message(socket.as_fd(), &failed_reply(error.doing, &error.source), &[]);
    1
}

fn failed_reply(doing: &str, error: &Error) -> ControlReply {
    ControlReply::Failed { doing: doing.into(), detail: error.to_string() }
}

/// Creates the namespaces and forks pid 1 into them. Returns the exit code when pid 1 has ended.
fn create_namespaces(socket: &OwnedFd) -> InitResult<i32> {
    let received = with_context("read its specification", receive_message(socket.as_fd()))?;
    let Some(Packet::<SandboxInitRequest> { message: specification, .. }) = received else { return Ok(0) };
    // In the sandbox the host's mounts are read-only, those of cgroups too.
    let cgroup_procs =
        specification.cgroup_procs.as_ref().map(|file| OpenOptions::new().write(true).open(file));
    let cgroup_procs = with_context("open the file of the memory cgroup", cgroup_procs.transpose())?;
    let id_mapper = with_context("prepare to map ids", IdMapper::prepare())?;
    let mut namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC;
    namespaces.set(CloneFlags::CLONE_NEWNET, specification.private_network);
    with_context("create namespaces", unshare(namespaces))?;
    with_context("map the ids", id_mapper.map())?;
    with_context("become visible to the harness", prctl::set_dumpable(true))?;
    match with_context("fork", sys::fork())? {
        ForkResult::Child => {
            let code = match set_up_and_serve(socket, &specification, cgroup_procs) {
                Ok(()) => 0,
                Err(error) => report_failure(socket, &error),
            };
            std::process::exit(code)
        }
        ForkResult::Parent { child } => {
            let reported =
                send_message(socket.as_fd(), &ControlReply::InitStarted { pid: child.as_raw() }, &[]);
            // Also without a harness: who waits for this process relies on the end of pid 1.
            wait_for_pid_1(socket, child)?;
            with_context("report its pid", reported)?;
            Ok(0)
        }
    }
}

/// Waits until pid 1 has ended. pid 1 looks at its socket only between two requests. If the harness goes away
/// while a command runs, this process ends pid 1, and with it every process of the sandbox.
fn wait_for_pid_1(socket: &OwnedFd, child: Pid) -> InitResult<()> {
    let pidfd = with_context("watch pid 1", sys::open_pidfd(child.as_raw().unsigned_abs()))?;
    let ended = PollFd::new(pidfd.as_fd(), PollFlags::POLLIN);
    // No flag: only the end of the connection is of interest. What arrives is for pid 1.
    let abandoned = PollFd::new(socket.as_fd(), PollFlags::empty());
    while let Err(error) = poll(&mut [ended.clone(), abandoned.clone()], PollTimeout::NONE) {
        if error != Errno::EINTR {
            return with_context("wait for pid 1", Err(error));
        }
    }
    if poll(&mut [ended], PollTimeout::from(END_TIME_MS)) != Ok(1) {
        // It may have ended in this moment.
        let _ = kill(child, Signal::SIGKILL);
    }
    while let Err(Errno::EINTR) = sys::reap_child(true) {}
    Ok(())
}

fn set_up_and_serve(
    socket: &OwnedFd,
    specification: &SandboxInitRequest,
    cgroup_procs: Option<File>,
) -> InitResult<()> {
    with_context("set the parent-death signal", prctl::set_pdeathsig(Signal::SIGKILL))?;
    with_context("disable core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    with_context("make mounts private", mount(None::<&Path>, "/", None::<&Path>, private, None::<&Path>))?;
    let overlays = OverlayMounts::open(&specification.overlays)?;
    let mut view = HostView::set_up(&specification.view)?;
    let kernel_objects = KernelObjects { private_network: specification.private_network };
    mount_specified(specification, &overlays, &mut view)?;
    let fresh_proc = mount_proc();
    kernel_objects.set_up()?;
    if fresh_proc && specification.distinct_pids {
        skip_pids();
        kernel_objects.forget_closed_connections();
    }
    if fresh_proc && geteuid().is_root() {
        protect_kernel_settings();
        hide_block_devices();
    }
    mount_terminals();
    protect_view()?;
    view.enter_working_directory()?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    with_context("block SIGCHLD", mask.thread_block())?;
    let child_signals = with_context(
        "watch its children",
        SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK),
    )?;
    with_context(
        "report that it is ready",
        send_message(socket.as_fd(), &ControlReply::Ready { fresh_proc }, &[]),
    )?;
    SandboxInit {
        socket,
        child_signals,
        ids: HashMap::new(),
        mounts: ReadOnlyMounts::default(),
        held_fds: Vec::new(),
        commands: CommandRuns::default(),
        view,
        overlays,
        kernel_objects,
        cgroup_procs,
    }
    .serve()
}

/// Makes the mounts of the specification: tmpfs first, so that the source of a bind, or the upper layer of an
/// overlay, may be in one.
fn mount_specified(
    specification: &SandboxInitRequest,
    overlays: &OverlayMounts,
    view: &mut HostView,
) -> InitResult<()> {
    for tmpfs in &specification.mounts {
        with_context("create a mount point", std::fs::create_dir_all(&tmpfs.mount_point))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        with_context(
            "mount a tmpfs",
            mount(Some("tmpfs"), &tmpfs.mount_point, Some("tmpfs"), flags, Some(tmpfs.options.as_str())),
        )?;
        view.mounted_above(&tmpfs.mount_point);
    }
    for bind in &specification.binds {
        with_context("create the source of a bind mount", std::fs::create_dir_all(&bind.source))?;
        with_context("create a mount point", std::fs::create_dir_all(&bind.mount_point))?;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        with_context(
            "bind-mount a directory",
            mount(Some(&bind.source), &bind.mount_point, None::<&Path>, flags, None::<&Path>),
        )?;
        view.mounted_above(&bind.mount_point);
    }
    overlays.mount_all()?;
    overlays.mount_points().for_each(|mount_point| view.mounted_above(mount_point));
    view.is_complete()
}

/// Mounts a /proc that shows only the processes of the sandbox. Returns whether the kernel permits it.
fn mount_proc() -> bool {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, None::<&Path>).is_ok()
}

/// Makes the kernel's settings read-only, which are the whole machine's: root could change them.
fn protect_kernel_settings() {
    for shared in ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"].map(Path::new) {
        if let Ok(clone) = clone_mount(shared) {
            let _ = make_read_only(&clone).and_then(|()| attach_mount(&clone, shared));
        }
    }
}

/// Covers the host's block devices, which root could write to: they hold the user's files. What cannot be
/// covered stays, as without a sandbox.
fn hide_block_devices() {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir("/dev").into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_block_device())
            && let Ok(null) = clone_mount(Path::new("/dev/null"))
        {
            let _ = attach_mount(&null, &entry.path());
        }
    }
}

/// Capabilities of linux/capability.h with which a target that runs as root could undo the view of the host:
/// by mounting, or by looking into init.
const CAP_SYS_PTRACE: nix::libc::c_ulong = 19;
const CAP_SYS_ADMIN: nix::libc::c_ulong = 21;

/// Takes from all programs in the sandbox what they could undo its view of the host with.
fn protect_view() -> InitResult<()> {
    for capability in [CAP_SYS_PTRACE, CAP_SYS_ADMIN] {
        with_context("protect the view of the host", sys::deny_to_programs(capability))?;
    }
    Ok(())
}

/// Makes the numbers of processes begin in the upper half of their range.
fn skip_pids() {
    let max = std::fs::read_to_string("/proc/sys/kernel/pid_max");
    let max: Option<u32> = max.ok().and_then(|text| text.trim().parse().ok());
    // Where the kernel refuses, they begin at 2, as in a recording.
    let _ = std::fs::write("/proc/sys/kernel/ns_last_pid", (max.unwrap_or(0) / 2).to_string());
}

/// Gives the sandbox its own pseudo-terminals, so that a target cannot write to those of the user. Without
/// them it has those of the host.
fn mount_terminals() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=0620");
    if mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, options).is_ok()
        && let Ok(clone) = clone_mount(Path::new("/dev/pts/ptmx"))
    {
        let _ = attach_mount(&clone, Path::new("/dev/ptmx"));
    }
}

/// The state of the init process.
struct SandboxInit<'a> {
    socket: &'a OwnedFd,
    child_signals: SignalFd,
    /// Ids of spawned processes, by pid.
    ids: HashMap<Pid, u64>,
    mounts: ReadOnlyMounts,
    /// Descriptors that stay open until the sandbox ends.
    held_fds: Vec<OwnedFd>,
    commands: CommandRuns,
    view: HostView,
    overlays: OverlayMounts,
    kernel_objects: KernelObjects,
    /// Joins the memory cgroup when `0` is written to it.
    cgroup_procs: Option<File>,
}

impl SandboxInit<'_> {
    /// Handles requests until the harness closes the socket.
    fn serve(mut self) -> InitResult<()> {
        loop {
            let mut ready = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.child_signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => with_context("wait", polled)?,
            };
            let has_request = ready[0].any().unwrap_or(false);
            while let Ok(Some(_)) = self.child_signals.read_signal() {}
            self.reap(false)?;
            if has_request {
                match with_context("read a request", receive_message(self.socket.as_fd()))? {
                    None => return Ok(()),
                    Some(Packet { message: request, fds }) => self.handle(request, fds)?,
                }
            }
        }
    }

    fn handle(&mut self, request: ControlRequest, files: Vec<OwnedFd>) -> InitResult<()> {
        let reply = match request {
            ControlRequest::Spawn { id, launch, filter } => self.spawn(id, &launch, filter, files),
            ControlRequest::StoreCommand { launch, runner } => {
                self.commands.store(launch, runner).map_or_else(StartFailure::reply, ControlReply::Stored)
            }
            ControlRequest::RunStored { command, timeout_ms, max_output_bytes, fresh } => {
                let limits = RunLimits { timeout: Duration::from_millis(timeout_ms), max_output_bytes };
                match if fresh { self.reset() } else { Ok(()) } {
                    Ok(()) => self.run_stored(command, limits)?,
                    Err(error) => failed_reply(error.doing, &error.source),
                }
            }
            ControlRequest::StartForkServer { launch } => {
                let done = |()| ControlReply::Done { note: String::new() };
                self.commands.start_fork_server(launch).map_or_else(StartFailure::reply, done)
            }
            ControlRequest::ListChanges { max } => ControlReply::Changes(SandboxTraces {
                changes: self.view.changes(max),
                private_dirs: self.view.private_dirs(),
                network_failures: self.kernel_objects.network_failures(),
            }),
            ControlRequest::HoldFd => {
                self.held_fds.extend(files);
                ControlReply::Done { note: String::new() }
            }
            ControlRequest::KillAll => {
                self.kill_all()?;
                ControlReply::Done { note: String::new() }
            }
            ControlRequest::Signal { pid_inside, signal } => signal_reply(send_signal(pid_inside, signal)),
            ControlRequest::SignalAll { signal } => signal_reply(send_signal_to_all(signal)),
            ControlRequest::ChangeMount { mount_point, change } => {
                match self.mounts.change(&mount_point, change) {
                    Ok(note) => ControlReply::Done { note },
                    Err(error) => failed_reply(
                        &format!("change the mount at `{}`", mount_point.display()),
                        &error.into(),
                    ),
                }
            }
        };
        with_context("reply", send_message(self.socket.as_fd(), &reply, &[]))
    }

    /// Undoes what commands have left in the view of the host and in the kernel.
    fn reset(&mut self) -> InitResult<()> {
        self.view.reset()?;
        if !self.overlays.is_empty() {
            // A directory in which a process is stays in use.
            with_context("leave the working directory", nix::unistd::chdir("/"))?;
            self.overlays.renew()?;
            self.view.enter_working_directory()?;
        }
        if self.kernel_objects.reset()? {
            with_context("start a fork server again", self.commands.restart_fork_server())?;
        }
        Ok(())
    }

    /// Runs a stored command, and kills its remaining processes before the reply, which reports whether there
    /// were any.
    fn run_stored(&mut self, command: StoredCommand, limits: RunLimits) -> InitResult<ControlReply> {
        let completed = self.commands.run(command, &self.child_signals, limits);
        let left_processes = match self.commands.fork_server_pid() {
            Some(server) => self.kill_remaining(server)?,
            None => self.kill_all()?,
        };
        Ok(match completed {
            Ok(completed) => ControlReply::CommandEnded(CompletedCommand { left_processes, ..completed }),
            Err(failure) => failure.reply(),
        })
    }

    fn spawn(
        &mut self,
        id: u64,
        launch: &LaunchSpec,
        filter: Option<SeccompProgram>,
        files: Vec<OwnedFd>,
    ) -> ControlReply {
        let mut files = files.into_iter();
        let failed = |source| StartFailure::new(launch.program_name(), source).reply();
        let (Some(stdout), Some(stderr)) = (files.next(), files.next()) else {
            return failed(Error::other("the request has no output descriptors"));
        };
        let Some(mut command) = launch.command() else { return failed(Error::other("`argv` is empty")) };
        command.stdout(stdout).stderr(stderr);
        let filter = filter.zip(files.next()).map(|(program, socket)| FilterToInstall { program, socket });
        let cgroup_procs = self.cgroup_procs.as_ref().map(File::try_clone).transpose();
        match cgroup_procs {
            Ok(cgroup_procs) => configure_child(&mut command, cgroup_procs, filter),
            Err(error) => return failed(error),
        }
        match command.spawn() {
            Ok(child) => {
                let pid_inside = i32::try_from(child.id()).unwrap_or(0);
                self.ids.insert(Pid::from_raw(pid_inside), id);
                ControlReply::Spawned { pid_inside }
            }
            Err(error) => failed(error),
        }
    }

    /// Kills all processes in the sandbox but init itself. Returns whether there was any, once
    /// none is left.
    fn kill_all(&mut self) -> InitResult<bool> {
        let mut has_killed = false;
        loop {
            match kill(ALL_PROCESSES, Signal::SIGKILL) {
                Ok(()) => {
                    has_killed = true;
                    self.reap(true)?;
                }
                Err(Errno::ESRCH) => {
                    self.reap(true)?;
                    return Ok(has_killed);
                }
                Err(error) => return with_context("kill all processes", Err(error)),
            }
        }
    }

    /// Kills all processes in the sandbox but init itself and the fork server. Returns
    /// whether there was any, once none is left.
    fn kill_remaining(&mut self, fork_server: Pid) -> InitResult<bool> {
        let mut has_killed = false;
        loop {
            self.reap(false)?;
            let left: Vec<Pid> = with_context("list processes", processes::live_processes())?
                .into_iter()
                .filter(|pid| pid.as_raw() != INIT_PID && *pid != fork_server)
                .collect();
            if left.is_empty() {
                return Ok(has_killed);
            }
            has_killed = true;
            for pid in left {
                match kill(pid, Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return with_context("kill the remaining processes", Err(error)),
                }
            }
        }
    }

    /// Reaps children and reports the exits of spawned ones. `until_none`: waits until no child is left.
    fn reap(&mut self, until_none: bool) -> InitResult<()> {
        loop {
            match sys::reap_child(until_none) {
                Ok(Some(child)) => self.report_exit(&child)?,
                Ok(None) | Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return with_context("reap", Err(error)),
            }
        }
    }

    /// Reports the exit of a process, if the harness spawned it.
    fn report_exit(&mut self, child: &ReapedChild) -> InitResult<()> {
        let Some(id) = self.ids.remove(&child.pid) else { return Ok(()) };
        let reply = ControlReply::ProcessExited { id, exit: child.exit };
        with_context("report the exit of a process", send_message(self.socket.as_fd(), &reply, &[]))
    }
}

/// A seccomp filter that a program is started behind, and the socket through which its listener is sent.
struct FilterToInstall {
    program: SeccompProgram,
    socket: OwnedFd,
}

/// Makes the command start in its own session, in the given cgroup, and behind the given filter.
fn configure_child(command: &mut Command, cgroup_procs: Option<File>, filter: Option<FilterToInstall>) {
    sys::before_exec(command, move || {
        nix::unistd::setsid()?;
        if let Some(mut procs) = cgroup_procs.as_ref() {
            procs.write_all(b"0")?;
        }
        match &filter {
            Some(filter) => {
                let listener = sys::install_filter(&filter.program)?;
                send_fds(filter.socket.as_fd(), &[listener.as_fd()])
            }
            None => Ok(()),
        }
    });
}

/// The reply after a signal. A receiver that has ended is no error: targets end at any time.
fn signal_reply(sent: Result<(), Errno>) -> ControlReply {
    match sent {
        Ok(()) => ControlReply::Signalled { received: true },
        Err(Errno::ESRCH) => ControlReply::Signalled { received: false },
        Err(error) => failed_reply("send a signal", &error.into()),
    }
}

/// Sends a signal to every process in the pid namespace but init itself, all in one call: none that is forked
/// meanwhile is missed.
fn send_signal_to_all(signal: i32) -> Result<(), Errno> {
    kill(ALL_PROCESSES, Signal::try_from(signal)?)
}

fn send_signal(pid_inside: i32, signal: i32) -> Result<(), Errno> {
    // 0 and negative numbers mean process groups or all processes, and 1 is init.
    if pid_inside <= INIT_PID {
        return Err(Errno::EINVAL);
    }
    kill(Pid::from_raw(pid_inside), Signal::try_from(signal)?)
}
