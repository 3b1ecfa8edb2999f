//! Finds the crash state that a name means: by its place in the recording, or in another recording by what it
//! consists of. Reads recorded bytes; runs nothing.

use std::collections::BTreeSet;
use std::io::Error;

use super::content_digests::ContentDigests;
use super::crash_points::CrashPoints;
use super::crash_state::{CrashKind, CrashState};
use super::persist_unit::{BYTES_PART, persist_units};
use super::state_name::StateName;
use super::tear::Tear;
use super::{CrashCandidate, ExploreScope, enumerate_until};
use crate::explore::record::{OpEffect, Recording};

/// The state that a name means.
pub(in crate::explore) enum NamedState {
    /// The recording has it, perhaps at another place than the name says.
    Found(StateName),
    /// The recording has no such state.
    Unknown {
        /// The most similar name of those that there are.
        nearest: Option<String>,
    },
    /// The name is of another recording, and no state of this one has the same files after the same promises.
    OfOtherRecording,
    /// The search was cancelled.
    Cancelled,
}

/// Finds the state that a name means.
///
/// # Errors
/// A recorded byte cannot be read.
pub(in crate::explore) fn find_named_state(
    name: &StateName,
    recording: &Recording,
    cancelled: fn() -> bool,
) -> Result<NamedState, Error> {
    let is_at_its_place = name.candidate.is_possible_in(recording);
    let Some(contents) = name.contents else {
        return Ok(match is_at_its_place && name.is_enumerated(recording, cancelled) {
            true => NamedState::Found(name.clone()),
            false if cancelled() => NamedState::Cancelled,
            false => NamedState::Unknown { nearest: nearest_name(name, recording, cancelled) },
        });
    };
    let mut search =
        ContentSearch { name, files: contents.files, digests: ContentDigests::new(recording)?, best: None };
    if is_at_its_place {
        search.look_at(name.candidate.clone())?;
    }
    if search.best.is_none() && (name.crash.is_none() || name.candidate.lost_nothing()) {
        for op_count in CrashPoints::of(recording, None).op_counts {
            search.look_at(CrashCandidate::whole(op_count))?;
        }
    }
    if let Some(crash) = name.crash.filter(|_| search.best.is_none()) {
        let states = states_of(recording, crash, None, cancelled).into_iter();
        for witness in states.filter_map(|mut state| state.witnesses.remove(&crash)) {
            search.look_at(witness.candidate)?;
        }
    }
    Ok(match search.best {
        Some(candidate) => NamedState::Found(StateName { candidate, ..name.clone() }),
        None if cancelled() => NamedState::Cancelled,
        None if search.digests.of_recording() != contents.recording => NamedState::OfOtherRecording,
        None => NamedState::Unknown { nearest: nearest_name(name, recording, cancelled) },
    })
}

/// The search for the state of a recording that has the files of a name.
struct ContentSearch<'a> {
    name: &'a StateName,
    files: [u8; 8],
    digests: ContentDigests<'a>,
    /// The state that was found, nearest to the place that the name says.
    best: Option<CrashCandidate>,
}

impl ContentSearch<'_> {
    /// Takes a state if it is the named one, and nearer to the named place than those before.
    fn look_at(&mut self, candidate: CrashCandidate) -> Result<(), Error> {
        let is_nearer = self.best.as_ref().is_none_or(|best| self.distance(&candidate) < self.distance(best));
        if is_nearer && self.digests.is_same(&candidate, self.files)? {
            self.best = Some(candidate);
        }
        Ok(())
    }

    /// How far the place of a candidate is from that of the name.
    fn distance(&self, candidate: &CrashCandidate) -> (bool, usize, u32) {
        let wanted = &self.name.candidate;
        let lost = candidate.lost.len().abs_diff(wanted.lost.len());
        (
            candidate.torn.is_some() != wanted.torn.is_some(),
            lost,
            candidate.op_count.abs_diff(wanted.op_count),
        )
    }
}

