//! The pipeline: record the baseline run, enumerate its crash states, try each in parallel, group the
//! failures. Knows no details of any of these steps.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use scenarios::Outcome;

use super::crash_candidate::{CrashCandidate, TreeEntry};
use super::enumerate::{CrashKind, CrashState, EnumerationCounts, Witness, enumerate};
use super::findings::{Finding, group_findings, is_acceptable};
use super::materialize::SmallFileCache;
use super::output_oracle::RecoveryResult;
use super::recording::Recording;
use super::recovery_worker::{BaselineRun, RecoveryWorker, record_baseline};
use super::{ExploreConfig, ExploreError};
use crate::locks::LockExt;
use crate::sandbox::ProcessExit;

/// The progress of an exploration.
#[derive(Debug, Clone)]
pub enum ExploreProgress {
    /// The baseline run has started.
    Recording,
    /// The baseline run has ended.
    Recorded { operations: usize, saves: usize },
    /// The distinct states are known.
    Enumerated { states: usize },
    /// One more state has been tried.
    Tried { done: usize, failing: usize },
    /// All states have been tried; the failing ones are being shrunk.
    Shrinking,
}

/// A crash state that has been tried.
#[derive(Debug, Clone)]
pub struct TriedState {
    /// The state.
    pub state: CrashState,
    /// What the recovery did.
    pub result: RecoveryResult,
    /// The outcome under each kind of crash that can leave this state.
    pub outcomes: BTreeMap<CrashKind, Outcome>,
}

/// The result of an exploration.
pub struct ExploreResult {
    /// The recorded operations.
    pub recording: Recording,
    /// The recorded run itself.
    pub baseline: BaselineRun,
    /// How many states there are, and how many were left out.
    pub counts: EnumerationCounts,
    /// The states that were tried, in order.
    pub tried: Vec<TriedState>,
    /// The failing states, grouped by cause.
    pub findings: Vec<Finding>,
    /// The time for trying all states, without shrinking.
    pub seconds: f64,
    /// The time of the recorded run.
    pub recording_seconds: f64,
}

impl ExploreResult {
    /// How many states had which outcome, by category of crash. A state that several models allow counts
    /// once, with its worst outcome.
    pub fn outcomes(&self) -> BTreeMap<&'static str, BTreeMap<Outcome, u64>> {
        let mut outcomes = BTreeMap::from([("power", BTreeMap::new()), ("process", BTreeMap::new())]);
        for tried in &self.tried {
            let mut worst: BTreeMap<&'static str, Outcome> = BTreeMap::new();
            for (crash, outcome) in &tried.outcomes {
                let worst_outcome = worst.entry(crash.category()).or_insert(*outcome);
                *worst_outcome = std::cmp::max_by_key(*worst_outcome, *outcome, |outcome| {
                    (!is_acceptable(*outcome), *outcome)
                });
            }
            for (category, outcome) in worst {
                *outcomes.entry(category).or_default().entry(outcome).or_insert(0) += 1;
            }
        }
        outcomes
    }

    /// The speed of trying states.
    pub fn states_per_second(&self) -> f64 {
        self.tried.len() as f64 / self.seconds.max(1e-9)
    }
}

