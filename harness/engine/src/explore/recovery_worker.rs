//! The sandboxes of the explorer: one in which the baseline run is recorded, and recovery workers, in which
//! crash states are tried one after the other. Knows neither crash models nor causes.

use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::fcntl::OFlag;

use super::crash_candidate::CrashCandidate;
use super::materialize::{Materializer, SmallFileCache};
use super::op_recorder::{OpRecorder, RecorderConfig};
use super::output_oracle::{BaselineValues, RecoveryResult};
use super::python_fork_server::PythonCommand;
use super::recording::Recording;
use super::{ExploreConfig, ExploreError};
use crate::gate::{FilterOptions, WatchedMounts, build_filter, file_id_of, mount_id, serve_notifications};
use crate::locks::LockExt;
use crate::sandbox::{BindMount, CompletedCommand, LaunchSpec, ProcessExit, Sandbox, SandboxSpec, TmpfsSpec};

/// At most this many bytes are kept of each output of a recovery.
const MAX_OUTPUT_BYTES: usize = 12 * 1024;
/// Crash states are materialized in memory if all workers together need at most about this many bytes.
const MAX_IN_MEMORY_BYTES: u64 = 384 * 1024 * 1024;
/// At most this many bytes are kept of each output of the recorded run.
const MAX_RECORDED_OUTPUT_BYTES: usize = 1 << 20;

/// The baseline run.
#[derive(Debug, Clone)]
pub struct BaselineRun {
    /// How it ended. `None`: it was stopped before its end.
    pub ended: Option<ProcessExit>,
    /// Its standard output and standard error, up to a bound.
    pub output: String,
    /// The values with which recoveries are compared.
    pub values: BaselineValues,
}

/// Runs the command once on copies of the watched directories and records its file operations.
pub(super) fn record_baseline(config: &ExploreConfig) -> Result<(Recording, BaselineRun), ExploreError> {
    let dir = config.work_dir.join("recorded");
    let mut binds = Vec::new();
    let originals = config.after_crash.as_ref().map_or(&config.watched_dirs, |(dirs, _)| dirs);
    for (number, (root, original)) in config.watched_dirs.iter().zip(originals).enumerate() {
        let copy = dir.join("root").join(number.to_string());
        copy_tree(original, &copy).map_err(ExploreError::file("copy", original))?;
        binds.push(BindMount { source: copy, mount_point: root.clone() });
    }
    let roots: Vec<(PathBuf, PathBuf)> =
        binds.iter().map(|bind| (bind.mount_point.clone(), bind.source.clone())).collect();
    let sandbox = Sandbox::build(SandboxSpec { dir, mounts: Vec::new(), binds, memory_cgroup: false })?;
    let spec = RecordingSpec {
        command: &config.command,
        roots: &roots,
        originals,
        payload_log: &config.work_dir.join("payload-log"),
        saved_pattern: config.oracle.saved.clone(),
        internal_pattern: None,
        cancelled: config.cancelled,
    };
    let (mut recording, ended, output) = spec.record(&sandbox)?;
    recording.acknowledged_before = config.after_crash.as_ref().and_then(|(_, acknowledged)| *acknowledged);
    sandbox.close()?;
    let consumed = config.oracle.consumed(&output).into_iter().collect();
    let values = BaselineValues { final_value: config.oracle.final_value(&output), consumed };
    Ok((recording, BaselineRun { ended, output, values }))
}

/// What is recorded in a sandbox.
pub struct RecordingSpec<'a> {
    /// The command to run.
    pub command: &'a LaunchSpec,
    /// Each watched directory, which is a mount of its own in the sandbox: its path for the target, and its
    /// path for the harness.
    pub roots: &'a [(PathBuf, PathBuf)],
    /// Unchanged copies of the watched directories, which stay readable.
    pub originals: &'a [PathBuf],
    /// The file to create for all written bytes.
    pub payload_log: &'a Path,
    /// A line of the output that acknowledges a step; the group `step` is its number.
    pub saved_pattern: Option<regex::Regex>,
    /// Lines that one process of the target sends to another and that are recorded too.
    pub internal_pattern: Option<regex::Regex>,
    /// Polled during the run; `true` stops it.
    pub cancelled: fn() -> bool,
}

