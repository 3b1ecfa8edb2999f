//! A recovery worker: a sandbox in which crash states are tried one after the other. Knows neither crash
//! models nor causes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::materialize::{MaterializePlace, Materializer};
use super::output_oracle::{OutputOracle, RecoveryResult};
use super::python_fork_server::{ForkedPython, ImportNotes, ServerImports};
use super::replay_spec::ReplaySpec;
use super::small_file_cache::SmallFileCache;
use crate::explore::error::ExploreError;
use crate::explore::record::Recording;
use crate::explore::states::CrashCandidate;
use crate::file_error::file_error;
use crate::sandbox::{
    BindMount, CommandRunner, CompletedCommand, OverlayMount, ProcessExit, RunTimes, Sandbox, SandboxError,
    SandboxSpec, StoredCommand, TmpfsSpec, current_dir,
};

/// At most this many bytes are kept of each output of a recovery.
const MAX_OUTPUT_BYTES: usize = 12 * 1024;
/// The same of one that notes its imports, which it does in its output.
const MAX_NOTED_BYTES: usize = 1 << 20;
/// Crash states are materialized in memory if all workers together need at most about this many bytes.
const MAX_IN_MEMORY_BYTES: u64 = 384 * 1024 * 1024;

/// Processes that end sooner after the main process do nothing that would have to be waited for.
const MIN_OUTLIVED: Duration = Duration::from_millis(20);

/// The exit code with which a shell reports that it could not start a program.
const NOT_STARTED_EXIT: i32 = 127;

/// How long the processes that a recovery's main process leaves may take: in relation to those of the recorded run,
/// so that a recovery does as much as that run did. Where that run's were not waited for to their ends, no time.
fn rest_time(recording: &Recording) -> Duration {
    match recording.gaps.outlived {
        outlived if outlived < MIN_OUTLIVED => Duration::ZERO,
        outlived => outlived * 3 + Duration::from_secs(1),
    }
}

/// Tells the workers of one exploration apart, which may run at the same time. The directory of a worker has its name.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WorkerName {
    /// Tries crash states.
    State(usize),
    /// Recovers from undamaged files.
    Control(usize),
    /// Notes what a recovery imports.
    Imports,
    /// Compares forked recoveries with new processes.
    Comparison(usize),
    /// Repeats states after all were tried.
    Repeat,
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerName::State(nth) => write!(f, "state-{nth}"),
            WorkerName::Control(nth) => write!(f, "control-{nth}"),
            WorkerName::Imports => f.write_str("imports"),
            WorkerName::Comparison(nth) => write!(f, "comparison-{nth}"),
            WorkerName::Repeat => f.write_str("repeat"),
        }
    }
}

/// How long one recovery may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecoveryLimit {
    /// The time limit of the exploration.
    Usual,
    /// Three times that limit, for a recovery that is repeated alone because it has exceeded the usual one.
    Tripled,
}

impl RecoveryLimit {
    fn factor(self) -> u32 {
        match self {
            RecoveryLimit::Usual => 1,
            RecoveryLimit::Tripled => 3,
        }
    }
}

/// The commands of a recovery, which the sandbox keeps.
struct RecoveryCommands {
    resume: StoredCommand,
    check: Option<StoredCommand>,
}

/// How the recoveries of a worker start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecoveryStart {
    /// Each is a new process.
    NewProcess,
    /// Each is forked from a Python interpreter.
    Forked(ServerImports),
}

/// What a recovery printed, and how it ended.
pub(crate) struct CompletedRecovery {
    pub(crate) resume: CompletedCommand,
    /// `None`: no check was run.
    pub(crate) check: Option<CompletedCommand>,
}

/// A recovery, and what it has noted of its imports.
pub(crate) struct NotedRecovery {
    pub(crate) result: RecoveryResult,
    /// `None`: it did not note anything.
    pub(crate) notes: Option<ImportNotes>,
}

/// What one worker needs.
#[derive(Clone, Copy)]
pub(super) struct WorkerSpec<'a> {
    pub(super) replay: &'a ReplaySpec,
    pub(super) oracle: &'a OutputOracle,
    pub(super) recording: &'a Recording,
    pub(super) small_files: &'a SmallFileCache,
    pub(super) start: &'a RecoveryStart,
    /// The approximate size of the largest tree that is materialized.
    pub(super) largest_tree_bytes: u64,
    pub(super) name: WorkerName,
}

