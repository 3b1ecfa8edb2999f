//! GPU faults of a plan: which driver calls the baseline run must count for them, and what is injected at
//! which call. Pure. Knows no driver and no shim.

use scenarios::{Fault, GpuCallTrigger, GpuInjection, Occurrence, Trigger};

/// GPU driver calls that the baseline run must count, for a fault with `at: every`.
#[derive(Debug, Clone)]
pub struct GpuCountRequest {
    /// When counting starts: when the fault would be injected.
    pub when: Trigger,
    /// Which calls are counted.
    pub calls: GpuCallTrigger,
}

/// A GPU fault with every choice made.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedGpuFault {
    /// Which calls are counted.
    pub calls: GpuCallTrigger,
    /// The counted call that gets the fault, 1-based.
    pub nth: u64,
    /// How many calls the baseline run counted, if it did.
    pub counted: Option<u64>,
    /// What happens at the call.
    pub injection: GpuInjection,
}

/// One request for each kind of call, so that a bounded number of trials covers every kind.
pub(super) fn count_requests(fault: &Fault) -> Vec<GpuCountRequest> {
    let Some(calls) = fault.effect.spec().gpu_calls().filter(|calls| calls.occurrence == Occurrence::Every)
    else {
        return Vec::new();
    };
    by_kind(calls).map(|calls| GpuCountRequest { when: fault.when.clone(), calls }).collect()
}

fn by_kind(calls: &GpuCallTrigger) -> impl Iterator<Item = GpuCallTrigger> {
    let lists = match calls.kinds.as_slice() {
        [] => vec![Vec::new()],
        kinds => kinds.iter().map(|kind| vec![*kind]).collect(),
    };
    lists.into_iter().map(|kinds| GpuCallTrigger { kinds, ..calls.clone() })
}

/// Calls of one kind, at each of which a fault may be injected.
#[derive(Clone)]
struct CallsOfKind {
    calls: GpuCallTrigger,
    /// Number of the first call, 1-based.
    first: u64,
    count: u64,
    /// The baseline run counted them.
    is_counted: bool,
}

/// The GPU calls at which a fault may be injected, and what is injected there. In order: all calls for the
/// first injection, by kind, then all calls for the second, and so on.
pub(super) struct GpuVariants {
    kinds: Vec<CallsOfKind>,
    injection_count: usize,
    seed: u64,
}

impl GpuVariants {
    /// `counted` has one count for each of the fault's [`count_requests`]. Returns `None` for a fault that is
    /// not injected at a driver call.
    pub(super) fn of(fault: &Fault, counted: &[u64], seed: u64) -> Option<GpuVariants> {
        let calls = fault.effect.spec().gpu_calls()?;
        let kinds: Vec<CallsOfKind> = match calls.occurrence {
            Occurrence::Nth(nth) => {
                vec![CallsOfKind { calls: calls.clone(), first: nth.into(), count: 1, is_counted: false }]
            }
            Occurrence::Every => by_kind(calls)
                .zip(counted)
                .map(|(calls, count)| CallsOfKind { calls, first: 1, count: *count, is_counted: true })
                .collect(),
        };
        let injection_count = fault.effect.spec().gpu_injections(seed).len();
        Some(GpuVariants { kinds, injection_count, seed })
    }

    /// How many there are.
    pub(super) fn total(&self) -> u64 {
        self.group_sizes().sum()
    }

    /// Whether each call has one variant.
    pub(super) fn is_one_for_each_call(&self) -> bool {
        self.injection_count == 1
    }

    /// The number of calls of each pair of an injection and a call kind.
    fn group_sizes(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.injection_count).flat_map(|_| self.kinds.iter().map(|kind| kind.count))
    }

    /// The indices of at most `max` variants. Each pair of a call kind and an injection gets its share, spread
    /// over its calls.
    pub(super) fn chosen(&self, max: u32, seed: u64) -> Vec<u64> {
        let sizes: Vec<u64> = self.group_sizes().collect();
        let mut chosen = Vec::new();
        let mut first_of_group = 0;
        for ((group, size), share) in (0..).zip(&sizes).zip(shares(&sizes, max.into())) {
            let in_group = spread_evenly(*size, share, seed.wrapping_add(group));
            chosen.extend(in_group.map(|index| first_of_group + index));
            first_of_group += size;
        }
        chosen
    }

    /// The variant with this index.
    pub(super) fn at(&self, fault: &Fault, index: u64) -> Option<PlannedGpuFault> {
        let mut index = index;
        for injection in 0..self.injection_count {
            for kind in &self.kinds {
                if index >= kind.count {
                    index -= kind.count;
                    continue;
                }
                // Each trial alters another value or bit.
                let variation_seed = self.seed.wrapping_mul(1_000_003).wrapping_add(index);
                return Some(PlannedGpuFault {
                    calls: kind.calls.clone(),
                    nth: kind.first + index,
                    counted: kind.is_counted.then_some(kind.count),
                    injection: *fault.effect.spec().gpu_injections(variation_seed).get(injection)?,
                });
            }
        }
        None
    }
}

/// How many items to take of each group, `max` in total: equally many of each, as far as a group has enough.
fn shares(sizes: &[u64], max: u64) -> Vec<u64> {
    let mut shares = vec![0; sizes.len()];
    let mut left = max.min(sizes.iter().sum());
    while left > 0 {
        for (share, size) in shares.iter_mut().zip(sizes) {
            if *share < *size && left > 0 {
                *share += 1;
                left -= 1;
            }
        }
    }
    shares
}

/// Selects `share` of `count` indices: divides them into `share` equal ranges and takes one index of each.
/// The seed shifts the index within its range.
fn spread_evenly(count: u64, share: u64, seed: u64) -> impl Iterator<Item = u64> {
    let range_start = move |range: u64| range * count / share.max(1);
    (0..share).map(move |range| {
        let (from, to) = (range_start(range), range_start(range + 1));
        // Takes turns between the thirds of a range, so that calls with a regular pattern are not always hit
        // or always missed.
        let sixth = seed.wrapping_add(range) % 3 * 2 + 1;
        from + sixth * (to - from) / 6
    })
}

impl PlannedGpuFault {
    /// What happens at which call, one line.
    pub(super) fn describe(&self) -> String {
        let PlannedGpuFault { nth, counted, .. } = self;
        let of_total = counted.map(|counted| format!(" of {counted}")).unwrap_or_default();
        format!("{}, {nth}{of_total}, {}", self.calls.describe(), self.injection.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::{shares, spread_evenly};

    #[test]
    fn what_a_small_group_cannot_use_goes_to_the_others() {
        assert_eq!(shares(&[400, 60, 400, 60], 6), [2, 2, 1, 1]);
        assert_eq!(shares(&[100, 1, 0], 6), [5, 1, 0]);
        assert_eq!(shares(&[2, 1], 64), [2, 1]);
        assert_eq!(shares(&[], 3), [0; 0]);
    }

    #[test]
    fn selected_indices_are_spread_over_all_and_never_repeat() {
        for (count, share) in [(400, 6), (7, 7), (5, 3), (1, 1), (0, 0)] {
            for seed in [0, 1, 2, u64::MAX] {
                let indices: Vec<u64> = spread_evenly(count, share, seed).collect();
                assert_eq!(indices.len() as u64, share);
                assert!(indices.windows(2).all(|pair| pair[0] < pair[1]), "{indices:?}");
                assert!(indices.iter().all(|index| *index < count), "{indices:?} of {count}");
            }
        }
    }
}
