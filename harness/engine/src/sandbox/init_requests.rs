//! The requests of the harness to a sandbox's init: receives each, does what it asks for, and replies. Runs in
//! the sandbox's init. What a request is about has its own file: `command_runs`, `host_view`,
//! `kernel_objects`, `mounts`, `init_children`.

use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;

use super::command_runs::{CommandRuns, StartFailure};
use super::fuse_mounts::FuseMounts;
use super::host_view::HostView;
use super::init_children::{InitChildren, send_signal, send_signal_to_all};
use super::init_error::{InitResult, failed_reply, with_context};
use super::init_setup::ReadySandbox;
use super::kernel_objects::KernelObjects;
use super::mounts::ReadOnlyMounts;
use super::overlay_mounts::OverlayMounts;
use super::packet::{Packet, receive_message, send_fds, send_message};
use super::proc_files::ProcFiles;
use super::protocol::{
    CompletedCommand, ControlReply, ControlRequest, LaunchSpec, MountChange, ProcessLimit, SandboxTraces,
    StartConditions, StoredCommand,
};
use super::run_command::RunLimits;
use super::spawn_request::{ProgramStart, SpawnFiles};

/// What handles the requests.
pub(super) struct RequestServer<'a> {
    socket: &'a OwnedFd,
    children: InitChildren<'a>,
    /// The sandbox's root.
    root: File,
    mounts: ReadOnlyMounts,
    fuse_mounts: FuseMounts,
    proc_files: ProcFiles,
    /// Descriptors that stay open until the sandbox ends.
    held_fds: Vec<OwnedFd>,
    commands: CommandRuns,
    view: HostView,
    overlays: OverlayMounts,
    kernel_objects: KernelObjects,
    /// Each joins a cgroup when `0` is written to it.
    cgroup_procs: Vec<File>,
}