impl WorkerSpec<'_> {
    fn is_in_memory(&self) -> bool {
        let needed_bytes = self.largest_tree_bytes.saturating_mul(8).saturating_mul(self.replay.jobs as u64);
        needed_bytes < MAX_IN_MEMORY_BYTES
    }

    fn max_pool_bytes(&self) -> u64 {
        if self.is_in_memory() {
            MAX_IN_MEMORY_BYTES / 2 / self.replay.jobs as u64
        } else {
            self.largest_tree_bytes.saturating_mul(2)
        }
    }

    fn build_sandbox(&self, dir: PathBuf) -> Result<Sandbox, ExploreError> {
        let in_memory =
            TmpfsSpec { mount_point: PathBuf::new(), size_bytes: MAX_IN_MEMORY_BYTES, inodes: None };
        let mounts = if self.is_in_memory() { vec![in_memory] } else { Vec::new() };
        let (mut binds, mut overlays) = (Vec::new(), Vec::new());
        for (number, mount_point) in self.replay.watched_dirs.iter().enumerate() {
            let (own_dir, mount_point) = (dir.join("root").join(number.to_string()), mount_point.clone());
            match self.recording.lower_layers_of(number) {
                [] => binds.push(BindMount { source: own_dir, mount_point }),
                lowers => {
                    overlays.push(OverlayMount { lowers: lowers.to_vec(), upper: own_dir, mount_point });
                }
            }
        }
        let spec = SandboxSpec {
            dir,
            mounts,
            binds,
            cgroups: Vec::new(),
            visible_root: None,
            distinct_pids: true,
            host_access: self.replay.host_access.clone(),
            cwd: self.replay.resume.cwd.clone().map_or_else(current_dir, Ok)?,
        };
        Ok(Sandbox::build_with_overlays(spec, overlays)?)
    }

    /// Sends the commands of a recovery to the sandbox, and starts a fork server for them if recoveries are forked.
    fn store_commands(&self, sandbox: &Sandbox) -> Result<RecoveryCommands, ExploreError> {
        let ReplaySpec { resume, watched_dirs, .. } = self.replay;
        let patterns = self.oracle.line_patterns();
        let stored = match self.start {
            RecoveryStart::NewProcess => {
                sandbox.store_watched_command(resume, CommandRunner::NewProcess, patterns)?
            }
            RecoveryStart::Forked(imports) => {
                let ForkedPython { server, request } =
                    ForkedPython::of(resume, imports, watched_dirs).ok_or(ExploreError::NotPython)?;
                sandbox.start_fork_server(&server).map_err(ExploreError::of_fork_server)?;
                sandbox.store_watched_command(&request, CommandRunner::ForkServer, patterns)?
            }
        };
        let check = self.replay.check.as_ref();
        let check = check.map(|check| sandbox.store_command(check, CommandRunner::NewProcess)).transpose()?;
        Ok(RecoveryCommands { resume: stored, check })
    }

    /// Whether the program of a command is one of the files of a crash state. If it cannot be started, that is
    /// then the crash's work.
    fn is_watched_program(&self, program: &str) -> bool {
        self.replay.watched_dirs.iter().any(|dir| Path::new(program).starts_with(dir))
    }
}

/// A sandbox in which crash states are tried, one at a time.
pub(crate) struct RecoveryWorker<'a> {
    spec: WorkerSpec<'a>,
    materializer: Materializer<'a>,
    commands: RecoveryCommands,
    sandbox: Option<Sandbox>,
}

