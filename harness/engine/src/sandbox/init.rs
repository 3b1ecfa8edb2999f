//! The sandbox's init process, pid 1 of its pid namespace: its start and its end. `init_setup` makes the mounts,
//! `init_requests` handles the harness's requests.
//!
//! It is a child process of the harness, so it may end with `process::exit`: the harness itself does that
//! nowhere. It has one thread and keeps nothing on disk. It reports failures to the harness and does not
//! panic on purpose.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid};

use super::id_map::IdMapper;
use super::init_error::{InitError, InitResult, with_context};
use super::init_requests::RequestServer;
use super::init_setup::set_up;
use super::packet::{Packet, receive_message, send_message};
use super::protocol::{ControlReply, SandboxInitRequest};
use super::sys;

/// Time that pid 1 has to end by itself when the harness has closed the socket.
const END_TIME_MS: u16 = 200;

/// Entry point of the process. Ends it with exit code 0 when the harness has closed the socket.
pub(super) fn main() -> ! {
    let closed = with_context("close inherited descriptors", sys::close_inherited_fds())
        .and_then(|()| with_context("survive a small limit", sys::survive_file_size_limit()));
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
    let _ = send_message(socket.as_fd(), &error.reply(), &[]);
    1
}

/// Creates the namespaces and forks pid 1 into them. Returns the exit code when pid 1 has ended.
fn create_namespaces(socket: &OwnedFd) -> InitResult<i32> {
    let received = with_context("read its specification", receive_message(socket.as_fd()))?;
    let Some(Packet::<SandboxInitRequest> { message: specification, .. }) = received else { return Ok(0) };
    // In the sandbox the host's mounts are read-only, those of cgroups too.
    let files = specification.cgroup_procs.iter();
    let opened: Result<Vec<_>, _> = files.map(|file| OpenOptions::new().write(true).open(file)).collect();
    let cgroup_procs = with_context("open the file of a cgroup", opened)?;
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
            let served = set_up(socket, &specification)
                .and_then(|sandbox| RequestServer::new(socket, sandbox, cgroup_procs).serve());
            let code = match served {
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