impl RecordingSpec<'_> {
    /// Runs the command to its end. Returns the recording, how the command ended (`None`: it was stopped),
    /// and its output, up to a bound.
    ///
    /// # Errors
    /// A pipe, the payload log or the sandbox failed.
    pub fn record(self, sandbox: &Sandbox) -> Result<(Recording, Option<ProcessExit>, String), ExploreError> {
        let pipe = || {
            nix::unistd::pipe2(OFlag::O_CLOEXEC)
                .map_err(|error| ExploreError::System("create a pipe", error.into()))
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        let output_pipes = [&stdout, &stderr].map(|pipe| file_id_of(pipe.as_fd()));
        let output_pipes = output_pipes
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| ExploreError::System("identify a pipe", error))?;
        let recorder_config = RecorderConfig {
            roots: self.roots,
            payload_log: self.payload_log,
            output_pipes,
            saved_pattern: self.saved_pattern,
            internal_pattern: self.internal_pattern,
        };
        let recorder = OpRecorder::new(recorder_config, self.originals);
        let recorder =
            recorder.map_err(ExploreError::file("index the watched directories for", self.payload_log))?;
        let recorder = Arc::new(Mutex::new(recorder));
        let mounts: Result<Vec<u64>, Error> =
            self.roots.iter().map(|(root, _)| mount_id(&sandbox.host_path(root))).collect();
        let watched = WatchedMounts::new(
            mounts.map_err(|error| ExploreError::System("find the watched mounts", error))?,
        );
        let program = build_filter(&FilterOptions { extra_kinds: Vec::new(), stdio_writes: true });
        let readers = [spawn_output_reader(stdout), spawn_output_reader(stderr)];
        let mut supervisor = None;
        let handler = Arc::clone(&recorder);
        let running =
            sandbox.spawn_filtered(self.command, program, [their_stdout, their_stderr], |listener| {
                supervisor = Some(serve_notifications(listener, watched, handler));
            })?;
        let ended = loop {
            match running.wait_timeout(std::time::Duration::from_millis(200)) {
                Some(ended) => break Some(ended),
                None if (self.cancelled)() => break None,
                None => {}
            }
        };
        sandbox.kill_all()?;
        if let Some(supervisor) = supervisor {
            supervisor.join();
        }
        let outputs: Vec<String> =
            readers.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
        let recording = recorder.locked().finish();
        let recording = recording.map_err(ExploreError::file("write", self.payload_log))?;
        Ok((recording, ended, outputs.join("\n")))
    }
}

fn spawn_output_reader(output: OwnedFd) -> std::thread::JoinHandle<String> {
    use std::io::Read;
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut output = std::fs::File::from(output);
        let mut part = [0; 8192];
        while let Ok(read) = output.read(&mut part) {
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(&part[..read]);
            if bytes.len() > MAX_RECORDED_OUTPUT_BYTES {
                bytes.drain(..MAX_RECORDED_OUTPUT_BYTES / 2);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Copies files, directories and symbolic links. Leaves out sockets, pipes and devices: they have no content
/// on the disk.
///
/// # Errors
/// Something cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(entry.path())?, &to)?;
        } else if kind.is_file() {
            std::fs::copy(entry.path(), &to)?;
            let modified = entry.metadata()?.modified()?;
            std::fs::File::options().append(true).open(&to)?.set_modified(modified)?;
        }
    }
    Ok(())
}

/// A sandbox in which crash states are tried, one at a time.
pub(super) struct RecoveryWorker<'a> {
    config: &'a ExploreConfig,
    recording: &'a Recording,
    materializer: Materializer<'a>,
    /// The request for the fork server that replaces the command of the recovery. `None`: there is no fork
    /// server.
    fork_command: Option<LaunchSpec>,
    sandbox: Option<Sandbox>,
}

