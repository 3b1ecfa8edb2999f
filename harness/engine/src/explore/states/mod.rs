//! The second stage: the crash states that a recording may leave, each once. Pure: reads nothing but the
//! recording, and knows no recovery.

mod allocated_blocks;
#[cfg(test)]
mod brute_force;
mod candidate_sets;
mod candidate_space;
mod collected_candidates;
mod crash_candidate;
mod crash_points;
mod crash_state;
mod enumerate;
mod enumeration_budget;
#[cfg(test)]
mod enumeration_cases;
mod file_mask;
mod file_tree;
mod fs_model;
mod left_out_counter;
mod named_state;
mod page_masks;
mod pending_units;
mod persisted_set;
mod recording_index;
mod state_groups;
mod tear;
mod tree_replay;
mod tree_sizes;
mod upper_layer;
mod write_pages;

pub use crash_candidate::{CrashCandidate, TornWrite};
pub use crash_state::{CrashKind, CrashState, Witness};
pub use enumerate::{Enumeration, EnumerationCounts, ExploreScope, enumerate, enumerate_until};
pub use file_tree::{EntryAttributes, FileTree, TreeEntry};
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
