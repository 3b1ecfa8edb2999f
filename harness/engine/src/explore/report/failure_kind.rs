//! What failing outcomes have in common. Those of one kind that have one cause are one finding. Pure.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::{Outcome, OutcomeCount};

/// In which way a recovery fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FailureKind {
    /// It begins before the acknowledged step. From which step depends only on what an older save has left.
    StartsOver,
    /// It ends with exit code 0, but not as the baseline run.
    EndsOtherwise,
    Crashes,
    Hangs,
}

impl FailureKind {
    /// The kind of an outcome. `None`: the outcome is no failure.
    pub(super) fn of(outcome: Outcome) -> Option<FailureKind> {
        match outcome {
            Outcome::LostWork | Outcome::Restarted => Some(FailureKind::StartsOver),
            Outcome::Corrupt | Outcome::EndedEarly => Some(FailureKind::EndsOtherwise),
            Outcome::Crashed => Some(FailureKind::Crashes),
            Outcome::Hung => Some(FailureKind::Hangs),
            Outcome::Recovered | Outcome::Refused | Outcome::NotJudged => None,
        }
    }
}

/// The states with each outcome, by their digests.
#[derive(Debug, Default)]
pub(super) struct OutcomeStates {
    by_outcome: BTreeMap<Outcome, BTreeSet<[u8; 16]>>,
}

impl OutcomeStates {
    pub(super) fn add(&mut self, outcome: Outcome, digest: [u8; 16]) {
        self.by_outcome.entry(outcome).or_default().insert(digest);
    }

    /// How many states have which outcome, the most frequent first. Empty if all have the same.
    pub(super) fn counts(&self) -> Vec<OutcomeCount> {
        if self.by_outcome.len() < 2 {
            return Vec::new();
        }
        let counts = self.by_outcome.iter();
        let counts =
            counts.map(|(outcome, digests)| OutcomeCount { outcome: *outcome, states: digests.len() as u64 });
        let mut counts: Vec<OutcomeCount> = counts.collect();
        counts.sort_by_key(|count| std::cmp::Reverse(count.states));
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_outcomes_are_counted_the_most_frequent_first() {
        let mut states = OutcomeStates::default();
        states.add(Outcome::LostWork, [0; 16]);
        assert!(states.counts().is_empty());
        (0..3).for_each(|state| states.add(Outcome::Restarted, [state; 16]));
        let counts: Vec<_> = states.counts().into_iter().map(|count| (count.outcome, count.states)).collect();
        assert_eq!(counts, [(Outcome::Restarted, 3), (Outcome::LostWork, 1)]);
    }
}
