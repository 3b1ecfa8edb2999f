//! The whole way: record, enumerate, try every state in parallel, gather what was found.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use scenarios::Outcome;

use super::candidate::{Candidate, Leaf};
use super::findings::{Finding, gather, is_good};
use super::layout::Small;
use super::outcome::Found;
use super::recording::Recording;
use super::stage::{Booth, Undisturbed, record};
use super::states::{Counted, Crash, State, Way, enumerate};
use super::{ExploreError, Orders};
use crate::sandbox::Ended;

/// What an expedition reports on its way.
#[derive(Debug, Clone)]
pub enum Progress {
    Recording,
    Recorded { operations: usize, saves: usize },
    Enumerated { states: usize },
    Tried { done: usize, failing: usize },
    Shrinking,
}

/// A state and what came of it.
#[derive(Debug, Clone)]
pub struct Tried {
    pub state: State,
    pub found: Found,
    pub outcomes: BTreeMap<Crash, Outcome>,
}

/// Everything that was found out.
pub struct Explored {
    pub recording: Recording,
    pub undisturbed: Undisturbed,
    pub counted: Counted,
    pub tried: Vec<Tried>,
    pub findings: Vec<Finding>,
    /// From the first state laid out to the last one judged.
    pub seconds: f64,
    pub recording_seconds: f64,
}

