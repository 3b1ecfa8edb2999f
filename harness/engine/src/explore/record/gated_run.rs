//! Runs one command behind the gate in a sandbox, and records its file operations and its output. Does not
//! know what the recording is for.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use regex::Regex;
use scenarios::{ExplorationNote, FailedRun, OutputLine, OutputStream, UndisturbedCommand};

use super::final_tree::TreeComparison;
use super::forward_waits::PhaseLines;
use super::initial_tree::WatchedRoot;
use super::op_recorder::OpRecorder;
use super::recorder_config::RecorderConfig;
use super::recording::{Op, OpEffect, Recording};
use super::run_watch::{RecordingProgress, RestOfRun, RunWatch};
use crate::explore::error::ExploreError;
use crate::file_error::file_error;
use crate::gate::{
    FilterOptions, SupervisorThread, WatchedMounts, build_filter, file_id_of, serve_notifications,
};
use crate::locks::LockExt;
use crate::sandbox::{LaunchSpec, ProcessExit, Sandbox, SpawnedProcess};

/// A recorded run may take this many times as long as the target file allows, because the gate performs each of
/// its file operations.
pub const RECORDING_FACTOR: u32 = 3;
/// At most this many bytes are kept of each output of the recorded run.
const MAX_RECORDED_OUTPUT_BYTES: usize = 1 << 20;

/// A command to record, in a sandbox that exists.
pub struct GatedRun<'a> {
    /// The command to run.
    pub command: &'a LaunchSpec,
    /// The watched directories. Each is a mount of its own in the sandbox.
    pub roots: &'a [WatchedRoot],
    /// For each watched directory, the unchanged directories whose files it shows, which stay readable. The
    /// topmost first.
    pub originals: &'a [Vec<PathBuf>],
    /// The file to create for all written bytes.
    pub payload_log: &'a Path,
    /// A line of the output that acknowledges a step; the group `step` is its number.
    pub saved_pattern: Option<Regex>,
    /// Further lines that are recorded however long the output is: those by which recoveries are judged.
    pub announced: Vec<Regex>,
    /// A phase whose crash states are wanted.
    pub phase: Option<PhaseLines>,
    /// Files and directories, as the target sees them, of which changes that could not be followed are accepted.
    pub unfollowed: &'a [PathBuf],
    /// Whether the connections that the command tries to make are noted.
    pub notes_connections: bool,
    /// The run is stopped after this time. `None`: it may take any time.
    pub time_limit: Option<Duration>,
    /// Polled during the run; `true` stops it.
    pub cancelled: fn() -> bool,
}

/// What one run of a command did.
#[derive(Debug, Clone)]
pub struct CommandRecording {
    /// Its file operations.
    pub recording: Recording,
    /// How it ended. `None`: it was stopped before its end.
    pub ended: Option<ProcessExit>,
    /// The recorded lines of its standard output and standard error.
    pub output: String,
    /// The last lines of each output.
    pub last_lines: Vec<OutputLine>,
    /// How long it took.
    pub seconds: f64,
}

impl CommandRecording {
    /// The run as one that did not end well.
    pub fn failed_run(&self) -> FailedRun {
        FailedRun {
            last_lines: self.last_lines.clone(),
            sandbox_hints: self.recording.gaps.sandbox_hints.clone(),
            ..FailedRun::new(UndisturbedCommand::Recording, ProcessExit::ending(self.ended), Vec::new())
        }
    }
}

/// The two ends of a pipe behind an output of the target.
struct OutputPipe {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl OutputPipe {
    fn open() -> Result<OutputPipe, ExploreError> {
        let (ours, theirs) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(ExploreError::system("create a pipe"))?;
        Ok(OutputPipe { ours, theirs })
    }
}

/// How a recorded run came to its end.
struct RunEnd {
    /// How the main process ended. `None`: it was stopped before its end.
    exit: Option<ProcessExit>,
    /// What became of the other processes.
    rest: RestOfRun,
}

impl RunEnd {
    fn await_end(watch: &RunWatch<'_>, main: &SpawnedProcess) -> RunEnd {
        let no_rest = RestOfRun::Ended { after: Duration::ZERO };
        let exit = watch.await_main(main);
        // A run that failed is not explored, whatever its processes still do.
        if exit != Some(ProcessExit::Exited(0)) {
            return RunEnd { exit, rest: no_rest };
        }
        match watch.await_rest() {
            RestOfRun::Cancelled => RunEnd { exit: None, rest: no_rest },
            rest => RunEnd { exit, rest },
        }
    }
}

impl GatedRun<'_> {
    /// Runs the command and what it starts to their ends, or until the time limit or until it is cancelled.
    ///
    /// # Errors
    /// A pipe, the payload log or the sandbox failed, or what the run did could not be followed.
    pub fn record(self, sandbox: &Sandbox) -> Result<CommandRecording, ExploreError> {
        self.record_reporting(sandbox, &|_| ())
    }

