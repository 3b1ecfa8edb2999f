//! Whether the name of a crash state is that of a state of this recording. Pure.

use std::collections::BTreeSet;

use super::fs_model::{BYTES_PART, persist_units};
use super::tear::Tear;
use super::{CrashCandidate, EnumerateSpec, Enumeration, enumerate_until};
use crate::explore::record::{OpEffect, Recording};

/// The name of a state that a recording does not have.
pub(in crate::explore) struct UnknownStateName {
    pub(in crate::explore) name: String,
    /// The most similar name of those that there are.
    pub(in crate::explore) nearest: Option<String>,
}

/// The state that is named, if it is none of this recording.
pub(in crate::explore) fn unknown_state_name(
    spec: &EnumerateSpec,
    recording: &Recording,
    cancelled: fn() -> bool,
) -> Option<UnknownStateName> {
    let state = spec.only_state.as_ref().filter(|state| !state.is_possible_in(recording))?;
    let nearest = enumerate_until(recording, &spec.scope, cancelled);
    let nearest = nearest.and_then(|known| nearest_name(state, known));
    Some(UnknownStateName { name: state.name(), nearest })
}

/// The state whose name differs in the fewest letters.
fn nearest_name(state: &CrashCandidate, known: Enumeration) -> Option<String> {
    let name = state.name();
    let names = known.states.into_iter().map(|state| state.candidate().name());
    names.min_by_key(|known| strsim::damerau_levenshtein(known, &name))
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
