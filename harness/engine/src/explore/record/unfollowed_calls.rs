//! Counts the calls that could not be followed and were let through, because the user accepts that. Knows no
//! operations.

use scenarios::ExplorationNote;

use crate::file_error::chain;
use crate::gate::GateFailure;

/// The calls that were let through.
#[derive(Default)]
pub(super) struct UnfollowedCalls {
    count: u64,
    first: Option<String>,
}

impl UnfollowedCalls {
    pub(super) fn add(&mut self, failure: &GateFailure) {
        self.count += 1;
        self.first.get_or_insert_with(|| chain(failure));
    }

    /// What the user has to know. `None`: there was no such call.
    pub(super) fn note(&self) -> Option<ExplorationNote> {
        let first = self.first.clone()?;
        Some(ExplorationNote::UnfollowedCalls { count: self.count, first })
    }
}
