//! Tries crash states in parallel: one recovery worker for each job. Does not know how a worker runs a
//! recovery.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use scenarios::Outcome;

use super::output_oracle::{JudgedJobs, OutputOracle, RecoveryResult};
use super::recovery_worker::{RecoveryLimit, RecoveryStart, RecoveryWorker, WorkerName, WorkerSpec};
use super::replay_spec::ReplaySpec;
use super::small_file_cache::SmallFileCache;
use super::tried_state::TriedState;
use crate::explore::error::ExploreError;
use crate::explore::record::Recording;
use crate::explore::states::{CrashCandidate, CrashState, FileTree, LayerPlan};
use crate::locks::LockExt;

/// How far a replay has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplayProgress {
    /// How many states have been tried.
    pub done: usize,
    /// How many of them are findings.
    pub failing: usize,
}

/// What is called while states are tried.
#[derive(Clone, Copy)]
pub(crate) struct TriedReports<'a> {
    /// After each state.
    pub(crate) on_tried: &'a (dyn Fn(ReplayProgress) + Sync),
    /// After each state that fails.
    pub(crate) on_failing: &'a (dyn Fn(&TriedState) + Sync),
}

/// The results of all workers, and how many there are.
#[derive(Default)]
struct Results {
    /// In the order in which the recoveries ended.
    tried: Vec<IndexedState>,
    failing: usize,
}

struct IndexedState {
    index: usize,
    tried: TriedState,
}

/// What all workers of one exploration share.
pub(crate) struct Replayer<'a> {
    spec: &'a ReplaySpec,
    oracle: &'a OutputOracle,
    recording: &'a Recording,
    small_files: SmallFileCache,
    start: RecoveryStart,
    /// The approximate size of the largest tree that is materialized.
    largest_tree_bytes: u64,
}

