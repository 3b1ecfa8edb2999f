//! The second stage: the crash states that a recording may leave, each once. Pure: reads nothing but the
//! recording, and of it no written bytes, unless a state is named. Knows no recovery.

mod allocated_blocks;
#[cfg(test)]
mod brute_force;
mod candidate_sets;
mod candidate_space;
mod collected_candidates;
mod content_digests;
mod crash_candidate;
mod crash_points;
mod crash_state;
mod early_changes;
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
mod persist_unit;
mod persisted_set;
mod recording_index;
mod state_groups;
mod state_name;
mod tear;
mod tree_replay;
mod tree_sizes;
mod upper_layer;
mod write_pages;

pub(super) use content_digests::ContentDigests;
pub use crash_candidate::{CrashCandidate, TornWrite};
pub use crash_state::{CrashKind, CrashState, Witness};
pub use enumerate::{Enumeration, EnumerationCounts, ExploreScope, enumerate, enumerate_until};
pub use file_tree::{EntryAttributes, FileTree, TreeEntry};
pub use fs_model::{DurableSet, FsBehavior, FsModel};
pub(super) use named_state::{NamedState, candidates_at, find_named_state};
pub(super) use persist_unit::BYTES_PART;
pub use persist_unit::{PersistUnit, persist_units};
pub(super) use state_groups::{LossKind, StateGroup, StateGroups};
pub use state_name::{StateContents, StateName};
pub use tear::Tear;
pub(super) use upper_layer::LayerPlan;

use super::record::Recording;

/// Which crash states to try.
#[derive(Debug, Clone, Default)]
pub struct EnumerateSpec {
    /// Which crashes are enumerated.
    pub scope: ExploreScope,
    /// Only this state, in place of all that the scope includes.
    pub only_state: Option<StateName>,
}

impl EnumerateSpec {
    /// Whether process crashes are tried.
    pub(super) fn has_process_crashes(&self) -> bool {
        match &self.only_state {
            None => self.scope.process_crashes,
            Some(only) => matches!(only.crash, None | Some(CrashKind::Process)),
        }
    }
}

/// All crash points of a recording, as numbers of operations that have happened.
pub(super) fn crash_points(recording: &Recording) -> Vec<usize> {
    crash_points::CrashPoints::of(recording, None).op_counts
}

/// The crash states to try, in order. A state that is named must be one of this recording. `None`: cancelled.
pub(super) fn states_to_try(
    spec: &EnumerateSpec,
    recording: &Recording,
    cancelled: fn() -> bool,
) -> Option<Enumeration> {
    let Some(only) = &spec.only_state else { return enumerate_until(recording, &spec.scope, cancelled) };
    // Files without any damage are what a process crash leaves at that moment.
    let crash = only.crash.unwrap_or(CrashKind::Process);
    let states = vec![CrashState::new(recording, Some(crash), only.candidate.clone())];
    Some(Enumeration { states, counts: EnumerationCounts::default() })
}
