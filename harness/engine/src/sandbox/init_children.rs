//! The processes of a sandbox, all of which become children of its init in the end: reaps them, reports the
//! exits of those that the harness started, sends signals, and kills. Part of the init process.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;

use super::init_error::{InitResult, with_context};
use super::packet::send_message;
use super::processes::live_processes;
use super::protocol::{ControlReply, ProcessExit};
use super::sys::{ReapedChild, reap_child};

/// The pid with which kill reaches every process in the pid namespace but init itself.
const ALL_PROCESSES: Pid = Pid::from_raw(-1);
/// Pid of init in its pid namespace.
const INIT_PID: i32 = 1;
/// Processes get at least this time to end after the main process.
const SHORT_WAIT: Duration = Duration::from_millis(100);
/// They get no more than this.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);
/// A process that ends and is not a child of init sends init no signal.
const POLL_INTERVAL_MS: u16 = 5;

/// The processes of a sandbox but init.
pub(super) struct InitChildren<'a> {
    socket: &'a OwnedFd,
    /// Receives SIGCHLD, which is blocked.
    signals: SignalFd,
    /// Ids of spawned processes, by pid.
    ids: HashMap<Pid, u64>,
}

impl<'a> InitChildren<'a> {
    pub(super) fn new(socket: &'a OwnedFd, signals: SignalFd) -> InitChildren<'a> {
        InitChildren { socket, signals, ids: HashMap::new() }
    }

    /// Becomes readable when a process has ended.
    pub(super) fn signals(&self) -> &SignalFd {
        &self.signals
    }

    /// Tells that the exit of a process is to be reported with this id.
    pub(super) fn expect(&mut self, pid: Pid, id: u64) {
        self.ids.insert(pid, id);
    }

    /// Reaps the processes that have ended.
    pub(super) fn reap_ended(&mut self) -> InitResult<()> {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        self.reap(false)
    }

    /// Waits until no process but init itself and the fork server is left, at most for the given time. Some
    /// processes end a moment after the main process, so they get this moment.
    pub(super) fn await_others(&mut self, fork_server: Option<Pid>, wait: Duration) -> InitResult<()> {
        let deadline = Instant::now() + wait.clamp(SHORT_WAIT, MAX_WAIT);
        loop {
            self.reap_ended()?;
            let any = match fork_server {
                None => kill(ALL_PROCESSES, None) != Err(Errno::ESRCH),
                Some(server) => !processes_but(server)?.is_empty(),
            };
            if !any || Instant::now() >= deadline {
                return Ok(());
            }
            let ended = PollFd::new(self.signals.as_fd(), PollFlags::POLLIN);
            match poll(&mut [ended], POLL_INTERVAL_MS) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return with_context("wait for processes", Err(error)),
            }
        }
    }

    /// Kills all processes in the sandbox but init itself. Returns whether there was any, once none is
    /// left.
    pub(super) fn kill_all(&mut self) -> InitResult<bool> {
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
    pub(super) fn kill_all_but(&mut self, fork_server: Pid) -> InitResult<bool> {
        let mut has_killed = false;
        loop {
            self.reap(false)?;
            let left = processes_but(fork_server)?;
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
            match reap_child(until_none) {
                Ok(Some(child)) => self.report_exit(&child)?,
                Ok(None) | Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return with_context("reap", Err(error)),
            }
        }
    }

    /// Reports the exit of a process, if the harness spawned it.
    fn report_exit(&mut self, child: &ReapedChild) -> InitResult<()> {
        self.report_exit_of(child.pid, child.exit)
    }

    /// The same for a process that another one has waited for.
    pub(super) fn report_exit_of(&mut self, pid: Pid, exit: ProcessExit) -> InitResult<()> {
        let Some(id) = self.ids.remove(&pid) else { return Ok(()) };
        let reply = ControlReply::ProcessExited { id, exit };
        with_context("report the exit of a process", send_message(self.socket.as_fd(), &reply, &[]))
    }
}

/// The processes in the sandbox but init itself and the fork server.
fn processes_but(fork_server: Pid) -> InitResult<Vec<Pid>> {
    let live = with_context("list processes", live_processes())?.into_iter();
    Ok(live.filter(|pid| pid.as_raw() != INIT_PID && *pid != fork_server).collect())
}

/// Sends a signal to every process in the pid namespace but init itself, all in one call: none that is forked
/// meanwhile is missed.
pub(super) fn send_signal_to_all(signal: i32) -> Result<(), Errno> {
    kill(ALL_PROCESSES, Signal::try_from(signal)?)
}

/// Sends a signal to one process.
pub(super) fn send_signal(pid_inside: i32, signal: i32) -> Result<(), Errno> {
    // 0 and negative numbers mean process groups or all processes, and 1 is init.
    if pid_inside <= INIT_PID {
        return Err(Errno::EINVAL);
    }
    kill(Pid::from_raw(pid_inside), Signal::try_from(signal)?)
}