impl<'a> Replayer<'a> {
    /// Prepares to try crash states of this recording. Starts nothing. Each recovery is a new process.
    pub(crate) fn new(
        spec: &'a ReplaySpec,
        oracle: &'a OutputOracle,
        recording: &'a Recording,
    ) -> Replayer<'a> {
        let largest_tree_bytes = largest_tree_bytes(recording);
        let start = RecoveryStart::NewProcess;
        let small_files = SmallFileCache::default();
        Replayer { spec, oracle, recording, small_files, start, largest_tree_bytes }
    }

    /// The same with recoveries that start in another way.
    pub(crate) fn with_start(self, start: RecoveryStart) -> Replayer<'a> {
        Replayer { start, ..self }
    }

    /// Whether the exploration was cancelled.
    pub(crate) fn is_cancelled(&self) -> bool {
        (self.spec.cancelled)()
    }

    /// Whether no more crash states are to be tried.
    pub(crate) fn is_over(&self) -> bool {
        self.spec.is_over()
    }

    /// Builds one worker. No two may have the same name at the same time.
    ///
    /// # Errors
    /// The sandbox or the fork server failed, or a directory could not be created.
    pub(crate) fn worker(&self, name: WorkerName) -> Result<RecoveryWorker<'_>, ExploreError> {
        RecoveryWorker::build(WorkerSpec {
            replay: self.spec,
            oracle: self.oracle,
            recording: self.recording,
            small_files: &self.small_files,
            start: &self.start,
            largest_tree_bytes: self.largest_tree_bytes,
            name,
        })
    }

    /// Judges the recovery from one candidate. `acknowledged`: the acknowledged step at its crash point.
    pub(crate) fn judge(
        &self,
        result: &RecoveryResult,
        candidate: &CrashCandidate,
        acknowledged: Option<u64>,
    ) -> Outcome {
        self.judge_with_jobs(result, candidate, acknowledged).outcome
    }

    /// Judges a recovery, and says what is wrong with one of its jobs if there were several.
    pub(crate) fn judge_with_jobs(
        &self,
        result: &RecoveryResult,
        candidate: &CrashCandidate,
        acknowledged: Option<u64>,
    ) -> JudgedJobs {
        let op_count = candidate.op_count as usize;
        self.oracle.judge_jobs(result, op_count).unwrap_or_else(|| {
            let result = self.oracle.with_value_before_crash(result.clone(), self.recording, op_count);
            JudgedJobs { outcome: self.oracle.judge(&result, acknowledged), fault: None }
        })
    }

    /// Tries one candidate in a worker. Its message explains in what it differs from the baseline run.
    ///
    /// # Errors
    /// The sandbox failed, or a file could not be written.
    pub(crate) fn result_of(
        &self,
        worker: &mut RecoveryWorker<'_>,
        candidate: &CrashCandidate,
        limit: RecoveryLimit,
    ) -> Result<RecoveryResult, ExploreError> {
        Ok(self.oracle.with_explanation(worker.try_candidate(candidate, limit)?))
    }

    /// Judges the recovery from one candidate by what was acknowledged at its crash point.
    pub(crate) fn judge_at_crash_point(
        &self,
        result: &RecoveryResult,
        candidate: &CrashCandidate,
    ) -> Outcome {
        self.judge(result, candidate, self.acknowledged(candidate))
    }

    /// The acknowledged step at the crash point of a candidate.
    pub(crate) fn acknowledged(&self, candidate: &CrashCandidate) -> Option<u64> {
        self.recording.acknowledged(candidate.op_count as usize)
    }

    /// The digest of the tree that a candidate leaves.
    pub(crate) fn digest_of(&self, candidate: &CrashCandidate) -> [u8; 16] {
        candidate.tree(self.recording).digest()
    }

    /// Tries all states, until cancelled or until `go_on` refuses to after one of them: in the given workers, and in
    /// as many more as there are to be. Returns them in their order.
    ///
    /// # Errors
    /// A sandbox failed, or a file could not be written.
    pub(crate) fn try_states(
        &self,
        states: &[CrashState],
        workers: &mut [RecoveryWorker<'_>],
        reports: TriedReports<'_>,
        go_on: &(dyn Fn(&TriedState) -> bool + Sync),
    ) -> Result<Vec<TriedState>, ExploreError> {
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let results = Mutex::new(Results::default());
        let try_next = |worker: &mut RecoveryWorker<'_>| -> Result<(), ExploreError> {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let is_over = || self.spec.is_over() || stopped.load(Ordering::Relaxed);
                let state = states.get(index).filter(|_| !is_over());
                let Some(state) = state else { return Ok(()) };
                let tried = match self.try_state(worker, state) {
                    // Its sandbox was ended, so nothing is known of this state.
                    Err(_) if (self.spec.cancelled)() => return Ok(()),
                    tried => tried?,
                };
                if tried.is_failing() {
                    (reports.on_failing)(&tried);
                }
                if !go_on(&tried) {
                    stopped.store(true, Ordering::Relaxed);
                }
                (reports.on_tried)(results.locked().add(index, tried));
            }
        };
        let work = |worker: &mut RecoveryWorker<'_>| {
            // After an error the others need not go on.
            try_next(worker).inspect_err(|_| stopped.store(true, Ordering::Relaxed))
        };
        let jobs = self.spec.jobs.min(states.len()).max(1);
        std::thread::scope(|scope| {
            let work = &work;
            let more = workers.len()..jobs;
            let given = workers.iter_mut().map(|worker| scope.spawn(move || work(worker)));
            let mut threads: Vec<_> = given.collect();
            threads.extend(more.map(|number| {
                scope.spawn(move || {
                    let mut worker = match self.worker(WorkerName::State(number)) {
                        Err(_) if (self.spec.cancelled)() => return Ok(()),
                        worker => worker?,
                    };
                    work(&mut worker)?;
                    worker.close()
                })
            }));
            let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<(), ExploreError>>| {
                thread.join().unwrap_or(Err(ExploreError::WorkerClosed))
            };
            threads.into_iter().try_for_each(ended)
        })?;
        let mut tried = results.into_unlocked().tried;
        tried.sort_by_key(|state| state.index);
        Ok(tried.into_iter().map(|state| state.tried).collect())
    }

    fn try_state(
        &self,
        worker: &mut RecoveryWorker<'_>,
        state: &CrashState,
    ) -> Result<TriedState, ExploreError> {
        let result = self.result_of(worker, state.candidate(), RecoveryLimit::Usual)?;
        let (mut outcomes, mut job_faults) = (BTreeMap::new(), BTreeMap::new());
        for (crash, witness) in &state.witnesses {
            let judged = self.judge_with_jobs(&result, &witness.candidate, witness.acknowledged);
            outcomes.insert(*crash, judged.outcome);
            job_faults.extend(judged.fault.map(|fault| (*crash, fault)));
        }
        Ok(TriedState { state: state.clone(), result, outcomes, job_faults })
    }
}

impl Results {
    fn add(&mut self, index: usize, tried: TriedState) -> ReplayProgress {
        self.failing += usize::from(tried.is_failing());
        self.tried.push(IndexedState { index, tried });
        ReplayProgress { done: self.tried.len(), failing: self.failing }
    }
}

/// The approximate size of the largest tree that is materialized, in bytes: the maximum over a few crash points.
fn largest_tree_bytes(recording: &Recording) -> u64 {
    let layers = LayerPlan::of(recording);
    let len_bytes = |tree: FileTree| match &layers {
        None => tree.len_bytes(),
        Some(layers) => layers.upper_layer(&tree).tree.len_bytes(),
    };
    let op_count = recording.ops.len();
    let quarters = (0..=4).map(|nth| nth * (op_count / 4));
    let sizes =
        quarters.chain([op_count]).map(|point| len_bytes(CrashCandidate::whole(point).tree(recording)));
    sizes.max().unwrap_or(0)
}