    /// The same, and calls `report` with the progress, several times a second.
    ///
    /// # Errors
    /// Those of [`record`](GatedRun::record).
    pub fn record_reporting(
        self,
        sandbox: &Sandbox,
        report: &dyn Fn(RecordingProgress),
    ) -> Result<CommandRecording, ExploreError> {
        let (stdout, stderr) = (OutputPipe::open()?, OutputPipe::open()?);
        let recorder = Arc::new(Mutex::new(self.recorder(&[&stdout.ours, &stderr.ours])?));
        let pinned_roots = PinnedRoots::open(self.roots)?;
        let roots = self.roots.iter().map(|root| sandbox.host_path(&root.seen_by_target));
        let watched = WatchedMounts::of(roots).map_err(ExploreError::system("find the watched mounts"))?;
        let program = build_filter(&FilterOptions {
            extra_kinds: Vec::new(),
            connections: self.notes_connections,
            ..FilterOptions::default()
        });
        let readers = [spawn_output_reader(stdout.ours), spawn_output_reader(stderr.ours)];
        let mut supervisor = None;
        let handler = Arc::clone(&recorder);
        let outputs = [stdout.theirs, stderr.theirs];
        let running = sandbox.spawn_filtered(self.command, program, outputs, |listener, rules| {
            supervisor = Some(serve_notifications(listener, watched, handler, rules));
        });
        let watch = RunWatch {
            sandbox,
            recorder: &recorder,
            supervisor: supervisor.as_ref(),
            began: Instant::now(),
            time_limit: self.time_limit,
            cancelled: self.cancelled,
            report,
        };
        let ended = running.map(|running| RunEnd::await_end(&watch, &running));
        let seconds = watch.began.elapsed().as_secs_f64();
        // Fails if init has ended, by itself or because the command was interrupted. All processes end with it.
        let killed = sandbox.kill_all();
        // Until it has ended it may still change files, for a call that has begun.
        let supervised = supervisor.map_or(Ok(()), SupervisorThread::join);
        let RunEnd { exit: ended, rest } = ended?;
        killed?;
        supervised.map_err(ExploreError::NotFollowed)?;
        let outputs: Vec<String> =
            readers.into_iter().map(|thread| thread.join().unwrap_or_default()).collect();
        let mut recorder = recorder.locked();
        if let Some(failure) = recorder.gate_failure() {
            return Err(ExploreError::NotFollowed(failure));
        }
        let recording = recorder.finish();
        let mut recording = recording.map_err(file_error::<ExploreError>("write", self.payload_log))?;
        // What was stopped may have been in the middle of a call, and is not judged.
        if ended.is_some() {
            recording.gaps.notes.extend(self.compare(&recorder, &pinned_roots)?);
            rest.note_in(&mut recording.gaps);
        }
        let streams = [OutputStream::Stdout, OutputStream::Stderr];
        let lines = streams.into_iter().zip(&outputs).flat_map(|(stream, output)| {
            output.lines().map(move |line| OutputLine { stream, line: line.to_owned() })
        });
        let last_lines = FailedRun::last_of(lines.collect());
        let output = recorded_output(&recording);
        Ok(CommandRecording { recording, ended, output, last_lines, seconds })
    }

    /// Compares a recording with the files that are there. Returns what the user has to know about accepted
    /// differences.
    fn compare(
        &self,
        recorder: &OpRecorder,
        pinned: &PinnedRoots,
    ) -> Result<Vec<ExplorationNote>, ExploreError> {
        let TreeComparison { differences, accepted } = recorder
            .compare(&pinned.roots, self.unfollowed)
            .map_err(ExploreError::system("compare the recording with the watched directories"))?;
        match differences.is_empty() {
            true => Ok(recorder.unfollowed_notes(accepted)),
            false => Err(ExploreError::TreeDiffers { differences }),
        }
    }

    fn recorder(&self, outputs: &[&OwnedFd; 2]) -> Result<OpRecorder, ExploreError> {
        let output_pipes = outputs.iter().map(|pipe| file_id_of(pipe.as_fd()));
        let config = RecorderConfig {
            roots: self.roots,
            originals: self.originals,
            payload_log: self.payload_log,
            output_pipes: output_pipes
                .collect::<Result<_, _>>()
                .map_err(ExploreError::system("identify a pipe"))?,
            saved_pattern: self.saved_pattern.clone(),
            announced: self.announced.clone(),
            phase: self.phase.clone(),
        };
        let recorder = OpRecorder::new(config);
        let mut recorder = recorder
            .map_err(file_error::<ExploreError>("index the watched directories for", self.payload_log))?;
        if !self.unfollowed.is_empty() {
            recorder.let_unfollowed_calls_through();
        }
        Ok(recorder)
    }
}

/// The watched directories, held open: whatever the target renames or replaces above them, the comparison reads
/// these and no others.
struct PinnedRoots {
    roots: Vec<WatchedRoot>,
    _handles: Vec<OwnedFd>,
}

impl PinnedRoots {
    fn open(roots: &[WatchedRoot]) -> Result<PinnedRoots, ExploreError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let open = |root: &WatchedRoot| nix::fcntl::open(&root.seen_by_harness, flags, Mode::empty());
        let handles: Result<Vec<OwnedFd>, Errno> = roots.iter().map(open).collect();
        let handles = handles.map_err(ExploreError::system("open the watched directories"))?;
        let pinned = roots.iter().zip(&handles).map(|(root, handle)| WatchedRoot {
            seen_by_target: root.seen_by_target.clone(),
            seen_by_harness: format!("/proc/self/fd/{}", handle.as_raw_fd()).into(),
        });
        Ok(PinnedRoots { roots: pinned.collect(), _handles: handles })
    }
}

/// The recorded lines of both outputs.
fn recorded_output(recording: &Recording) -> String {
    let line = |op: &'_ Op| match &op.effect {
        OpEffect::Output { line, on_stdio: true, .. } => Some(format!("{line}\n")),
        _ => None,
    };
    recording.ops.iter().filter_map(line).collect()
}

fn spawn_output_reader(output: OwnedFd) -> std::thread::JoinHandle<String> {
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
