//! Commands that a sandbox keeps and runs again and again, and its fork server. Knows neither mounts nor limits.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Sandbox;
use crate::sandbox::error::SandboxError;
use crate::sandbox::init_client::unexpected_reply;
use crate::sandbox::protocol::{
    CommandRunner, CompletedCommand, ControlReply, ControlRequest, LaunchSpec, REPLY_TIMEOUT, StoredCommand,
};
use crate::sandbox::spawned_process::SpawnedProcess;

/// Most bytes kept of each output of a command. Both outputs must fit into one message, even if each byte
/// becomes a replacement character.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// How long the start of a fork server may take, imports included. Longer than init's own limit.
const FORK_SERVER_TIMEOUT: Duration = Duration::from_secs(150);

/// How long a run of a stored command may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunTimes {
    /// Its main process. It is killed after this time.
    pub limit: Duration,
    /// Its other processes, from the end of the main process on. They are killed after this time, but not
    /// before a moment has passed.
    pub rest: Duration,
}

/// One run of a stored command.
struct StoredRun {
    command: StoredCommand,
    limit: Duration,
    /// How long other processes are waited for after the main process.
    rest: Duration,
    max_output_bytes: usize,
    fresh: bool,
}

impl Sandbox {
    /// Starts a fork server; see `fork_server`. Needs a sandbox with its own /proc.
    ///
    /// # Errors
    /// If the server does not become ready in time, or init has ended.
    pub fn start_fork_server(&self, launch: &LaunchSpec) -> Result<(), SandboxError> {
        let request = ControlRequest::StartForkServer { launch: launch.clone() };
        self.note_fork_server("start a fork server", &request)
    }

    /// Starts a stored command of the fork server, with pipes as its standard output and error. It has a session of its
    /// own, as a program that [`spawn`](Sandbox::spawn) starts. One runs at a time.
    ///
    /// # Errors
    /// If the fork server has ended, or init has ended.
    pub fn spawn_forked(&self, command: StoredCommand) -> Result<SpawnedProcess, SandboxError> {
        self.parts.client.spawn_forked(command)
    }

    /// Kills all processes but the fork server, undoes what they have changed in the sandbox's view of the host, and
    /// replaces its network and IPC namespaces if something was left in them. The root stays as it is.
    ///
    /// # Errors
    /// If the fork server has ended, a mount or a namespace cannot be made again, or init has ended.
    pub fn reset(&self) -> Result<(), SandboxError> {
        self.kill_all()?;
        self.note_fork_server("make a sandbox as new", &ControlRequest::Reset)
    }

    /// Sends a request after which the fork server may be another process.
    fn note_fork_server(&self, doing: &str, request: &ControlRequest) -> Result<(), SandboxError> {
        match self.parts.client.request_within(request, &[], FORK_SERVER_TIMEOUT)? {
            ControlReply::ForkServer { pid_inside } => {
                self.fork_server.store(pid_inside.unwrap_or(0), Ordering::Relaxed);
                Ok(())
            }
            other => Err(unexpected_reply(doing, other)),
        }
    }

    pub(super) fn is_fork_server(&self, pid_inside: i32) -> bool {
        pid_inside == self.fork_server.load(Ordering::Relaxed)
    }

    /// Sends a command that will be run several times. Its arguments and environment are sent once.
    ///
    /// # Errors
    /// If its arguments are too long for a fork server, or init has ended. A program that can't be started is
    /// an error of [`run_stored`](Sandbox::run_stored).
    pub fn store_command(
        &self,
        launch: &LaunchSpec,
        runner: CommandRunner,
    ) -> Result<StoredCommand, SandboxError> {
        self.store_watched_command(launch, runner, Vec::new())
    }

    /// The same for a command of which the lines that match one of these patterns are kept, however long its
    /// output is.
    ///
    /// # Errors
    /// Those of [`store_command`](Sandbox::store_command).
    pub fn store_watched_command(
        &self,
        launch: &LaunchSpec,
        runner: CommandRunner,
        patterns: Vec<String>,
    ) -> Result<StoredCommand, SandboxError> {
        let request = ControlRequest::StoreCommand { launch: launch.clone(), runner, patterns };
        match self.parts.client.request(&request, &[])? {
            ControlReply::Stored(command) => Ok(command),
            other => Err(unexpected_reply("store a command", other)),
        }
    }

    /// Runs a command of this sandbox until it ends or `limit` has passed, then kills all processes that are
    /// left of it. At most `max_output_bytes` of each output are kept, and never more than 1 MiB.
    ///
    /// # Errors
    /// If the command can't be started, or init has ended.
    pub fn run_stored(
        &self,
        command: StoredCommand,
        limit: Duration,
        max_output_bytes: usize,
    ) -> Result<CompletedCommand, SandboxError> {
        self.complete_run(StoredRun { command, limit, rest: Duration::ZERO, max_output_bytes, fresh: false })
    }

    /// Undoes what commands have changed in the sandbox's view of the host, replaces its network and IPC
    /// namespaces if something was left in them, and then does what [`run_stored`](Sandbox::run_stored) does.
    /// Cheap if nothing was left. No process of the target may be running.
    ///
    /// # Errors
    /// If a mount or a namespace cannot be made again, the command can't be started, or init has ended.
    pub fn run_fresh(
        &self,
        command: StoredCommand,
        limit: Duration,
        max_output_bytes: usize,
    ) -> Result<CompletedCommand, SandboxError> {
        self.run_fresh_with_rest(command, RunTimes { limit, rest: Duration::ZERO }, max_output_bytes)
    }

    /// The same, and waits for the other processes of the command after its main process has ended.
    ///
    /// # Errors
    /// Those of [`run_fresh`](Sandbox::run_fresh).
    pub fn run_fresh_with_rest(
        &self,
        command: StoredCommand,
        times: RunTimes,
        max_output_bytes: usize,
    ) -> Result<CompletedCommand, SandboxError> {
        let RunTimes { limit, rest } = times;
        self.complete_run(StoredRun { command, limit, rest, max_output_bytes, fresh: true })
    }

    fn complete_run(&self, run: StoredRun) -> Result<CompletedCommand, SandboxError> {
        let StoredRun { command, limit, rest, max_output_bytes, fresh } = run;
        let request = ControlRequest::RunStored {
            command,
            timeout_ms: milliseconds(limit),
            rest_ms: milliseconds(rest),
            max_output_bytes: max_output_bytes.min(MAX_OUTPUT_BYTES),
            fresh,
        };
        // A fork server in replaced namespaces starts again.
        let preparation = if fresh { FORK_SERVER_TIMEOUT } else { Duration::ZERO };
        // Outputs that stay open are waited for, and then the processes.
        let rest = rest.saturating_mul(2);
        let wait = limit.saturating_add(rest).saturating_add(preparation).saturating_add(REPLY_TIMEOUT);
        match self.parts.client.request_within(&request, &[], wait)? {
            ControlReply::CommandEnded(completed) => Ok(completed),
            other => Err(unexpected_reply("run a command", other)),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