impl<'a> RecoveryWorker<'a> {
    pub(super) fn build(spec: WorkerSpec<'a>) -> Result<RecoveryWorker<'a>, ExploreError> {
        let dir = spec.replay.work_dir.join(format!("worker-{}", spec.name));
        std::fs::create_dir_all(&dir).map_err(file_error::<ExploreError>("create", &dir))?;
        let sandbox = spec.build_sandbox(dir)?;
        let base = sandbox.host_path_in_root(Path::new(""));
        let place = MaterializePlace {
            base: base.clone(),
            dir_names: (0..spec.replay.watched_dirs.len()).map(|number| number.to_string()).collect(),
            began_unix_s: spec.replay.began_unix_s,
        };
        let materializer = Materializer::new(spec.recording, spec.small_files, place, spec.max_pool_bytes())
            .map_err(file_error::<ExploreError>("prepare", &base))?;
        let commands = spec.store_commands(&sandbox)?;
        Ok(RecoveryWorker { spec, materializer, commands, sandbox: Some(sandbox) })
    }

    /// Materializes the candidate, runs the recovery on it, then the check.
    ///
    /// # Errors
    /// The sandbox failed, or a file could not be written.
    pub(crate) fn try_candidate(
        &mut self,
        candidate: &CrashCandidate,
        limit: RecoveryLimit,
    ) -> Result<RecoveryResult, ExploreError> {
        Ok(self.try_noting(candidate, limit)?.result)
    }

    /// The same, and takes over what the recovery has noted of its imports.
    ///
    /// # Errors
    /// Those of [`try_candidate`](RecoveryWorker::try_candidate).
    pub(crate) fn try_noting(
        &mut self,
        candidate: &CrashCandidate,
        limit: RecoveryLimit,
    ) -> Result<NotedRecovery, ExploreError> {
        let is_noting = *self.spec.start == RecoveryStart::Forked(ServerImports::Noting);
        let max_output_bytes = if is_noting { MAX_NOTED_BYTES } else { MAX_OUTPUT_BYTES };
        let CompletedRecovery { mut resume, check } = self.run(candidate, limit, max_output_bytes)?;
        let notes = if is_noting { ImportNotes::take_from(&mut resume) } else { None };
        Ok(NotedRecovery { result: self.spec.oracle.observe(&resume, check.as_ref()), notes })
    }

    /// The same, for its output: as much of it as a sandbox keeps.
    ///
    /// # Errors
    /// The sandbox failed, or a file could not be written.
    pub(crate) fn run_with_whole_output(
        &mut self,
        candidate: &CrashCandidate,
    ) -> Result<CompletedRecovery, ExploreError> {
        self.run(candidate, RecoveryLimit::Usual, usize::MAX)
    }

    fn run(
        &mut self,
        candidate: &CrashCandidate,
        limit: RecoveryLimit,
        max_output_bytes: usize,
    ) -> Result<CompletedRecovery, ExploreError> {
        let replay = self.spec.replay;
        let tree = candidate.tree(self.spec.recording);
        let materialized = self.materializer.materialize(tree);
        materialized.map_err(file_error::<ExploreError>("materialize a crash state in", &replay.work_dir))?;
        let sandbox = self.sandbox.as_ref().ok_or(ExploreError::WorkerClosed)?;
        let timeout = replay.timeout.saturating_mul(limit.factor());
        // Nothing that an earlier recovery left outside of the watched directories must meet this one.
        let times = RunTimes { limit: timeout, rest: rest_time(self.spec.recording).min(timeout) };
        let completed = sandbox.run_fresh_with_rest(self.commands.resume, times, max_output_bytes);
        let resume = self.completed(completed)?;
        let check = match self.commands.check {
            Some(check) if resume.exit == Some(ProcessExit::Exited(0)) => {
                Some(self.completed(sandbox.run_stored(check, timeout, max_output_bytes))?)
            }
            _ => None,
        };
        Ok(CompletedRecovery { resume, check })
    }

    /// The result of a command. If its program is a part of the crash state and could not be started, it is that
    /// of a shell.
    fn completed(
        &self,
        run: Result<CompletedCommand, SandboxError>,
    ) -> Result<CompletedCommand, ExploreError> {
        match run {
            Err(SandboxError::NotStarted { program, source }) if self.spec.is_watched_program(&program) => {
                Ok(CompletedCommand {
                    exit: Some(ProcessExit::Exited(NOT_STARTED_EXIT)),
                    stdout: String::new(),
                    stderr: format!("could not start `{program}`: {source}"),
                    watched_lines: Vec::new(),
                    watched_left_out: 0,
                    left_processes: false,
                })
            }
            completed => Ok(completed?),
        }
    }

    /// Removes the sandbox.
    ///
    /// # Errors
    /// The files of the last crash state, or the sandbox, could not be removed.
    pub(crate) fn close(mut self) -> Result<(), ExploreError> {
        // An ordinary user cannot remove what lies in a directory that is read-only.
        let work_dir = &self.spec.replay.work_dir;
        self.materializer.clear().map_err(file_error::<ExploreError>("empty a crash state in", work_dir))?;
        self.sandbox.take().map_or(Ok(()), |sandbox| sandbox.close().map_err(ExploreError::from))
    }
}
