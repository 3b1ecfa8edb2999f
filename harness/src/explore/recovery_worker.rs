//! Rooms for the explorer: one in which the run is recorded, and booths in which states are tried one after the other.

use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::OFlag;

use super::crash_candidate::CrashCandidate;
use super::materialize::{Materializer, SmallFileCache};
use super::op_recorder::{OpRecorder, RecorderConfig};
use super::output_oracle::{BaselineValues, RecoveryResult};
use super::python_fork_server::PythonCommand;
use super::recording::Recording;
use super::{ExploreConfig, ExploreError};
use crate::gate::{FilterOptions, WatchedMounts, build_filter, file_id_of, mount_id, serve_notifications};
use crate::sandbox::{BindMount, CompletedCommand, LaunchSpec, ProcessExit, Sandbox, SandboxSpec, TmpfsSpec};

/// Bytes of each output that are kept.
const MAX_OUTPUT_BYTES: usize = 12 * 1024;
/// Layouts of up to this size in all are kept in memory.
const MAX_IN_MEMORY_BYTES: u64 = 384 * 1024 * 1024;
/// Bytes of the recorded run's outputs that are kept.
const MAX_RECORDED_OUTPUT_BYTES: usize = 1 << 20;

/// What the undisturbed run came to.
#[derive(Debug, Clone)]
pub struct BaselineRun {
    pub ended: Option<ProcessExit>,
    /// Everything it said, up to a bound.
    pub output: String,
    pub values: BaselineValues,
}

/// Runs the command once in copies of the watched folders and writes down what it does to them.
pub(super) fn record_baseline(orders: &ExploreConfig) -> Result<(Recording, BaselineRun), ExploreError> {
    let dir = orders.work_dir.join("recorded");
    let mut binds = Vec::new();
    let originals = orders.after_crash.as_ref().map_or(&orders.watched_dirs, |(folders, _)| folders);
    for (number, (root, original)) in orders.watched_dirs.iter().zip(originals).enumerate() {
        let copy = dir.join("root").join(number.to_string());
        copy_tree(original, &copy).map_err(ExploreError::file("copy", original))?;
        binds.push(BindMount { source: copy, mount_point: root.clone() });
    }
    let roots: Vec<(PathBuf, PathBuf)> =
        binds.iter().map(|bind| (bind.mount_point.clone(), bind.source.clone())).collect();
    let room = Sandbox::build(SandboxSpec { dir, mounts: Vec::new(), binds, memory_cgroup: false })?;
    let tape = RecordingSpec {
        command: &orders.command,
        roots: &roots,
        originals,
        payload_log: &orders.work_dir.join("tape"),
        saved_pattern: orders.oracle.saved.clone(),
        internal_pattern: None,
        cancelled: orders.cancelled,
    };
    let (mut recording, ended, words) = tape.record(&room)?;
    recording.acknowledged_before = orders.after_crash.as_ref().and_then(|(_, promised)| *promised);
    room.close()?;
    let consumed = orders.oracle.consumed(&words).into_iter().collect();
    let expected = BaselineValues { final_value: orders.oracle.final_value(&words), consumed };
    Ok((recording, BaselineRun { ended, output: words, values: expected }))
}

/// What is to be recorded in a room.
pub struct RecordingSpec<'a> {
    pub command: &'a LaunchSpec,
    /// Each watched folder, a mount of its own in the room: as the target names it, where its files lie for the harness.
    pub roots: &'a [(PathBuf, PathBuf)],
    /// Where their contents as they are now stay readable.
    pub originals: &'a [PathBuf],
    /// The file to be made for all written bytes.
    pub payload_log: &'a Path,
    pub saved_pattern: Option<regex::Regex>,
    /// Lines that its processes say to one another and that are to be written down.
    pub internal_pattern: Option<regex::Regex>,
    /// Asked now and then whether to stop.
    pub cancelled: fn() -> bool,
}

impl RecordingSpec<'_> {
    /// Runs the command to its end: what it did, how it ended (none: it was stopped), what it said, up to a bound.
    pub fn record(self, room: &Sandbox) -> Result<(Recording, Option<ProcessExit>, String), ExploreError> {
        let pipe = || {
            nix::unistd::pipe2(OFlag::O_CLOEXEC)
                .map_err(|error| ExploreError::System("make a pipe", error.into()))
        };
        let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?);
        let pipes = [&stdout, &stderr].map(|pipe| file_id_of(pipe.as_fd()));
        let pipes = pipes
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|error| ExploreError::System("look at a pipe", error))?;
        let start = RecorderConfig {
            roots: self.roots,
            payload_log: self.payload_log,
            output_pipes: pipes,
            saved_pattern: self.saved_pattern,
            internal_pattern: self.internal_pattern,
        };
        let recorder = OpRecorder::new(start, self.originals);
        let recorder = recorder.map_err(ExploreError::file("take stock for", self.payload_log))?;
        let recorder = Arc::new(Mutex::new(recorder));
        let mounts: Result<Vec<u64>, Error> =
            self.roots.iter().map(|(root, _)| mount_id(&room.host_path(root))).collect();
        let watched = WatchedMounts::new(
            mounts.map_err(|error| ExploreError::System("find the watched mounts", error))?,
        );
        let program = build_filter(&FilterOptions { extra_kinds: Vec::new(), stdio_writes: true });
        let words = [spawn_output_reader(stdout), spawn_output_reader(stderr)];
        let mut attendance = None;
        let overseer = Arc::clone(&recorder);
        let running =
            room.spawn_filtered(self.command, program, [their_stdout, their_stderr], |listener| {
                attendance = Some(serve_notifications(listener, watched, overseer));
            })?;
        let ended = loop {
            match running.wait_timeout(std::time::Duration::from_millis(200)) {
                Some(ended) => break Some(ended),
                None if (self.cancelled)() => break None,
                None => {}
            }
        };
        room.kill_all()?;
        if let Some(attendance) = attendance {
            attendance.join();
        }
        let words: Vec<String> = words.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
        let recording = recorder.lock().unwrap_or_else(PoisonError::into_inner).finish();
        let recording = recording.map_err(ExploreError::file("write", self.payload_log))?;
        Ok((recording, ended, words.join("\n")))
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