impl<'a> RecoveryWorker<'a> {
    pub(super) fn build(
        config: &'a ExploreConfig,
        recording: &'a Recording,
        small_files: &'a SmallFileCache,
        number: usize,
        largest_bytes: u64,
    ) -> Result<RecoveryWorker<'a>, ExploreError> {
        let dir = config.work_dir.join(format!("worker-{number}"));
        std::fs::create_dir_all(&dir).map_err(ExploreError::file("create", &dir))?;
        let in_memory =
            largest_bytes.saturating_mul(8).saturating_mul(config.jobs as u64) < MAX_IN_MEMORY_BYTES;
        let size_bytes = MAX_IN_MEMORY_BYTES;
        let mounts = if in_memory {
            vec![TmpfsSpec { mount_point: PathBuf::new(), size_bytes, inodes: None }]
        } else {
            Vec::new()
        };
        let watched_copy = |number: usize| dir.join("root").join(number.to_string());
        let binds = config.watched_dirs.iter().enumerate();
        let binds = binds
            .map(|(number, root)| BindMount { source: watched_copy(number), mount_point: root.clone() })
            .collect();
        let sandbox = Sandbox::build(SandboxSpec { dir: dir.clone(), mounts, binds, memory_cgroup: false })?;
        let base =
            if in_memory { sandbox.host_path_in_root(Path::new("")) } else { sandbox.root().to_path_buf() };
        let max_pool_bytes = if in_memory {
            MAX_IN_MEMORY_BYTES / 2 / config.jobs as u64
        } else {
            largest_bytes.saturating_mul(2)
        };
        let dir_names = (0..config.watched_dirs.len()).map(|number| number.to_string()).collect();
        let materializer =
            Materializer::new(recording, small_files, &base, dir_names, max_pool_bytes, config.began_unix_s)
                .map_err(ExploreError::file("prepare", &base))?;
        let fork_command = match &config.warm_modules[..] {
            [] => None,
            modules => Some(start_fork_server(config, &sandbox, modules)?),
        };
        Ok(RecoveryWorker { config, recording, materializer, fork_command, sandbox: Some(sandbox) })
    }

    /// Materializes the candidate, runs the recovery on it, then the check.
    pub(super) fn try_candidate(
        &mut self,
        candidate: &CrashCandidate,
    ) -> Result<RecoveryResult, ExploreError> {
        let result = self.try_once(candidate, 1)?;
        // A busy machine must not give a finding: the recovery is hung only if three times the limit does not
        // suffice.
        if result.ended.is_none() { self.try_once(candidate, 3) } else { Ok(result) }
    }

    fn try_once(
        &mut self,
        candidate: &CrashCandidate,
        timeout_factor: u32,
    ) -> Result<RecoveryResult, ExploreError> {
        let tree = candidate.tree(self.recording);
        let materialized = self.materializer.materialize(&tree);
        materialized.map_err(ExploreError::file("materialize a crash state in", &self.config.work_dir))?;
        let completed = match &self.fork_command {
            Some(request) => self.run_in_sandbox(request, timeout_factor, true)?,
            None => self.run_in_sandbox(&self.config.resume, timeout_factor, false)?,
        };
        let check = match &self.config.check {
            Some(check) if completed.exit == Some(ProcessExit::Exited(0)) => {
                Some(self.run_in_sandbox(check, timeout_factor, false)?)
            }
            _ => None,
        };
        Ok(self.config.oracle.observe(&completed, check.as_ref()))
    }

    fn run_in_sandbox(
        &self,
        launch: &LaunchSpec,
        timeout_factor: u32,
        by_fork_server: bool,
    ) -> Result<CompletedCommand, ExploreError> {
        let sandbox = self.sandbox.as_ref().ok_or(ExploreError::WorkerClosed)?;
        Ok(sandbox.run_command(
            launch,
            self.config.timeout * timeout_factor,
            MAX_OUTPUT_BYTES,
            by_fork_server,
        )?)
    }

    pub(super) fn close(mut self) -> Result<(), ExploreError> {
        self.sandbox.take().map_or(Ok(()), |sandbox| sandbox.close().map_err(ExploreError::from))
    }
}

/// Starts a fork server that imports the modules. Returns the request that runs a recovery in it.
fn start_fork_server(
    config: &ExploreConfig,
    sandbox: &Sandbox,
    modules: &[String],
) -> Result<LaunchSpec, ExploreError> {
    let path = config.resume.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let command = PythonCommand::parse(&config.resume.argv, path).ok_or(ExploreError::NotPython)?;
    let server = LaunchSpec { argv: command.server_command(modules), ..config.resume.clone() };
    sandbox.start_fork_server(&server)?;
    Ok(LaunchSpec { argv: command.request, env: Vec::new(), cwd: None })
}
