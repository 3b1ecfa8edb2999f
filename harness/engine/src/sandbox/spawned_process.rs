//! A process that was started in a sandbox, as the harness sees it: its outputs, and how it ended.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::inbox::Inbox;
use super::protocol::ProcessExit;

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
    inbox: Arc<Inbox>,
    pid_inside: i32,
    outputs: Option<ProcessOutputs>,
}

impl SpawnedProcess {
    /// The process that init started for a request with this id.
    pub(super) fn new(id: u64, inbox: Arc<Inbox>, pid_inside: i32) -> SpawnedProcess {
        SpawnedProcess { id, inbox, pid_inside, outputs: None }
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
        self.inbox.exit_of(self.id, wait)
    }
}