/// Files, folders and links; sockets, pipes and devices have no content that a crash could tear.
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

/// A room in which states are tried.
pub(super) struct RecoveryWorker<'a> {
    config: &'a ExploreConfig,
    recording: &'a Recording,
    materializer: Materializer<'a>,
    /// What the fork server is to run instead of the recovery's command.
    fork_command: Option<LaunchSpec>,
    sandbox: Option<Sandbox>,
}

impl<'a> RecoveryWorker<'a> {
    pub(super) fn build(
        orders: &'a ExploreConfig,
        recording: &'a Recording,
        small: &'a SmallFileCache,
        number: usize,
        largest: u64,
    ) -> Result<RecoveryWorker<'a>, ExploreError> {
        let dir = orders.work_dir.join(format!("booth-{number}"));
        std::fs::create_dir_all(&dir).map_err(ExploreError::file("create", &dir))?;
        let in_memory = largest.saturating_mul(8).saturating_mul(orders.jobs as u64) < MAX_IN_MEMORY_BYTES;
        let size_bytes = MAX_IN_MEMORY_BYTES;
        let mounts = if in_memory {
            vec![TmpfsSpec { mount_point: PathBuf::new(), size_bytes, inodes: None }]
        } else {
            Vec::new()
        };
        let shown = |number: usize| dir.join("root").join(number.to_string());
        let binds = orders.watched_dirs.iter().enumerate();
        let binds = binds
            .map(|(number, root)| BindMount { source: shown(number), mount_point: root.clone() })
            .collect();
        let room = Sandbox::build(SandboxSpec { dir: dir.clone(), mounts, binds, memory_cgroup: false })?;
        let base = if in_memory { room.host_path_in_root(Path::new("")) } else { room.root().to_path_buf() };
        let pool_most =
            if in_memory { MAX_IN_MEMORY_BYTES / 2 / orders.jobs as u64 } else { largest.saturating_mul(2) };
        let folders = (0..orders.watched_dirs.len()).map(|number| number.to_string()).collect();
        let layout = Materializer::new(recording, small, &base, folders, pool_most, orders.began_unix_s)
            .map_err(ExploreError::file("prepare", &base))?;
        let warm = match &orders.warm_modules[..] {
            [] => None,
            modules => Some(start_fork_server(orders, &room, modules)?),
        };
        Ok(RecoveryWorker {
            config: orders,
            recording,
            materializer: layout,
            fork_command: warm,
            sandbox: Some(room),
        })
    }

    /// Lays the state out, runs the recovery and the check on it.
    pub(super) fn try_candidate(
        &mut self,
        candidate: &CrashCandidate,
    ) -> Result<RecoveryResult, ExploreError> {
        let found = self.try_once(candidate, 1)?;
        // A busy machine is no finding: it gets three times the time before it is called hung.
        if found.ended.is_none() { self.try_once(candidate, 3) } else { Ok(found) }
    }

    fn try_once(
        &mut self,
        candidate: &CrashCandidate,
        patience: u32,
    ) -> Result<RecoveryResult, ExploreError> {
        let tree = candidate.tree(self.recording);
        let laid_out = self.materializer.materialize(&tree);
        laid_out.map_err(ExploreError::file("lay out a state in", &self.config.work_dir))?;
        let called = match &self.fork_command {
            Some(words) => self.run_in_sandbox(words, patience, true)?,
            None => self.run_in_sandbox(&self.config.resume, patience, false)?,
        };
        let check = match &self.config.check {
            Some(check) if called.exit == Some(ProcessExit::Exited(0)) => {
                Some(self.run_in_sandbox(check, patience, false)?)
            }
            _ => None,
        };
        Ok(self.config.oracle.observe(&called, check.as_ref()))
    }

    fn run_in_sandbox(
        &self,
        launch: &LaunchSpec,
        patience: u32,
        warm: bool,
    ) -> Result<CompletedCommand, ExploreError> {
        let room = self.sandbox.as_ref().ok_or(ExploreError::WorkerClosed)?;
        Ok(room.run_command(launch, self.config.timeout * patience, MAX_OUTPUT_BYTES, warm)?)
    }

    pub(super) fn close(mut self) -> Result<(), ExploreError> {
        self.sandbox.take().map_or(Ok(()), |room| room.close().map_err(ExploreError::from))
    }
}

/// Starts a fork server that has imported; what it is to be told for each recovery.
fn start_fork_server(
    orders: &ExploreConfig,
    room: &Sandbox,
    modules: &[String],
) -> Result<LaunchSpec, ExploreError> {
    let path = orders.resume.env.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let command = PythonCommand::parse(&orders.resume.argv, path).ok_or(ExploreError::NotPython)?;
    let server = LaunchSpec { argv: command.server_command(modules), ..orders.resume.clone() };
    room.start_fork_server(&server)?;
    Ok(LaunchSpec { argv: command.request, env: Vec::new(), cwd: None })
}
