//! Chooses which recoveries that were forked are compared with new processes: the first of each kind, and a sample that
//! grows with the logarithm of their number. Starts nothing.

use std::collections::{BTreeMap, BTreeSet};

use scenarios::{CrashCategory, Outcome};

use super::record::Recording;
use super::replay::TriedState;
use super::states::{LossKind, StateGroup, StateGroups};

/// From this many on, one that fails is compared too, so that an exploration does not go on for long in vain. In a
/// short one that would cost more than it spares: each finding is confirmed by a new process at the end.
const MIN_TRIED_BEFORE_FAILING: u64 = 200;

/// Of recoveries that do what was seen already, one more is compared each time that their number has become so many
/// times as large. A new process can take fifty times as long as a fork: with 2, comparing Hugging Face's Trainer takes as
/// long as trying.
const GROWTH: u64 = 4;

/// Which recoveries were chosen so far.
pub(super) struct ComparisonSample<'a> {
    groups: StateGroups<'a>,
    tried: u64,
    failing: BTreeSet<Outcomes>,
    recovered: GrowingSample<(Outcomes, LossKind), StateGroup>,
}

/// The worst outcome in each category of crash.
type Outcomes = BTreeMap<CrashCategory, Outcome>;

impl<'a> ComparisonSample<'a> {
    pub(super) fn new(recording: &'a Recording) -> ComparisonSample<'a> {
        let groups = StateGroups::new(recording);
        ComparisonSample { groups, tried: 0, failing: BTreeSet::new(), recovered: GrowingSample::new(GROWTH) }
    }

    /// Whether this recovery is compared. One that hangs is not, because that would take as long as its time limit.
    pub(super) fn takes(&mut self, tried: &TriedState) -> bool {
        self.tried += 1;
        let outcomes = tried.worst_outcomes();
        if tried.is_failing() {
            let is_wanted = tried.result.ended.is_some() && self.tried > MIN_TRIED_BEFORE_FAILING;
            return is_wanted && self.failing.insert(outcomes);
        }
        let group = self.groups.of(tried.state.candidate());
        self.recovered.takes((outcomes, group.loss.clone()), group)
    }
}

/// The first of each kind, and of all others about the logarithm of their number, those of new groups first.
pub(crate) struct GrowingSample<K, G> {
    kinds: BTreeSet<K>,
    groups: BTreeSet<G>,
    /// How many there were.
    count: u64,
    /// How many were chosen although they were not the first of their kind.
    further: u32,
    growth: u64,
}

impl<K: Ord, G: Ord> GrowingSample<K, G> {
    /// Nothing is chosen yet. One more is chosen each time that their number is `growth` times as large, at least 2.
    pub(crate) fn new(growth: u64) -> GrowingSample<K, G> {
        GrowingSample { kinds: BTreeSet::new(), groups: BTreeSet::new(), count: 0, further: 0, growth }
    }

    /// Whether the next one is chosen.
    pub(crate) fn takes(&mut self, kind: K, group: G) -> bool {
        self.count += 1;
        let is_new_group = self.groups.insert(group);
        if self.kinds.insert(kind) {
            return true;
        }
        // One of a known group waits until no new group has come for as many as there were.
        let is_due = self.further + u32::from(!is_new_group) < self.count.ilog(self.growth);
        self.further += u32::from(is_due);
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::GrowingSample;

    #[test]
    fn the_first_of_each_kind_and_about_the_logarithm_of_all_are_compared() {
        let mut sample = GrowingSample::new(2);
        let mut chosen = |kind: &str, groups: &[u32]| {
            groups.iter().filter(|group| sample.takes(kind.to_owned(), **group)).count()
        };
        assert_eq!(chosen("killed", &[0]), 1, "the first");
        assert_eq!(chosen("power lost", &[0]), 1, "the first of another kind");
        assert_eq!(chosen("killed", &[0]), 0);
        assert_eq!(
            chosen("killed", &[1, 2, 3]),
            2,
            "one of a new group each time that the number has doubled"
        );
        assert_eq!(chosen("killed", &[0; 1018]), 7, "others if there are no new groups");
        assert_eq!(chosen("killed", &[0; 1024]), 1);
    }
}
