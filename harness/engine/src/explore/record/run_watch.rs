//! Watches a recorded run until it has ended, with all the processes that it has started. Knows no operations.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scenarios::ExplorationNote;

use super::op_recorder::OpRecorder;
use super::recording::RecordingGaps;
use crate::gate::SupervisorThread;
use crate::locks::LockExt;
use crate::sandbox::{ProcessExit, Sandbox, SpawnedProcess};

/// How often a recorded run looks whether it was cancelled.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The same, in the first moments after the end of the main process.
const SHORT_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// How long these moments are.
const SHORT_POLL_TIME: Duration = Duration::from_secs(1);
/// The processes that the main process has left are not waited for if they change no watched file for so long.
const MAX_QUIET: Duration = Duration::from_secs(10);
/// At most this many names of programs are kept.
const MAX_NAMES: usize = 8;
/// They are not waited for any longer than this.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// How far a recorded run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordingProgress {
    /// The time since its beginning.
    pub elapsed: Duration,
    /// How many file operations were recorded.
    pub operations: u64,
    /// How many bytes were written.
    pub len_bytes: u64,
    /// How many processes are still waited for, after the main process has ended. `None`: it runs.
    pub waiting_for: Option<usize>,
}

/// The processes that were still running when the wait for them was over.
pub(super) struct LeftProcesses {
    pub(super) count: usize,
    /// The names of their programs, each once, up to a bound.
    pub(super) programs: Vec<String>,
    /// How long they were waited for.
    pub(super) waited: Duration,
    /// Whether watched files were changed in this time.
    pub(super) saving: bool,
}

/// What became of the processes that the main process has left.
pub(super) enum RestOfRun {
    /// All have ended, so long after the main process.
    Ended { after: Duration },
    /// Some are still running.
    StillRunning(LeftProcesses),
    /// The recording was cancelled meanwhile.
    Cancelled,
}

impl RestOfRun {
    /// Notes what a recording does not cover.
    pub(super) fn note_in(self, gaps: &mut RecordingGaps) {
        match self {
            RestOfRun::Ended { after } => gaps.outlived = after,
            RestOfRun::StillRunning(LeftProcesses { count, programs, waited, saving }) => {
                let (count, seconds) = (count as u64, waited.as_secs());
                gaps.notes.push(ExplorationNote::StillRunning { count, programs, seconds, saving });
            }
            RestOfRun::Cancelled => {}
        }
    }
}

/// A recorded run in progress.
pub(super) struct RunWatch<'a> {
    pub(super) sandbox: &'a Sandbox,
    pub(super) recorder: &'a Arc<Mutex<OpRecorder>>,
    /// Ends with the last process of the run.
    pub(super) supervisor: Option<&'a SupervisorThread>,
    pub(super) began: Instant,
    pub(super) time_limit: Option<Duration>,
    pub(super) cancelled: fn() -> bool,
    pub(super) report: &'a dyn Fn(RecordingProgress),
}

impl RunWatch<'_> {
    /// Waits for the end of the main process. `None`: the run has to be stopped.
    pub(super) fn await_main(&self, main: &SpawnedProcess) -> Option<ProcessExit> {
        loop {
            match main.wait_timeout(POLL_INTERVAL) {
                Some(ended) => return Some(ended),
                None if self.is_over() || (self.cancelled)() || self.has_failed() => return None,
                None => self.report_progress(None),
            }
        }
    }

    /// Waits for the processes that the main process has left: until they have ended, or have changed no watched
    /// file for a while.
    pub(super) fn await_rest(&self) -> RestOfRun {
        let began = Instant::now();
        let count_at_end = self.operation_count();
        let (mut count, mut last_change) = (count_at_end, began);
        loop {
            if self.supervisor.is_none_or(SupervisorThread::has_ended) || self.has_failed() {
                return RestOfRun::Ended { after: began.elapsed() };
            }
            if (self.cancelled)() {
                return RestOfRun::Cancelled;
            }
            let new_count = self.operation_count();
            if new_count != count {
                (count, last_change) = (new_count, Instant::now());
            }
            let is_short = began.elapsed() < SHORT_POLL_TIME;
            let is_quiet = last_change.elapsed() >= MAX_QUIET;
            if is_quiet || began.elapsed() >= MAX_WAIT || self.is_over() {
                let saving = count > count_at_end;
                return self.left_processes(began.elapsed(), saving);
            }
            if !is_short {
                self.report_progress(Some(self.sandbox.processes().len()));
            }
            std::thread::sleep(if is_short { SHORT_POLL_INTERVAL } else { POLL_INTERVAL });
        }
    }

    fn left_processes(&self, waited: Duration, saving: bool) -> RestOfRun {
        let running = self.sandbox.processes();
        let names: BTreeSet<String> = running.iter().map(|process| process.name.clone()).collect();
        match running.len() {
            0 => RestOfRun::Ended { after: waited },
            count => {
                let programs = names.into_iter().take(MAX_NAMES).collect();
                RestOfRun::StillRunning(LeftProcesses { count, programs, waited, saving })
            }
        }
    }

    fn is_over(&self) -> bool {
        self.time_limit.is_some_and(|limit| self.began.elapsed() >= limit)
    }

    fn has_failed(&self) -> bool {
        self.recorder.locked().gate_failure().is_some()
    }

    fn operation_count(&self) -> u64 {
        self.recorder.locked().operation_count()
    }

    fn report_progress(&self, waiting_for: Option<usize>) {
        let (operations, len_bytes) = {
            let recorder = self.recorder.locked();
            (recorder.operation_count(), recorder.written_bytes())
        };
        let elapsed = self.began.elapsed();
        (self.report)(RecordingProgress { elapsed, operations, len_bytes, waiting_for });
    }
}
