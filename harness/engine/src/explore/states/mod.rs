//! The second stage: the crash states that a recording may leave, each once. Pure: reads nothing but the
//! recording, and knows no recovery.

mod allocated_blocks;
mod crash_candidate;
mod crash_state;
mod enumerate;
mod fs_model;
mod named_state;
mod persisted_set;
mod state_groups;
mod tear;
mod upper_layer;

pub use crash_candidate::{CrashCandidate, EntryAttributes, FileTree, TornWrite, TreeEntry};
pub use crash_state::{CrashKind, CrashState, Witness};
pub use enumerate::{Enumeration, EnumerationCounts, ExploreScope, enumerate, enumerate_until};
pub(super) use fs_model::BYTES_PART;
pub use fs_model::{DurableSet, FsBehavior, FsModel, PersistUnit, persist_units};
pub(super) use named_state::{UnknownStateName, unknown_state_name};
pub use tear::Tear;
pub(super) use upper_layer::LayerPlan;

use super::record::Recording;

/// Which crash states to try.
#[derive(Debug, Clone, Default)]
pub struct EnumerateSpec {
    /// Which crashes are enumerated.
    pub scope: ExploreScope,
    /// Only this state, in place of all that the scope includes.
    pub only_state: Option<CrashCandidate>,
}

/// The crash states to try, in order. A state that is named must be one of this recording. `None`: cancelled.
pub(super) fn states_to_try(
    spec: &EnumerateSpec,
    recording: &Recording,
    cancelled: fn() -> bool,
) -> Option<Enumeration> {
    let Some(only) = &spec.only_state else { return enumerate_until(recording, &spec.scope, cancelled) };
    let crash = spec.scope.crash_kinds().next();
    let states = vec![CrashState::new(recording, crash, only.clone())];
    Some(Enumeration { states, counts: EnumerationCounts::default() })
}