/// All states that one kind of crash leaves, at one crash point or at all.
fn states_of(
    recording: &Recording,
    crash: CrashKind,
    crash_point: Option<usize>,
    cancelled: fn() -> bool,
) -> Vec<CrashState> {
    let scope = ExploreScope {
        process_crashes: crash == CrashKind::Process,
        models: match crash {
            CrashKind::Process => Vec::new(),
            CrashKind::PowerLoss(model) => vec![model],
        },
        max_states: usize::MAX,
        crash_points: crash_point.map(|point| BTreeSet::from([point])),
    };
    enumerate_until(recording, &scope, cancelled).map(|enumeration| enumeration.states).unwrap_or_default()
}

/// All candidates that one kind of crash has at one crash point, one for each tree.
pub(in crate::explore) fn candidates_at(
    recording: &Recording,
    crash: CrashKind,
    op_count: usize,
    cancelled: fn() -> bool,
) -> Vec<CrashCandidate> {
    let states = states_of(recording, crash, Some(op_count), cancelled).into_iter();
    states.filter_map(|mut state| state.witnesses.remove(&crash)).map(|witness| witness.candidate).collect()
}

/// The name that differs in the fewest letters.
fn nearest_name(name: &StateName, recording: &Recording, cancelled: fn() -> bool) -> Option<String> {
    let place = StateName { contents: None, ..name.clone() };
    let wanted = place.to_string();
    let names = |crash| {
        let states = states_of(recording, crash, None, cancelled).into_iter();
        states.map(|state| StateName { candidate: state.candidate().clone(), ..place.clone() }.to_string())
    };
    match name.crash {
        None => {
            let points = CrashPoints::of(recording, None).op_counts.into_iter();
            let names = points.map(|point| {
                StateName { candidate: CrashCandidate::whole(point), ..place.clone() }.to_string()
            });
            names.min_by_key(|known| strsim::damerau_levenshtein(known, &wanted))
        }
        Some(crash) => names(crash).min_by_key(|known| strsim::damerau_levenshtein(known, &wanted)),
    }
}

impl StateName {
    /// Whether the crash can leave this state at its crash point.
    fn is_enumerated(&self, recording: &Recording, cancelled: fn() -> bool) -> bool {
        let Some(crash) = self.crash else { return true };
        let digest = self.candidate.tree_digest(recording);
        let states = states_of(recording, crash, Some(self.candidate.op_count as usize), cancelled);
        states.iter().any(|state| state.digest == digest)
    }
}

impl CrashCandidate {
    /// Whether the recording has every operation that this state names, and whether that operation can be
    /// lost or torn. Does not ask a model.
    pub(super) fn is_possible_in(&self, recording: &Recording) -> bool {
        let Some(ops) = recording.ops.get(..self.op_count as usize) else { return false };
        let is_distinct = self.lost.iter().collect::<BTreeSet<_>>().len() == self.lost.len();
        let can_be_lost = self.lost.iter().all(|lost| {
            let op = ops.get(lost.op as usize);
            op.is_some_and(|op| {
                let loses_bytes = matches!(op.effect, OpEffect::Write { .. }) && lost.part == BYTES_PART;
                loses_bytes || persist_units(lost.op, &op.effect).any(|unit| unit == *lost)
            })
        });
        let can_be_torn = self.torn.is_none_or(|torn| {
            let len_bytes = ops.get(torn.op as usize).and_then(|op| match op.effect {
                OpEffect::Write { len_bytes, .. } => Some(len_bytes),
                _ => None,
            });
            let is_lost = self.lost.iter().any(|lost| lost.op == torn.op);
            !is_lost && len_bytes.is_some_and(|len_bytes| torn.tear.bytes() <= len_bytes)
        });
        is_distinct && can_be_lost && can_be_torn
    }
}

impl Tear {
    /// Its number of bytes, the larger one of two.
    fn bytes(self) -> u64 {
        match self {
            Tear::Gap { to, .. } => to,
            Tear::Prefix(bytes) | Tear::ZeroTail(bytes) | Tear::GarbageTail(bytes) | Tear::Hole(bytes) => {
                bytes
            }
        }
    }
}
