//! The whole way: record, enumerate, try every state in parallel, gather what was found.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
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
use crate::sandbox::ProcessExit;

/// What an expedition reports on its way.
#[derive(Debug, Clone)]
pub enum ExploreProgress {
    Recording,
    Recorded { operations: usize, saves: usize },
    Enumerated { states: usize },
    Tried { done: usize, failing: usize },
    Shrinking,
}

/// A state and what came of it.
#[derive(Debug, Clone)]
pub struct TriedState {
    pub state: CrashState,
    pub result: RecoveryResult,
    pub outcomes: BTreeMap<CrashKind, Outcome>,
}

/// Everything that was found out.
pub struct ExploreResult {
    pub recording: Recording,
    pub baseline: BaselineRun,
    pub counts: EnumerationCounts,
    pub tried: Vec<TriedState>,
    pub findings: Vec<Finding>,
    /// From the first state laid out to the last one judged.
    pub seconds: f64,
    pub recording_seconds: f64,
}

impl ExploreResult {
    /// How many states came to which outcome, by kind of crash; a state that several models allow counts once, at its worst.
    pub fn outcomes(&self) -> BTreeMap<&'static str, BTreeMap<Outcome, u64>> {
        let mut outcomes = BTreeMap::from([("power", BTreeMap::new()), ("process", BTreeMap::new())]);
        for one in &self.tried {
            let mut worst: BTreeMap<&'static str, Outcome> = BTreeMap::new();
            for (crash, outcome) in &one.outcomes {
                let known = worst.entry(crash.category()).or_insert(*outcome);
                *known = std::cmp::max_by_key(*known, *outcome, |one| (!is_acceptable(*one), *one));
            }
            for (kind, outcome) in worst {
                *outcomes.entry(kind).or_default().entry(outcome).or_insert(0) += 1;
            }
        }
        outcomes
    }

    pub fn states_per_second(&self) -> f64 {
        self.tried.len() as f64 / self.seconds.max(1e-9)
    }
}

/// Explores. `Err(Undisturbed)`: there is nothing to learn from this command as it was given.
pub fn explore(
    orders: &ExploreConfig,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<ExploreResult, ExploreError> {
    report(ExploreProgress::Recording);
    let began = Instant::now();
    let (recording, undisturbed) = record_baseline(orders)?;
    let recording_seconds = began.elapsed().as_secs_f64();
    let saves = check_recording(orders, &recording, &undisturbed)?;
    report(ExploreProgress::Recorded { operations: recording.file_operations().count(), saves });
    let (states, counted) = states_to_try(orders, &recording);
    report(ExploreProgress::Enumerated { states: states.len() });
    let small = SmallFileCache::default();
    let largest = largest_tree_bytes(&recording);
    let first = RecoveryWorker::build(orders, &recording, &small, 0, largest)?;
    let mut first = check_undamaged_states(orders, &recording, &undisturbed, first)?;
    let began = Instant::now();
    let tried = try_states(orders, &recording, &undisturbed, &states, &small, (largest, &mut first), report)?;
    let seconds = began.elapsed().as_secs_f64();
    report(ExploreProgress::Shrinking);
    let findings = group_findings(&recording, &tried, |candidate| {
        let found = first.try_candidate(candidate).ok()?;
        Some(judge_candidate(orders, &recording, &undisturbed, &found, candidate, None))
    });
    first.close()?;
    Ok(ExploreResult {
        recording,
        baseline: undisturbed,
        counts: counted,
        tried,
        findings,
        seconds,
        recording_seconds,
    })
}

/// Whether the recording is one to learn from; how many saves it holds.
fn check_recording(
    orders: &ExploreConfig,
    recording: &Recording,
    undisturbed: &BaselineRun,
) -> Result<usize, ExploreError> {
    let failed = |words: String| Err(ExploreError::BaselineFailed(words));
    let last = undisturbed.output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    match undisturbed.ended {
        Some(ProcessExit::Exited(0)) => {}
        Some(ended) => return failed(format!("the command failed undisturbed, with {ended}: {last}")),
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
    if orders.oracle.saved.is_some() && saves == 0 && orders.after_crash.is_none() {
        return failed(
            "no line of the command's output matches --saved, so no crash state falls inside a save".into(),
        );
    }
    if orders.oracle.same.is_some() && undisturbed.values.final_value.is_none() {
        return failed("no line of the command's output matches --same".into());
    }
    Ok(saves)
}

fn states_to_try(orders: &ExploreConfig, recording: &Recording) -> (Vec<CrashState>, EnumerationCounts) {
    let Some(only) = &orders.only_state else {
        let found = enumerate(recording, &orders.scope);
        return (found.states, found.counts);
    };
    let k = (only.op_count as usize).min(recording.ops.len());
    let only = CrashCandidate { op_count: k as u32, ..only.clone() };
    let crashes: Vec<CrashKind> = orders
        .scope
        .process_crashes
        .then_some(CrashKind::Process)
        .into_iter()
        .chain(orders.scope.models.iter().map(|model| CrashKind::PowerLoss(*model)))
        .take(1)
        .collect();
    let way = Witness { acknowledged: recording.acknowledged(k), candidate: only };
    let digest = way.candidate.tree(recording).digest();
    let state =
        CrashState { witnesses: crashes.into_iter().map(|crash| (crash, way.clone())).collect(), digest };
    (vec![state], EnumerationCounts::default())
}

/// Bytes of the largest tree that there was, roughly: all that was there at the end and at the beginning.
fn largest_tree_bytes(recording: &Recording) -> u64 {
    let bytes = |k| {
        let tree = CrashCandidate::whole(k).tree(recording);
        tree.entries
            .values()
            .map(|leaf| if let TreeEntry::File { content, .. } = leaf { content.len() } else { 0 })
            .sum::<u64>()
    };
    let quarter = recording.ops.len() / 4;
    (0..=4).map(|nth| bytes(nth * quarter)).max().unwrap_or(0).max(bytes(recording.ops.len()))
}

/// With nothing lost the recovery must do what the undisturbed run did: at the beginning and at the end.
fn check_undamaged_states<'a>(
    orders: &ExploreConfig,
    recording: &Recording,
    undisturbed: &BaselineRun,
    mut booth: RecoveryWorker<'a>,
) -> Result<RecoveryWorker<'a>, ExploreError> {
    let moments = [(0, "the untouched folders"), (recording.ops.len(), "the finished run's files")];
    for (k, what) in moments.into_iter().filter(|(k, _)| {
        orders.only_state.is_none()
            && orders.after_crash.is_none()
            && (*k > 0 || orders.resumes_with_command())
    }) {
        let found = booth.try_candidate(&CrashCandidate::whole(k))?;
        let outcome =
            judge_candidate(orders, recording, undisturbed, &found, &CrashCandidate::whole(k), None);
        // To begin anew, or further back, is something to be found, not something to stop at.
        if !matches!(outcome, Outcome::Recovered | Outcome::Refused | Outcome::Restarted | Outcome::LostWork)
        {
            let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
            let same = if found.final_value != undisturbed.values.final_value {
                format!(
                    "; --same found {} and, undisturbed, {}",
                    said(&found.final_value),
                    said(&undisturbed.values.final_value)
                )
            } else {
                String::new()
            };
            return Err(ExploreError::BaselineFailed(format!(
                "on {what} the recovery already comes to `{}` ({}){same}: {}",
                outcome,
                ProcessExit::describe(found.ended),
                found.message
            )));
        }
    }
    Ok(booth)
}

