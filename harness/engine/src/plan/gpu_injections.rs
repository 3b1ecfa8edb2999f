//! GPU faults of a plan: which driver calls the baseline run must count for them, and what is injected at
//! which call. Pure. Knows no driver and no shim.

use scenarios::{
    CudaError, Effect, ErrorReporting, Fault, GpuCallKind, GpuCallTrigger, GpuState, Occurrence, Trigger,
    WrongValue,
};

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

/// What happens at a GPU driver call.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GpuInjection {
    /// An error is returned. `sticky`: so does every later call of the process.
    Fail { code: CudaError, reporting: ErrorReporting, sticky: bool },
    /// The kernel never ends.
    Hang,
    /// The kernel leaves a wrong value in its output. `seed` selects where.
    Overwrite { with: WrongValue, seed: u64 },
    /// A bit of the largest allocation flips. `seed` selects it.
    FlipBit { seed: u64 },
    /// Free device memory consists of holes of at most this size.
    Fragment { hole_bytes: u64 },
}

/// One request for each kind of call, so that a bounded number of trials covers every kind.
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

/// At most `max_trials` planned faults, and how many were left out. Each pair of a call kind and an injection
/// gets its share, spread over its calls. `counted` has one count for each of the fault's [`count_requests`].
/// Returns `None` for a fault that is not injected at a driver call.
pub(super) fn planned_gpu_faults(
    fault: &Fault,
    counted: &[u64],
    seed: u64,
) -> Option<(Vec<PlannedGpuFault>, u64)> {
    let calls = fault.effect.gpu_calls()?;
    // For each kind: the calls, the first one, how many there are, and whether they were counted.
    let kinds: Vec<(GpuCallTrigger, u64, u64, bool)> = match calls.occurrence {
        Occurrence::Nth(nth) => vec![(calls.clone(), nth.into(), 1, false)],
        Occurrence::Every => {
            by_kind(calls).zip(counted).map(|(calls, count)| (calls, 1, *count, true)).collect()
        }
    };
    let injection_count = gpu_injections(&fault.effect, seed).len();
    let groups: Vec<_> =
        (0..injection_count).flat_map(|injection| kinds.iter().map(move |kind| (injection, kind))).collect();
    let sizes: Vec<u64> = groups.iter().map(|(_, (_, _, count, _))| *count).collect();
    let shares = shares(&sizes, fault.max_trials.into());
    let mut planned = Vec::new();
    for ((group, (injection, (calls, first, count, counted))), share) in (0..).zip(&groups).zip(&shares) {
        for index in spread_evenly(*count, *share, seed.wrapping_add(group)) {
            // Each trial alters another value or bit.
            let variation_seed = seed.wrapping_mul(1_000_003).wrapping_add(index);
            let (calls, nth, total) = (calls.clone(), first + index, counted.then_some(*count));
            planned.push(PlannedGpuFault {
                calls,
                nth,
                counted: total,
                injection: gpu_injections(&fault.effect, variation_seed)[*injection],
            });
        }
    }
    let left_out = sizes.iter().sum::<u64>() - planned.len() as u64;
    Some((planned, left_out))
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

fn gpu_injections(effect: &Effect, seed: u64) -> Vec<GpuInjection> {
    match effect {
        Effect::GpuError { codes, reported, sticky, .. } => codes
            .iter()
            .flat_map(|code| {
                let sticky = sticky.unwrap_or(code.sticky);
                reported.iter().map(move |reporting| GpuInjection::Fail {
                    code: *code,
                    reporting: *reporting,
                    sticky,
                })
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
    /// What happens at which call, one line.
    pub(super) fn describe(&self) -> String {
        let PlannedGpuFault { nth, counted, .. } = self;
        let of_total = counted.map(|counted| format!(" of {counted}")).unwrap_or_default();
        format!("{}, {nth}{of_total}, {}", describe_gpu_calls(&self.calls), self.injection.describe())
    }
}

impl GpuInjection {
    fn describe(self) -> String {
        match self {
            GpuInjection::Fail { code, reporting, sticky } => {
                let reported = match reporting {
                    ErrorReporting::Immediately => "",
                    ErrorReporting::AtNextSync => ", reported at the next synchronisation",
                };
                let sticky = if sticky { ", as does every later call of the process" } else { "" };
                format!("fails with {code}{reported}{sticky}")
            }
            GpuInjection::Hang => "never ends".into(),
            GpuInjection::Overwrite { with: WrongValue::Nan, .. } => "leaves a NaN in its output".into(),
            GpuInjection::Overwrite { with: WrongValue::Wrong, .. } => {
                "leaves a wrong number in its output".into()
            }
            GpuInjection::FlipBit { .. } => "finds a bit flipped in the largest allocation".into(),
            GpuInjection::Fragment { hole_bytes } => {
                format!("finds device memory in holes of at most {hole_bytes} bytes")
            }
        }
    }
}

/// Describes the calls, such as `GPU launch or synchronise of attention*`.
fn describe_gpu_calls(calls: &GpuCallTrigger) -> String {
    let kinds: Vec<&str> = calls.kinds.iter().map(|kind: &GpuCallKind| kind.name()).collect();
    let kinds = if kinds.is_empty() { "call".into() } else { kinds.join(" or ") };
    let names = [&calls.kernel, &calls.function].into_iter().flatten();
    let names: String = names.map(|name| format!(" of {name}")).collect();
    let size =
        if calls.min_bytes > 0 { format!(" of {} bytes or more", calls.min_bytes) } else { String::new() };
    format!("GPU {kinds}{names}{size}")
}

/// Describes the state that the GPU reports, one line.
pub(super) fn describe_gpu_state(state: &GpuState) -> String {
    let lost = state.lost.then(|| "lost".to_owned());
    let temperature = state.temperature_c.map(|degrees| format!("{degrees} C"));
    let throttled = (!state.throttled.is_empty()).then(|| format!("slowed down ({:?})", state.throttled));
    let count = |count: u64, kind: &str| (count > 0).then(|| format!("{count} {kind} memory errors"));
    let (corrected, uncorrected) =
        (count(state.ecc_corrected, "corrected"), count(state.ecc_uncorrected, "uncorrected"));
    let xids = (!state.xids.is_empty()).then(|| format!("XIDs {:?}", state.xids));
    let driver = state.driver.map(|version| format!("a driver for CUDA {version}"));
    let all = [lost, temperature, throttled, corrected, uncorrected, xids, driver];
    format!("GPU: {}", all.into_iter().flatten().collect::<Vec<_>>().join(", "))
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