impl Explored {
    /// How many states came to which outcome, by kind of crash; a state that several models allow counts once, at its worst.
    pub fn outcomes(&self) -> BTreeMap<&'static str, BTreeMap<Outcome, u64>> {
        let mut outcomes = BTreeMap::from([("power", BTreeMap::new()), ("process", BTreeMap::new())]);
        for one in &self.tried {
            let mut worst: BTreeMap<&'static str, Outcome> = BTreeMap::new();
            for (crash, outcome) in &one.outcomes {
                let known = worst.entry(crash.kind()).or_insert(*outcome);
                *known = std::cmp::max_by_key(*known, *outcome, |one| (!is_good(*one), *one));
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
pub fn explore(orders: &Orders, report: &(dyn Fn(Progress) + Sync)) -> Result<Explored, ExploreError> {
    report(Progress::Recording);
    let began = Instant::now();
    let (recording, undisturbed) = record(orders)?;
    let recording_seconds = began.elapsed().as_secs_f64();
    let saves = sound(orders, &recording, &undisturbed)?;
    report(Progress::Recorded { operations: recording.file_operations().count(), saves });
    let (states, counted) = states(orders, &recording);
    report(Progress::Enumerated { states: states.len() });
    let small = Small::default();
    let largest = largest(&recording);
    let first = Booth::build(orders, &recording, &small, 0, largest)?;
    let mut first = steady(orders, &recording, &undisturbed, first)?;
    let began = Instant::now();
    let tried = try_all(orders, &recording, &undisturbed, &states, &small, (largest, &mut first), report)?;
    let seconds = began.elapsed().as_secs_f64();
    report(Progress::Shrinking);
    let findings = gather(&recording, &tried, |candidate| {
        let found = first.attempt(candidate).ok()?;
        Some(judged(orders, &recording, &undisturbed, &found, candidate, None))
    });
    first.close()?;
    Ok(Explored { recording, undisturbed, counted, tried, findings, seconds, recording_seconds })
}

/// Whether the recording is one to learn from; how many saves it holds.
fn sound(orders: &Orders, recording: &Recording, undisturbed: &Undisturbed) -> Result<usize, ExploreError> {
    let failed = |words: String| Err(ExploreError::Undisturbed(words));
    let last = undisturbed.words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    match undisturbed.ended {
        Some(Ended::Exited(0)) => {}
        Some(ended) => return failed(format!("the command failed undisturbed, with {ended}: {last}")),
        None => return failed("stopped before the command had ended".into()),
    }
    if recording.file_operations().next().is_none() {
        return Err(ExploreError::NothingRecorded);
    }
    let saves =
        recording.ops.iter().filter(|op| matches!(op.what, super::What::Said { saved: Some(_), .. })).count();
    // A recovery may have nothing left to save.
    if orders.ear.saved.is_some() && saves == 0 && orders.after.is_none() {
        return failed(
            "no line of the command's output matches --saved, so no crash state falls inside a save".into(),
        );
    }
    if orders.ear.same.is_some() && undisturbed.expected.same.is_none() {
        return failed("no line of the command's output matches --same".into());
    }
    Ok(saves)
}

fn states(orders: &Orders, recording: &Recording) -> (Vec<State>, Counted) {
    let Some(only) = &orders.only else {
        let found = enumerate(recording, &orders.scope);
        return (found.states, found.counted);
    };
    let k = (only.k as usize).min(recording.ops.len());
    let only = Candidate { k: k as u32, ..only.clone() };
    let crashes: Vec<Crash> = orders
        .scope
        .process
        .then_some(Crash::Process)
        .into_iter()
        .chain(orders.scope.models.iter().map(|model| Crash::Power(*model)))
        .take(1)
        .collect();
    let way = Way { promised: recording.promised(k), candidate: only };
    let digest = way.candidate.tree(recording).digest();
    let state = State { ways: crashes.into_iter().map(|crash| (crash, way.clone())).collect(), digest };
    (vec![state], Counted::default())
}

/// Bytes of the largest tree that there was, roughly: all that was there at the end and at the beginning.
fn largest(recording: &Recording) -> u64 {
    let bytes = |k| {
        let tree = Candidate::whole(k).tree(recording);
        tree.leaves
            .values()
            .map(|leaf| if let Leaf::File { content, .. } = leaf { content.len() } else { 0 })
            .sum::<u64>()
    };
    let quarter = recording.ops.len() / 4;
    (0..=4).map(|nth| bytes(nth * quarter)).max().unwrap_or(0).max(bytes(recording.ops.len()))
}

/// With nothing lost the recovery must do what the undisturbed run did: at the beginning and at the end.
fn steady<'a>(
    orders: &Orders,
    recording: &Recording,
    undisturbed: &Undisturbed,
    mut booth: Booth<'a>,
) -> Result<Booth<'a>, ExploreError> {
    let moments = [(0, "the untouched folders"), (recording.ops.len(), "the finished run's files")];
    for (k, what) in moments
        .into_iter()
        .filter(|(k, _)| orders.only.is_none() && orders.after.is_none() && (*k > 0 || orders.same_command()))
    {
        let found = booth.attempt(&Candidate::whole(k))?;
        let outcome = judged(orders, recording, undisturbed, &found, &Candidate::whole(k), None);
        // To begin anew, or further back, is something to be found, not something to stop at.
        if !matches!(outcome, Outcome::Recovered | Outcome::Refused | Outcome::Restarted | Outcome::LostWork)
        {
            let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
            let same = if found.same != undisturbed.expected.same {
                format!(
                    "; --same found {} and, undisturbed, {}",
                    said(&found.same),
                    said(&undisturbed.expected.same)
                )
            } else {
                String::new()
            };
            return Err(ExploreError::Undisturbed(format!(
                "on {what} the recovery already comes to `{}` ({}){same}: {}",
                outcome,
                Ended::words(found.ended),
                found.words
            )));
        }
    }
    Ok(booth)
}

/// `promised`: where it is known already.
fn judged(
    orders: &Orders,
    recording: &Recording,
    undisturbed: &Undisturbed,
    found: &Found,
    candidate: &Candidate,
    promised: Option<u64>,
) -> Outcome {
    let k = candidate.k as usize;
    let promised = promised.or_else(|| recording.promised(k));
    let found = orders.ear.heard_before(found.clone(), recording, k);
    orders.ear.judge(&found, promised, &undisturbed.expected)
}

fn try_all<'a>(
    orders: &'a Orders,
    recording: &'a Recording,
    undisturbed: &Undisturbed,
    states: &[State],
    small: &'a Small,
    (largest, first): (u64, &mut Booth<'a>),
    report: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Tried>, ExploreError> {
    let (next, failing) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicUsize::new(0);
    let tried: Mutex<Vec<(usize, Tried)>> = Mutex::new(Vec::with_capacity(states.len()));
    let work = |booth: &mut Booth<'_>| -> Result<(), ExploreError> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(state) = states.get(index).filter(|_| !(orders.cancelled)()) else { return Ok(()) };
            let found = booth.attempt(state.candidate())?;
            let found = orders.ear.explained(found, &undisturbed.expected);
            let outcomes: BTreeMap<Crash, Outcome> = state
                .ways
                .iter()
                .map(|(crash, way)| {
                    let outcome =
                        judged(orders, recording, undisturbed, &found, &way.candidate, way.promised);
                    (*crash, outcome)
                })
                .collect();
            failing.fetch_add(
                usize::from(outcomes.values().any(|outcome| !is_good(*outcome))),
                Ordering::Relaxed,
            );
            let one = Tried { state: state.clone(), found, outcomes };
            tried.lock().unwrap_or_else(PoisonError::into_inner).push((index, one));
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            report(Progress::Tried { done, failing: failing.load(Ordering::Relaxed) });
        }
    };
    let jobs = orders.jobs.min(states.len()).max(1);
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..jobs)
            .map(|number| {
                scope.spawn(move || {
                    let mut booth = Booth::build(orders, recording, small, number, largest)?;
                    work(&mut booth)?;
                    booth.close()
                })
            })
            .collect();
        work(first)?;
        others.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(ExploreError::Closed)))
    })?;
    let mut tried = tried.into_inner().unwrap_or_else(PoisonError::into_inner);
    tried.sort_by_key(|(index, _)| *index);
    Ok(tried.into_iter().map(|(_, one)| one).collect())
}

impl Orders {
    /// Whether the recovery is the command itself, so that it can start from nothing.
    fn same_command(&self) -> bool {
        self.resume.argv == self.command.argv
    }
}