/// `promised`: where it is known already.
fn judge_candidate(
    orders: &ExploreConfig,
    recording: &Recording,
    undisturbed: &BaselineRun,
    found: &RecoveryResult,
    candidate: &CrashCandidate,
    promised: Option<u64>,
) -> Outcome {
    let k = candidate.op_count as usize;
    let promised = promised.or_else(|| recording.acknowledged(k));
    let found = orders.oracle.with_value_before_crash(found.clone(), recording, k);
    orders.oracle.judge(&found, promised, &undisturbed.values)
}

fn try_states<'a>(
    orders: &'a ExploreConfig,
    recording: &'a Recording,
    undisturbed: &BaselineRun,
    states: &[CrashState],
    small: &'a SmallFileCache,
    (largest, first): (u64, &mut RecoveryWorker<'a>),
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<Vec<TriedState>, ExploreError> {
    let (next, failing) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicUsize::new(0);
    let tried: Mutex<Vec<(usize, TriedState)>> = Mutex::new(Vec::with_capacity(states.len()));
    let work = |booth: &mut RecoveryWorker<'_>| -> Result<(), ExploreError> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(state) = states.get(index).filter(|_| !(orders.cancelled)()) else { return Ok(()) };
            let found = booth.try_candidate(state.candidate())?;
            let found = orders.oracle.with_explanation(found, &undisturbed.values);
            let outcomes: BTreeMap<CrashKind, Outcome> = state
                .witnesses
                .iter()
                .map(|(crash, way)| {
                    let outcome = judge_candidate(
                        orders,
                        recording,
                        undisturbed,
                        &found,
                        &way.candidate,
                        way.acknowledged,
                    );
                    (*crash, outcome)
                })
                .collect();
            failing.fetch_add(
                usize::from(outcomes.values().any(|outcome| !is_acceptable(*outcome))),
                Ordering::Relaxed,
            );
            let one = TriedState { state: state.clone(), result: found, outcomes };
            tried.lock().unwrap_or_else(PoisonError::into_inner).push((index, one));
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            report(ExploreProgress::Tried { done, failing: failing.load(Ordering::Relaxed) });
        }
    };
    let jobs = orders.jobs.min(states.len()).max(1);
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..jobs)
            .map(|number| {
                scope.spawn(move || {
                    let mut booth = RecoveryWorker::build(orders, recording, small, number, largest)?;
                    work(&mut booth)?;
                    booth.close()
                })
            })
            .collect();
        work(first)?;
        others.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(ExploreError::WorkerClosed)))
    })?;
    let mut tried = tried.into_inner().unwrap_or_else(PoisonError::into_inner);
    tried.sort_by_key(|(index, _)| *index);
    Ok(tried.into_iter().map(|(_, one)| one).collect())
}

impl ExploreConfig {
    /// Whether the recovery is the command itself, so that it can start from nothing.
    fn resumes_with_command(&self) -> bool {
        self.resume.argv == self.command.argv
    }
}