impl<'a> RequestServer<'a> {
    pub(super) fn new(
        socket: &'a OwnedFd,
        sandbox: ReadySandbox,
        cgroup_procs: Vec<File>,
    ) -> RequestServer<'a> {
        let ReadySandbox { child_signals, root, view, overlays, kernel_objects, fuse_mounts } = sandbox;
        RequestServer {
            socket,
            children: InitChildren::new(socket, child_signals),
            root,
            mounts: ReadOnlyMounts::default(),
            fuse_mounts,
            proc_files: ProcFiles::default(),
            held_fds: Vec::new(),
            commands: CommandRuns::default(),
            view,
            overlays,
            kernel_objects,
            cgroup_procs,
        }
    }

    /// Handles requests until the harness closes the socket.
    pub(super) fn serve(mut self) -> InitResult<()> {
        loop {
            let sources = [self.socket.as_fd(), self.children.signals().as_fd()];
            let sources = sources.into_iter().chain(self.commands.followed_command());
            let mut ready: Vec<PollFd<'_>> =
                sources.map(|source| PollFd::new(source, PollFlags::POLLIN)).collect();
            match poll(&mut ready, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => with_context("wait", polled)?,
            };
            let has_request = ready[0].any().unwrap_or(false);
            self.children.reap_ended()?;
            self.report_followed()?;
            if has_request {
                match with_context("read a request", receive_message(self.socket.as_fd()))? {
                    None => return Ok(()),
                    Some(Packet { message: request, fds }) => self.handle(request, fds)?,
                }
            }
        }
    }

    fn handle(&mut self, request: ControlRequest, files: Vec<OwnedFd>) -> InitResult<()> {
        let done = || ControlReply::Done { note: String::new() };
        let reply = match request {
            ControlRequest::Spawn { id, launch, filter, limits, conditions, is_confined } => {
                let files = SpawnFiles::of(files, filter, is_confined);
                self.spawn(id, &launch, files, limits, conditions)
            }
            ControlRequest::StoreCommand { launch, runner, patterns } => {
                let stored = self.commands.store(launch, runner, &patterns);
                stored.map_or_else(StartFailure::reply, ControlReply::Stored)
            }
            ControlRequest::RunStored { command, timeout_ms, rest_ms, max_output_bytes, fresh } => {
                let [timeout, rest] = [timeout_ms, rest_ms].map(Duration::from_millis);
                let limits = RunLimits { timeout, rest, max_output_bytes };
                match if fresh { self.reset() } else { Ok(()) } {
                    Ok(()) => self.run_stored(command, limits)?,
                    Err(error) => error.reply(),
                }
            }
            ControlRequest::StartForkServer { launch } => {
                let started = self.commands.start_fork_server(launch);
                started.map_or_else(StartFailure::reply, |()| self.fork_server())
            }
            ControlRequest::SpawnForked { id, command } => self.spawn_forked(id, command, files),
            ControlRequest::Reset => match self.reset_checked() {
                Ok(()) => self.fork_server(),
                Err(error) => error.reply(),
            },
            ControlRequest::ListChanges { max } => self.list_changes(max),
            ControlRequest::HoldFd => {
                self.held_fds.extend(files);
                done()
            }
            // What listens in the host's network is the user's.
            ControlRequest::MakeTcpSocket if !self.kernel_objects.private_network => {
                let error = Error::other("the target has the host's network; run it with `network: private`");
                failed_reply("make a TCP socket", &error)
            }
            ControlRequest::MakeTcpSocket => match make_tcp_socket(&files) {
                Ok(()) => done(),
                Err(error) => failed_reply("make a TCP socket", &error),
            },
            ControlRequest::KillAll => {
                self.kill_all()?;
                done()
            }
            ControlRequest::Signal { pid_inside, signal } => signal_reply(send_signal(pid_inside, signal)),
            ControlRequest::SignalAll { signal } => signal_reply(send_signal_to_all(signal)),
            ControlRequest::PlantProcFile { path, id, text } => self.plant_proc_file(&path, id, &text),
            ControlRequest::RemoveProcFile { path, id } => self.remove_proc_file(&path, id),
            ControlRequest::ChangeMount { mount_point, change } => self.change_mount(&mount_point, change),
            ControlRequest::MountFuse { mount_point } => {
                match self.fuse_mounts.mount(&fd_path(&self.root), &mount_point, &files) {
                    Ok(()) => done(),
                    Err(error) => failed_reply(&doing_at("mount a FUSE file system", &mount_point), &error),
                }
            }
            ControlRequest::UnmountFuse { mount_point } => match self.fuse_mounts.unmount(&mount_point) {
                Ok(()) => done(),
                Err(error) => failed_reply(&doing_at("unmount a FUSE file system", &mount_point), &error),
            },
        };
        with_context("reply", send_message(self.socket.as_fd(), &reply, &[]))
    }

    /// Kills all processes but the fork server. Returns whether there was any.
    fn kill_all(&mut self) -> InitResult<bool> {
        match self.commands.fork_server_pid() {
            Some(server) => self.children.kill_all_but(server),
            None => self.children.kill_all(),
        }
    }

    /// Reports how a command of the fork server has ended that the harness follows.
    fn report_followed(&mut self) -> InitResult<()> {
        match with_context("read what the fork server tells", self.commands.end_of_followed())? {
            Some(ended) => self.children.report_exit_of(ended.pid, ended.exit),
            None => Ok(()),
        }
    }

    fn fork_server(&self) -> ControlReply {
        ControlReply::ForkServer { pid_inside: self.commands.fork_server_pid().map(Pid::as_raw) }
    }

    /// The same as [`reset`](RequestServer::reset). Fails if the fork server has ended.
    fn reset_checked(&mut self) -> InitResult<()> {
        with_context("use a fork server again", self.commands.check_fork_server())?;
        self.reset()
    }

    /// Undoes what commands have left in the view of the host and in the kernel.
    fn reset(&mut self) -> InitResult<()> {
        with_context("uncover files of /proc", self.proc_files.remove_all())?;
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

    /// Runs a stored command, waits for its other processes, and kills those that remain before the reply, which
    /// reports whether there were any.
    fn run_stored(&mut self, command: StoredCommand, limits: RunLimits) -> InitResult<ControlReply> {
        let completed = self.commands.run(command, self.children.signals(), limits);
        let fork_server = self.commands.fork_server_pid();
        if completed.as_ref().is_ok_and(|completed| completed.exit.is_some()) {
            self.children.await_others(fork_server, limits.rest)?;
        }
        let left_processes = self.kill_all()?;
        Ok(match completed {
            Ok(completed) => ControlReply::CommandEnded(CompletedCommand { left_processes, ..completed }),
            Err(failure) => failure.reply(),
        })
    }

    fn spawn_forked(&mut self, id: u64, command: StoredCommand, files: Vec<OwnedFd>) -> ControlReply {
        let Ok([stdout, stderr]) = <[OwnedFd; 2]>::try_from(files) else {
            let source = Error::other("the request has no output descriptors");
            return StartFailure::new(String::new(), source).reply();
        };
        match self.commands.spawn_forked(command, [stdout, stderr]) {
            Ok(pid) => {
                self.children.expect(pid, id);
                ControlReply::Spawned { pid_inside: pid.as_raw() }
            }
            Err(failure) => failure.reply(),
        }
    }

    fn list_changes(&self, max: usize) -> ControlReply {
        ControlReply::Changes(SandboxTraces {
            changes: self.view.changes(max),
            private_dirs: self.view.private_dirs(),
            network_failures: self.kernel_objects.network_failures(),
        })
    }

    fn plant_proc_file(&mut self, path: &Path, id: u64, text: &str) -> ControlReply {
        let dir = match self.view.unreachable_dir() {
            Ok(dir) => dir,
            Err(error) => return error.reply(),
        };
        match self.proc_files.plant(&dir, path, id, text) {
            Ok(()) => ControlReply::Done { note: String::new() },
            Err(error) => failed_reply(&format!("cover `{}`", path.display()), &error),
        }
    }

    fn remove_proc_file(&mut self, path: &Path, id: u64) -> ControlReply {
        match self.proc_files.remove(path, id) {
            Ok(()) => ControlReply::Done { note: String::new() },
            Err(error) => failed_reply(&format!("uncover `{}`", path.display()), &error),
        }
    }

    fn change_mount(&mut self, mount_point: &Path, change: MountChange) -> ControlReply {
        match self.mounts.change(&fd_path(&self.root).join(mount_point), change) {
            Ok(note) => ControlReply::Done { note },
            Err(error) => failed_reply(&doing_at("change the mount", mount_point), &error.into()),
        }
    }

    fn spawn(
        &mut self,
        id: u64,
        launch: &LaunchSpec,
        files: Option<SpawnFiles>,
        limits: Vec<ProcessLimit>,
        conditions: StartConditions,
    ) -> ControlReply {
        let failed = |source| StartFailure::new(launch.program_name(), source).reply();
        let Some(files) = files else {
            return failed(Error::other("the request lacks a descriptor"));
        };
        let start = ProgramStart { files, cgroup_procs: &self.cgroup_procs, limits, conditions };
        match start.spawn(launch) {
            Ok(pid) => {
                self.children.expect(pid, id);
                ControlReply::Spawned { pid_inside: pid.as_raw() }
            }
            Err(error) => failed(error),
        }
    }
}

/// The path that leads to an open directory.
fn fd_path(directory: &File) -> PathBuf {
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string())
}

fn doing_at(doing: &str, mount_point: &Path) -> String {
    format!("{doing} at `{}`", mount_point.display())
}

/// Makes a TCP socket and sends it through the descriptor that came with the request.
fn make_tcp_socket(files: &[OwnedFd]) -> Result<(), Error> {
    let receiver = files.first().ok_or_else(|| Error::other("the request has no descriptor"))?;
    let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    send_fds(receiver.as_fd(), &[made.as_fd()])
}

/// The reply after a signal. A receiver that has ended is no error: targets end at any time.
fn signal_reply(sent: Result<(), Errno>) -> ControlReply {
    match sent {
        Ok(()) => ControlReply::Signalled { received: true },
        Err(Errno::ESRCH) => ControlReply::Signalled { received: false },
        Err(error) => failed_reply("send a signal", &error.into()),
    }
}
