//! How many candidates of each crash point are enumerated, so that the whole takes bounded time and memory. Pure.
//!
//! The bound is on work, not on seconds: the same recording has the same states on every machine.

use super::candidate_sets::STEPS_OF_SET;
use super::candidate_space::SpaceSection;

/// The operations of all trees together. Some seconds on two cores.
const MAX_STEPS: u64 = 40_000_000;
/// The lost units of all candidates together, of 8 bytes each.
const MAX_UNITS: u64 = 6_000_000;
/// Of each crash point that is used, at least this many candidates are taken.
const MIN_OF_POINT: u64 = 8;

/// What a crash point costs under one kind of crash.
#[derive(Debug, Clone, Copy)]
pub(super) struct PointCost {
    pub(super) candidates: u64,
    /// The operations of one tree.
    pub(super) steps: u64,
    /// About how many units one candidate loses.
    pub(super) units: u64,
}

/// How many candidates are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PointQuota {
    /// Of each crash point that is used.
    pub(super) candidates: u64,
    /// Every crash point with a multiple of this number is used.
    pub(super) stride: usize,
}

/// A share of the candidates of one section.
pub(super) struct SectionShare {
    pub(super) section: SpaceSection,
    /// How many there are.
    pub(super) len: u64,
    /// How many are taken.
    pub(super) taken: u64,
}

impl PointQuota {
    const ALL: PointQuota = PointQuota { candidates: u64::MAX, stride: 1 };

    /// The largest quota within the bounds, if no two candidates have the same persisted set.
    pub(super) fn within_bounds(costs: &[PointCost]) -> PointQuota {
        let most = costs.iter().map(|cost| cost.candidates).max().unwrap_or(0);
        if fits(costs, PointQuota::ALL) {
            return PointQuota::ALL;
        }
        let (mut fitting, mut too_large) = (MIN_OF_POINT, most.max(MIN_OF_POINT + 1));
        while too_large - fitting > 1 {
            let candidates = fitting.midpoint(too_large);
            let quota = PointQuota { candidates, stride: 1 };
            *(if fits(costs, quota) { &mut fitting } else { &mut too_large }) = candidates;
        }
        let mut quota = PointQuota { candidates: fitting, stride: 1 };
        while !fits(costs, quota) && quota.stride < costs.len() {
            quota.stride *= 2;
        }
        quota
    }

    /// A larger quota, after this one has cost much less than the bounds because many candidates had the same
    /// persisted set. `None`: it was large enough.
    pub(super) fn enlarged(self, steps: u64, units: u64) -> Option<PointQuota> {
        let factor = (MAX_STEPS / steps.max(1)).min(MAX_UNITS / units.max(1));
        if self == PointQuota::ALL || factor < 2 {
            return None;
        }
        let stride = self.stride as u64;
        let (fewer, rest) = if factor >= stride { (stride, factor / stride) } else { (factor, 1) };
        let candidates = self.candidates.saturating_mul(rest);
        Some(PointQuota { candidates, stride: (stride / fewer).max(1) as usize })
    }

    /// Whether this crash point is used.
    pub(super) fn uses(self, point: usize) -> bool {
        point.is_multiple_of(self.stride)
    }
}

/// Whether what was spent so far is far beyond the bounds.
pub(super) fn is_exhausted(steps: u64, units: u64) -> bool {
    steps > 2 * MAX_STEPS || units > 2 * MAX_UNITS
}

fn fits(costs: &[PointCost], quota: PointQuota) -> bool {
    let (mut steps, mut units) = (0u64, 0u64);
    for (_, cost) in costs.iter().enumerate().filter(|(point, _)| quota.uses(*point)) {
        let taken = cost.candidates.min(quota.candidates);
        steps = steps.saturating_add(taken.saturating_mul(cost.steps + STEPS_OF_SET));
        units = units.saturating_add(taken.saturating_mul(cost.units));
    }
    steps <= MAX_STEPS && units <= MAX_UNITS
}

/// Divides a quota among sections: small sections as a whole, equal shares of the others.
pub(super) fn shares(mut sections: Vec<SectionShare>, quota: u64) -> Vec<SectionShare> {
    sections.sort_by_key(|section| section.len);
    let (mut left, mut count) = (quota, sections.len() as u64);
    for section in &mut sections {
        section.taken = section.len.min(left.div_ceil(count.max(1)));
        left -= section.taken;
        count -= 1;
    }
    sections
}

impl SectionShare {
    /// The numbers of the candidates that are taken, far apart. `seed` varies them.
    pub(super) fn numbers(&self, seed: u64) -> impl Iterator<Item = u64> + use<> {
        let (len, taken) = (self.len, self.taken);
        let distance = len.checked_div(taken).unwrap_or(1).max(1);
        // The first ones lose the least.
        let offset = match self.section {
            SpaceSection::Names | SpaceSection::AllFiles => 0,
            _ => seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) % distance,
        };
        (0..taken).map(move |nth| (u128::from(nth) * u128::from(len) / u128::from(taken)) as u64 + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(section: SpaceSection, len: u64) -> SectionShare {
        SectionShare { section, len, taken: 0 }
    }

    #[test]
    fn small_sections_are_taken_as_a_whole_and_numbers_are_distinct() {
        let sections = vec![share(SpaceSection::OneFile, 1000), share(SpaceSection::Names, 5)];
        let shared = shares(sections, 50);
        assert_eq!(shared.iter().map(|share| share.taken).collect::<Vec<_>>(), [5, 45]);
        for seed in 0..100 {
            for share in &shared {
                let numbers: Vec<u64> = share.numbers(seed).collect();
                assert!(
                    numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|number| *number < share.len)
                );
            }
        }
    }

    #[test]
    fn a_quota_fits_and_uses_fewer_crash_points_where_it_has_to() {
        let small = vec![PointCost { candidates: 10, steps: 10, units: 2 }; 100];
        assert_eq!(PointQuota::within_bounds(&small), PointQuota::ALL);
        let many = vec![PointCost { candidates: 1_000_000, steps: 1000, units: 500 }; 1000];
        let quota = PointQuota::within_bounds(&many);
        assert!(fits(&many, quota) && quota.candidates > MIN_OF_POINT, "{quota:?}");
        let long = vec![PointCost { candidates: 1000, steps: 100_000, units: 500 }; 100_000];
        let quota = PointQuota::within_bounds(&long);
        assert!(fits(&long, quota) && quota.stride > 1, "{quota:?}");
        assert!(quota.enlarged(MAX_STEPS / 8, 0).is_some_and(|larger| larger.stride < quota.stride));
    }
}
