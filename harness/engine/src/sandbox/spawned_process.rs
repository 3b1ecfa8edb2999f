//! A process that was started in a sandbox, as the harness sees it: its outputs, and how it ended.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::protocol::ProcessExit;
use crate::locks::LockExt;

/// SIGKILL, with which the kernel ends the processes of a pid namespace whose init has ended.
const KILLED: i32 = nix::libc::SIGKILL;

/// Exits of spawned processes, by spawn id, as reported by init.
#[derive(Default)]
pub(super) struct ProcessExits {
    reported: Mutex<ReportedExits>,
    changed: Condvar,
}

#[derive(Default)]
struct ReportedExits {
    by_id: HashMap<u64, ProcessExit>,
    /// The sandbox's init has ended, and with it every process that has not been reported.
    all_killed: bool,
}

impl ProcessExits {
    /// Stores an exit and wakes those that wait for one.
    pub(super) fn report(&self, id: u64, exit: ProcessExit) {
        self.reported.locked().by_id.insert(id, exit);
        self.changed.notify_all();
    }

    /// Stores that all processes have ended which have not been reported, because init has.
    pub(super) fn report_all_killed(&self) {
        self.reported.locked().all_killed = true;
        self.changed.notify_all();
    }

    /// Waits for an exit. Returns `None` if there is none after `wait`.
    fn wait_for(&self, id: u64, wait: Duration) -> Option<ProcessExit> {
        let deadline = Instant::now() + wait;
        let mut reported = self.reported.locked();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match reported.by_id.get(&id) {
                Some(exit) => return Some(*exit),
                None if reported.all_killed => return Some(ProcessExit::Signalled(KILLED)),
                None if left.is_zero() => return None,
                None => {
                    let waited = self.changed.wait_timeout(reported, left);
                    reported = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// The reading ends of a process's standard output and error.
pub struct ProcessOutputs {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// A process that was started in a sandbox.
pub struct SpawnedProcess {
    id: u64,
    exits: Arc<ProcessExits>,
    pid_inside: i32,
    outputs: Option<ProcessOutputs>,
}

impl SpawnedProcess {
    /// The process that init started for a request with this id.
    pub(super) fn new(id: u64, exits: Arc<ProcessExits>, pid_inside: i32) -> SpawnedProcess {
        SpawnedProcess { id, exits, pid_inside, outputs: None }
    }

    /// Its pid within the sandbox.
    pub fn pid_inside(&self) -> i32 {
        self.pid_inside
    }

    /// Attaches the reading ends of the pipes that are its standard output and error.
    #[must_use]
    pub fn with_outputs(self, stdout: OwnedFd, stderr: OwnedFd) -> SpawnedProcess {
        SpawnedProcess { outputs: Some(ProcessOutputs { stdout, stderr }), ..self }
    }

    /// The reading ends of its standard output and error. Returns `None` on later calls.
    pub fn take_outputs(&mut self) -> Option<ProcessOutputs> {
        self.outputs.take()
    }

    /// Waits until the process ends. Returns `None` if it is still running after `wait`.
    pub fn wait_timeout(&self, wait: Duration) -> Option<ProcessExit> {
        self.exits.wait_for(self.id, wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_exit_of_the_process_or_after_its_time() {
        let exits = Arc::<ProcessExits>::default();
        let process = SpawnedProcess::new(2, Arc::clone(&exits), 7);
        exits.report(1, ProcessExit::Exited(3));
        assert_eq!(process.wait_timeout(Duration::from_millis(1)), None);
        let reporter = std::thread::spawn(move || exits.report(2, ProcessExit::Signalled(9)));
        assert_eq!(process.wait_timeout(Duration::from_secs(60)), Some(ProcessExit::Signalled(9)));
        assert!(reporter.join().is_ok());
    }

    #[test]
    fn the_end_of_init_ends_every_wait() {
        let exits = Arc::<ProcessExits>::default();
        let processes = [1, 2].map(|id| SpawnedProcess::new(id, Arc::clone(&exits), 7));
        exits.report(1, ProcessExit::Exited(0));
        exits.report_all_killed();
        let exits = processes.map(|process| process.wait_timeout(Duration::from_secs(60)));
        assert_eq!(exits, [Some(ProcessExit::Exited(0)), Some(ProcessExit::Signalled(9))]);
    }
}
