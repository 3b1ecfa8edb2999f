//! Which trials of a plan run: the bound on their number, and the only one that was asked for. Knows no
//! fault's meaning.

use std::collections::BTreeSet;
use std::fmt;

use scenarios::{Fault, TrialBound};

/// The largest number of trials of one scenario, whatever was asked for. It bounds the memory of a plan.
pub const MAX_TRIALS_OF_SCENARIO: u32 = 100_000;

/// The bound on the number of trials of a scenario.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MaxTrials {
    /// `max-trials` of each fault.
    #[default]
    FromScenario,
    /// At most this many, of each fault and of the scenario.
    AtMost(u32),
    /// All, up to [`MAX_TRIALS_OF_SCENARIO`].
    All,
}

/// As the value of `--max-trials`. `FromScenario` has none.
impl fmt::Display for MaxTrials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MaxTrials::FromScenario => Ok(()),
            MaxTrials::AtMost(max) => write!(f, "{max}"),
            MaxTrials::All => write!(f, "all"),
        }
    }
}

/// Which trials run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrialSelection {
    /// The bound on their number.
    pub max: MaxTrials,
    /// The number of the only trial that runs. The bound does not apply to it.
    pub only: Option<u32>,
}

impl TrialSelection {
    /// The largest number of variants of this fault.
    pub(super) fn max_of_fault(&self, fault: &Fault) -> u32 {
        match self.max {
            MaxTrials::FromScenario => fault.max_trials,
            MaxTrials::AtMost(max) => max.clamp(1, MAX_TRIALS_OF_SCENARIO),
            MaxTrials::All => MAX_TRIALS_OF_SCENARIO,
        }
    }

    /// The largest number of trials.
    pub(super) fn max_of_scenario(&self) -> u32 {
        match self.max {
            MaxTrials::AtMost(max) => max.clamp(1, MAX_TRIALS_OF_SCENARIO),
            MaxTrials::FromScenario | MaxTrials::All => MAX_TRIALS_OF_SCENARIO,
        }
    }

    /// The bound that left trials out. `combinations` is the number of trials that the bounds of the single
    /// faults allow.
    pub(super) fn bound(&self, combinations: u64) -> TrialBound {
        match self.max {
            MaxTrials::AtMost(_) => TrialBound::Option,
            MaxTrials::All => TrialBound::Limit,
            MaxTrials::FromScenario if combinations > MAX_TRIALS_OF_SCENARIO.into() => TrialBound::Limit,
            MaxTrials::FromScenario => TrialBound::Scenario,
        }
    }
}

/// At most `max` of `count` indices, in order and evenly spread. The first and the last are always chosen; the
/// seed shifts those between.
pub(super) fn spread_indices(count: u64, max: u32, seed: u64) -> BTreeSet<u64> {
    let max = u64::from(max.max(1));
    if count <= max {
        return (0..count).collect();
    }
    let shift = seed % (count / max).max(1);
    let position = |nth: u64| match nth {
        0 => 0,
        nth if nth == max - 1 => count - 1,
        nth => {
            let even = u128::from(nth) * u128::from(count - 1) / u128::from((max - 1).max(1));
            (even as u64).saturating_add(shift).min(count - 2)
        }
    };
    (0..max).map(position).collect()
}

#[cfg(test)]
mod tests {
    use super::spread_indices;

    #[test]
    fn as_many_indices_as_allowed_are_chosen_and_none_twice() {
        for (count, max) in [(0, 5), (1, 1), (7, 7), (402, 90), (54, 24), (1000, 999), (u64::MAX, 64)] {
            for seed in [0, 1, 7, u64::MAX] {
                let chosen = spread_indices(count, max, seed);
                assert_eq!(chosen.len() as u64, count.min(max.into()), "{max} of {count}, seed {seed}");
                assert!(chosen.iter().all(|index| *index < count));
                let ends = [0, count.saturating_sub(1)];
                assert!(max < 2 || count == 0 || ends.iter().all(|end| chosen.contains(end)));
            }
        }
    }
}
