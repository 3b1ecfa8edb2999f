//! All trials of a plan: every combination of the variants of its faults, each with a number. Chooses the ones
//! that run, and builds only those. Pure. Knows no bound's origin.

use scenarios::{TrialUnit, TrialsPlanned};

use super::fault_variants::FaultVariants;
use super::planned_trial::{PlannedFault, Trial};
use super::trial_selection::{TrialSelection, spread_indices};

/// All trials of a plan.
///
/// The number of a trial is its place among all of them, so that it does not depend on the bound.
pub(super) struct TrialSpace {
    /// One for each fault of the method.
    pub(super) variants: Vec<FaultVariants>,
}

/// The trials that run, and how many there are.
pub(super) struct ChosenTrials {
    pub(super) trials: Vec<Trial>,
    pub(super) planned: TrialsPlanned,
}

impl TrialSpace {
    /// The trials that `selection` chooses. `seed` shifts the choice.
    pub(super) fn choose(&self, selection: &TrialSelection, seed: u64) -> ChosenTrials {
        let sizes: Vec<u64> = self.variants.iter().map(FaultVariants::total).collect();
        let possible = product(&sizes);
        let chosen: Vec<Vec<u64>> = self.variants.iter().map(|fault| fault.chosen(selection, seed)).collect();
        let chosen_counts: Vec<u64> = chosen.iter().map(|indices| indices.len() as u64).collect();
        let combinations = product(&chosen_counts);
        let bounded: Vec<u32> = spread_indices(combinations, selection.max_of_scenario(), seed)
            .into_iter()
            .filter_map(|position| {
                let places = digits(position, &chosen_counts);
                let indices = chosen.iter().zip(places).map(|(indices, place)| indices[place as usize]);
                number(indices, &sizes)
            })
            .collect();
        let total = u32::try_from(bounded.len()).unwrap_or(u32::MAX);
        let planned = TrialsPlanned {
            total,
            only: selection.only,
            possible,
            unit: self.unit(),
            bound: (u64::from(total) < possible).then(|| selection.bound(combinations)),
            not_enumerated: 0,
        };
        let is_possible = |only: &u32| (1..=possible).contains(&u64::from(*only));
        let numbers = match selection.only {
            Some(only) => Some(only).filter(is_possible).into_iter().collect(),
            None => bounded,
        };
        let trials = numbers.into_iter().filter_map(|number| self.trial(number, &sizes)).collect();
        ChosenTrials { trials, planned }
    }

    fn trial(&self, number: u32, sizes: &[u64]) -> Option<Trial> {
        let indices = digits(u64::from(number) - 1, sizes);
        let faults: Option<Vec<PlannedFault>> =
            self.variants.iter().zip(indices).map(|(fault, index)| fault.at(index)).collect();
        let faults = faults?;
        let description = faults.iter().map(PlannedFault::describe).collect::<Vec<_>>().join("; then ");
        Some(Trial { number, description, faults })
    }

    /// What a trial stands for: the unit of the only fault with several variants.
    fn unit(&self) -> TrialUnit {
        let mut several = self.variants.iter().filter(|fault| fault.total() > 1);
        match (several.next(), several.next()) {
            (Some(fault), None) => fault.unit(),
            _ => TrialUnit::Trials,
        }
    }
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |product, factor| product.saturating_mul(*factor))
}

/// The digits of a number in a positional system whose digits have these sizes, the most significant first.
fn digits(number: u64, sizes: &[u64]) -> Vec<u64> {
    let mut rest = number;
    let mut digits: Vec<u64> = sizes
        .iter()
        .rev()
        .map(|size| {
            let digit = rest % (*size).max(1);
            rest /= (*size).max(1);
            digit
        })
        .collect();
    digits.reverse();
    digits
}

/// The number of the trial with these digits. `None`: it is too large.
fn number(digits: impl Iterator<Item = u64>, sizes: &[u64]) -> Option<u32> {
    let index = digits
        .zip(sizes)
        .try_fold(0_u64, |number, (digit, size)| number.checked_mul(*size)?.checked_add(digit))?;
    u32::try_from(index.checked_add(1)?).ok()
}

#[cfg(test)]
mod tests {
    use super::{digits, number};

    #[test]
    fn each_number_has_its_own_digits() {
        let sizes = [3, 1, 4];
        for expected in 1..=12 {
            let digits = digits(u64::from(expected) - 1, &sizes);
            assert_eq!(number(digits.into_iter(), &sizes), Some(expected));
        }
        assert_eq!(digits(11, &sizes), [2, 0, 3]);
        assert_eq!(number([1, 0].into_iter(), &[2, u64::MAX]), None, "larger than any number of a trial");
    }
}