/// Explores the crash states of one command. Calls `report` with the progress.
///
/// # Errors
/// `BaselineFailed` and `NothingRecorded`: this command cannot be explored as it is. Every other error: the
/// harness failed.
pub fn explore(
    config: &ExploreConfig,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<ExploreResult, ExploreError> {
    report(ExploreProgress::Recording);
    let began = Instant::now();
    let (recording, baseline) = record_baseline(config)?;
    let recording_seconds = began.elapsed().as_secs_f64();
    let saves = check_recording(config, &recording, &baseline)?;
    report(ExploreProgress::Recorded { operations: recording.file_operations().count(), saves });
    let (states, counts) = states_to_try(config, &recording);
    report(ExploreProgress::Enumerated { states: states.len() });
    let small_files = SmallFileCache::default();
    let largest_bytes = largest_tree_bytes(&recording);
    let worker = RecoveryWorker::build(config, &recording, &small_files, 0, largest_bytes)?;
    let mut worker = check_undamaged_states(config, &recording, &baseline, worker)?;
    let began = Instant::now();
    let tried = try_states(
        config,
        &recording,
        &baseline,
        &states,
        &small_files,
        (largest_bytes, &mut worker),
        report,
    )?;
    let seconds = began.elapsed().as_secs_f64();
    report(ExploreProgress::Shrinking);
    let findings = group_findings(&recording, &tried, |candidate| {
        let result = worker.try_candidate(candidate).ok()?;
        Some(judge_candidate(config, &recording, &baseline, &result, candidate, None))
    });
    worker.close()?;
    Ok(ExploreResult { recording, baseline, counts, tried, findings, seconds, recording_seconds })
}

/// Checks that the recording can be explored. Returns how many saves it contains.
fn check_recording(
    config: &ExploreConfig,
    recording: &Recording,
    baseline: &BaselineRun,
) -> Result<usize, ExploreError> {
    let failed = |reason: String| Err(ExploreError::BaselineFailed(reason));
    let last_line = baseline.output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    match baseline.ended {
        Some(ProcessExit::Exited(0)) => {}
        Some(ended) => {
            return failed(format!("the command failed without any fault, with {ended}: {last_line}"));
        }
        None => return failed("stopped before the command had ended".into()),
    }
    if recording.file_operations().next().is_none() {
        return Err(ExploreError::NothingRecorded);
    }
    let saves = recording
        .ops
        .iter()
        .filter(|op| matches!(op.effect, super::OpEffect::Output { saved_step: Some(_), .. }))
        .count();
    // A recovery may have nothing left to save.
    if config.oracle.saved.is_some() && saves == 0 && config.after_crash.is_none() {
        return failed(
            "no line of the command's output matches `--saved`, so no crash state falls inside a save".into(),
        );
    }
    if config.oracle.same.is_some() && baseline.values.final_value.is_none() {
        return failed("no line of the command's output matches `--same`".into());
    }
    Ok(saves)
}

fn states_to_try(config: &ExploreConfig, recording: &Recording) -> (Vec<CrashState>, EnumerationCounts) {
    let Some(only) = &config.only_state else {
        let enumeration = enumerate(recording, &config.scope);
        return (enumeration.states, enumeration.counts);
    };
    let op_count = (only.op_count as usize).min(recording.ops.len());
    let only = CrashCandidate { op_count: op_count as u32, ..only.clone() };
    let crashes: Vec<CrashKind> = config
        .scope
        .process_crashes
        .then_some(CrashKind::Process)
        .into_iter()
        .chain(config.scope.models.iter().map(|model| CrashKind::PowerLoss(*model)))
        .take(1)
        .collect();
    let witness = Witness { acknowledged: recording.acknowledged(op_count), candidate: only };
    let digest = witness.candidate.tree(recording).digest();
    let state =
        CrashState { witnesses: crashes.into_iter().map(|crash| (crash, witness.clone())).collect(), digest };
    (vec![state], EnumerationCounts::default())
}

/// The approximate size of the largest tree of the run, in bytes: the maximum over a few crash points.
fn largest_tree_bytes(recording: &Recording) -> u64 {
    let tree_bytes = |op_count| {
        let tree = CrashCandidate::whole(op_count).tree(recording);
        tree.entries
            .values()
            .map(|entry| if let TreeEntry::File { content, .. } = entry { content.len() } else { 0 })
            .sum::<u64>()
    };
    let quarter = recording.ops.len() / 4;
    (0..=4).map(|nth| tree_bytes(nth * quarter)).max().unwrap_or(0).max(tree_bytes(recording.ops.len()))
}

/// Checks that the recovery works on undamaged files, at the beginning and at the end of the recording. If it
/// does not, crash states cannot be judged.
fn check_undamaged_states<'a>(
    config: &ExploreConfig,
    recording: &Recording,
    baseline: &BaselineRun,
    mut worker: RecoveryWorker<'a>,
) -> Result<RecoveryWorker<'a>, ExploreError> {
    let undamaged = [(0, "the files before the run"), (recording.ops.len(), "the files of the finished run")];
    for (op_count, files) in undamaged.into_iter().filter(|(op_count, _)| {
        config.only_state.is_none()
            && config.after_crash.is_none()
            && (*op_count > 0 || config.resumes_with_command())
    }) {
        let candidate = CrashCandidate::whole(op_count);
        let result = worker.try_candidate(&candidate)?;
        let outcome = judge_candidate(config, recording, baseline, &result, &candidate, None);
        // Starting from scratch, or further back, is a finding, not a reason to stop.
        if !matches!(outcome, Outcome::Recovered | Outcome::Refused | Outcome::Restarted | Outcome::LostWork)
        {
            let or_nothing = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
            let difference = if result.final_value != baseline.values.final_value {
                format!(
                    "; `--same` found {}, but {} in the baseline run",
                    or_nothing(&result.final_value),
                    or_nothing(&baseline.values.final_value)
                )
            } else {
                String::new()
            };
            return Err(ExploreError::BaselineFailed(format!(
                "the outcome of the recovery from {files} is already `{}` ({}){difference}: {}",
                outcome,
                ProcessExit::describe(result.ended),
                result.message
            )));
        }
    }
    Ok(worker)
}

