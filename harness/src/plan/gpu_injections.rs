//! GPU faults of a plan: what the steady state has to count for them, and the ways in which each may strike. Pure.

use scenarios::{
    CudaError, Effect, ErrorReporting, Fault, GpuCallKind, GpuCallTrigger, GpuState, Occurrence, Trigger,
    WrongValue,
};

/// Calls of the GPU's driver that the steady state counts: those of a fault that strikes at every one.
#[derive(Debug, Clone)]
pub struct GpuCountRequest {
    /// When the fault would be armed.
    pub when: Trigger,
    pub calls: GpuCallTrigger,
}

/// How a GPU fault strikes, with nothing left open.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedGpuFault {
    /// Of these.
    pub calls: GpuCallTrigger,
    /// The n-th since it was armed, 1-based.
    pub nth: u64,
    /// How many the steady state counted, if it did.
    pub counted: Option<u64>,
    pub injection: GpuInjection,
}

/// What happens at the call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GpuInjection {
    Fail { code: CudaError, reporting: ErrorReporting, sticky: bool },
    Hang,
    Overwrite { with: WrongValue, seed: u64 },
    FlipBit { seed: u64 },
    Fragment { hole_bytes: u64 },
}

/// One counter for each kind of call, so that a bound leaves some of each.
pub(super) fn count_requests(fault: &Fault) -> Vec<GpuCountRequest> {
    let Some(calls) = fault.effect.gpu_calls().filter(|calls| calls.occurrence == Occurrence::Every) else {
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

/// At most `max_trials` strikes, and how many were left out: each kind of call and each way has its share, spread over its calls. None for a
/// fault that is not made of a call of the driver. `counted`: one figure for each of the fault's counters.
pub(super) fn planned_gpu_faults(
    fault: &Fault,
    counted: &[u64],
    seed: u64,
) -> Option<(Vec<PlannedGpuFault>, u64)> {
    let calls = fault.effect.gpu_calls()?;
    // What may be struck at, of each kind: the calls, the first, how many, and whether they were counted.
    let kinds: Vec<(GpuCallTrigger, u64, u64, bool)> = match calls.occurrence {
        Occurrence::Nth(nth) => vec![(calls.clone(), nth.into(), 1, false)],
        Occurrence::Every => {
            by_kind(calls).zip(counted).map(|(calls, count)| (calls, 1, *count, true)).collect()
        }
    };
    let count_of_ways = gpu_injections(&fault.effect, seed).len();
    let groups: Vec<_> =
        (0..count_of_ways).flat_map(|way| kinds.iter().map(move |kind| (way, kind))).collect();
    let sizes: Vec<u64> = groups.iter().map(|(_, (_, _, count, _))| *count).collect();
    let shares = shares(&sizes, fault.max_trials.into());
    let mut all = Vec::new();
    for ((group, (way, (calls, first, count, counted))), share) in (0..).zip(&groups).zip(&shares) {
        for at in spread_evenly(*count, *share, seed.wrapping_add(group)) {
            // Every trial alters another place.
            let place = seed.wrapping_mul(1_000_003).wrapping_add(at);
            let (calls, nth, of) = (calls.clone(), first + at, counted.then_some(*count));
            all.push(PlannedGpuFault {
                calls,
                nth,
                counted: of,
                injection: gpu_injections(&fault.effect, place)[*way],
            });
        }
    }
    let left_out = sizes.iter().sum::<u64>() - all.len() as u64;
    Some((all, left_out))
}

/// How many of each group, `max` in all: the same of each where there are enough.
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

/// `share` of so many places, one in each of as many equal stretches; the seed decides where in its stretch.
fn spread_evenly(count: u64, share: u64, seed: u64) -> impl Iterator<Item = u64> {
    let begin = move |stretch: u64| stretch * count / share.max(1);
    (0..share).map(move |stretch| {
        let (from, to) = (begin(stretch), begin(stretch + 1));
        // In another third of each stretch than of the one before, so that nothing that comes in a rhythm is always met or always missed.
        let sixth = seed.wrapping_add(stretch) % 3 * 2 + 1;
        from + sixth * (to - from) / 6
    })
}

fn gpu_injections(effect: &Effect, seed: u64) -> Vec<GpuInjection> {
    match effect {
        Effect::GpuError { codes, reported: told, sticky, .. } => codes
            .iter()
            .flat_map(|code| {
                let sticky = sticky.unwrap_or(code.sticky);
                told.iter().map(move |told| GpuInjection::Fail { code: *code, reporting: *told, sticky })
            })
            .collect(),
        Effect::GpuHang { .. } => vec![GpuInjection::Hang],
        Effect::GpuOverwrite { with, .. } => vec![GpuInjection::Overwrite { with: *with, seed }],
        Effect::GpuFlipBit { .. } => vec![GpuInjection::FlipBit { seed }],
        Effect::GpuFragment { holes, .. } => vec![GpuInjection::Fragment { hole_bytes: holes.0 }],
        _ => Vec::new(),
    }
}

impl PlannedGpuFault {
    /// What is done at which call.
    pub(super) fn describe(&self) -> String {
        let PlannedGpuFault { nth, counted: of, .. } = self;
        let of = of.map(|of| format!(" of {of}")).unwrap_or_default();
        format!("{}, {nth}{of}, {}", describe_gpu_calls(&self.calls), self.injection.describe())
    }
}

impl GpuInjection {
    fn describe(self) -> String {
        match self {
            GpuInjection::Fail { code, reporting: told, sticky } => {
                let told = match told {
                    ErrorReporting::Immediately => "",
                    ErrorReporting::AtNextSync => ", told at the next synchronise",
                };
                let sticky = if sticky { ", as does each later one of the process" } else { "" };
                format!("fails with {code}{told}{sticky}")
            }
            GpuInjection::Hang => "never ends".into(),
            GpuInjection::Overwrite { with: WrongValue::Nan, .. } => "leaves a NaN in what it wrote".into(),
            GpuInjection::Overwrite { with: WrongValue::Wrong, .. } => {
                "leaves a wrong number in what it wrote".into()
            }
            GpuInjection::FlipBit { .. } => "finds a bit flipped in the largest allocation".into(),
            GpuInjection::Fragment { hole_bytes } => {
                format!("finds device memory in holes of at most {hole_bytes} bytes")
            }
        }
    }
}

/// Such as `launch or synchronise of attention*`.
fn describe_gpu_calls(calls: &GpuCallTrigger) -> String {
    let kinds: Vec<&str> = calls.kinds.iter().map(|kind: &GpuCallKind| kind.name()).collect();
    let kinds = if kinds.is_empty() { "call".into() } else { kinds.join(" or ") };
    let names = [&calls.kernel, &calls.function].into_iter().flatten();
    let names: String = names.map(|name| format!(" of {name}")).collect();
    let size =
        if calls.min_bytes > 0 { format!(" of {} bytes or more", calls.min_bytes) } else { String::new() };
    format!("GPU {kinds}{names}{size}")
}

/// What the GPU tells of itself, in a few words.
pub(super) fn describe_gpu_state(state: &GpuState) -> String {
    let lost = state.lost.then(|| "lost".to_owned());
    let hot = state.temperature_c.map(|degrees| format!("{degrees} C"));
    let slow = (!state.throttled.is_empty()).then(|| format!("slowed down ({:?})", state.throttled));
    let count = |count: u64, what: &str| (count > 0).then(|| format!("{count} {what} memory errors"));
    let (corrected, uncorrected) =
        (count(state.ecc_corrected, "corrected"), count(state.ecc_uncorrected, "uncorrected"));
    let xids = (!state.xids.is_empty()).then(|| format!("XIDs {:?}", state.xids));
    let driver = state.driver.map(|version| format!("a driver for CUDA {version}"));
    let all = [lost, hot, slow, corrected, uncorrected, xids, driver];
    format!("GPU: {}", all.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::{shares, spread_evenly};

    #[test]
    fn a_bound_is_shared_out_and_what_a_small_group_can_not_use_goes_to_the_others() {
        assert_eq!(shares(&[400, 60, 400, 60], 6), [2, 2, 1, 1]);
        assert_eq!(shares(&[100, 1, 0], 6), [5, 1, 0]);
        assert_eq!(shares(&[2, 1], 64), [2, 1]);
        assert_eq!(shares(&[], 3), [0; 0]);
    }

    #[test]
    fn what_is_taken_is_spread_over_all_and_never_the_same_twice() {
        for (count, share) in [(400, 6), (7, 7), (5, 3), (1, 1), (0, 0)] {
            for seed in [0, 1, 2, u64::MAX] {
                let taken: Vec<u64> = spread_evenly(count, share, seed).collect();
                assert_eq!(taken.len() as u64, share);
                assert!(taken.windows(2).all(|pair| pair[0] < pair[1]), "{taken:?}");
                assert!(taken.iter().all(|at| *at < count), "{taken:?} of {count}");
            }
        }
    }
}