/// Judges a recovery. `acknowledged`: the acknowledged step, if the caller knows it already.
fn judge_candidate(
    config: &ExploreConfig,
    recording: &Recording,
    baseline: &BaselineRun,
    result: &RecoveryResult,
    candidate: &CrashCandidate,
    acknowledged: Option<u64>,
) -> Outcome {
    let op_count = candidate.op_count as usize;
    let acknowledged = acknowledged.or_else(|| recording.acknowledged(op_count));
    let result = config.oracle.with_value_before_crash(result.clone(), recording, op_count);
    config.oracle.judge(&result, acknowledged, &baseline.values)
}

/// Tries all states: in the given worker, and in more workers on threads of their own.
fn try_states<'a>(
    config: &'a ExploreConfig,
    recording: &'a Recording,
    baseline: &BaselineRun,
    states: &[CrashState],
    small_files: &'a SmallFileCache,
    (largest_bytes, first_worker): (u64, &mut RecoveryWorker<'a>),
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<Vec<TriedState>, ExploreError> {
    let (next, failing) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicUsize::new(0);
    let tried: Mutex<Vec<(usize, TriedState)>> = Mutex::new(Vec::with_capacity(states.len()));
    let work = |worker: &mut RecoveryWorker<'_>| -> Result<(), ExploreError> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(state) = states.get(index).filter(|_| !(config.cancelled)()) else { return Ok(()) };
            let result = worker.try_candidate(state.candidate())?;
            let result = config.oracle.with_explanation(result, &baseline.values);
            let outcomes: BTreeMap<CrashKind, Outcome> = state
                .witnesses
                .iter()
                .map(|(crash, witness)| {
                    let outcome = judge_candidate(
                        config,
                        recording,
                        baseline,
                        &result,
                        &witness.candidate,
                        witness.acknowledged,
                    );
                    (*crash, outcome)
                })
                .collect();
            failing.fetch_add(
                usize::from(outcomes.values().any(|outcome| !is_acceptable(*outcome))),
                Ordering::Relaxed,
            );
            let tried_state = TriedState { state: state.clone(), result, outcomes };
            tried.locked().push((index, tried_state));
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            report(ExploreProgress::Tried { done, failing: failing.load(Ordering::Relaxed) });
        }
    };
    let jobs = config.jobs.min(states.len()).max(1);
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..jobs)
            .map(|number| {
                scope.spawn(move || {
                    let mut worker =
                        RecoveryWorker::build(config, recording, small_files, number, largest_bytes)?;
                    work(&mut worker)?;
                    worker.close()
                })
            })
            .collect();
        work(first_worker)?;
        others.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(ExploreError::WorkerClosed)))
    })?;
    let mut tried = tried.into_unlocked();
    tried.sort_by_key(|(index, _)| *index);
    Ok(tried.into_iter().map(|(_, state)| state).collect())
}

impl ExploreConfig {
    /// Whether the recovery runs the recorded command itself, so that it can also start without any
    /// checkpoint.
    fn resumes_with_command(&self) -> bool {
        self.resume.argv == self.command.argv
    }
}
