//! The variants of one fault: the same fault with each choice made, such as at each call of a save. Pure.

use scenarios::{CallSite, CallTrigger, Fault, FaultId, Occurrence, Persistence, TrialUnit, Trigger, Until};

use super::gpu_injections::GpuVariants;
use super::planned_trial::{BaselineCounts, CountedCall, InjectionPoint, PlannedFault};
use super::trial_selection::{TrialSelection, spread_indices};

/// The variants of one fault, in an order that does not depend on any bound.
pub(super) struct FaultVariants {
    /// The fault as the scenario states it.
    fault: Fault,
    /// Each variant of what is injected and where, without the choice of a GPU call.
    listed: Vec<PlannedFault>,
    /// How many more there are after `listed`: crash states beyond the bound.
    beyond: u64,
    /// The GPU calls, for a fault that is injected at one. Each is combined with each of `listed`.
    gpu: Option<GpuVariants>,
    unit: TrialUnit,
}

/// Where a fault is injected.
#[derive(Clone, Copy)]
pub(super) struct FaultPlace<'a> {
    /// The fault's place in the method, 1-based.
    pub(super) number: u32,
    /// Whether the method has no other fault, so that nothing changes the calls before it is injected.
    pub(super) is_alone: bool,
    /// The occurrence of the phase that gets the faults, 1-based.
    pub(super) occurrence: u64,
    /// What the baseline run counted.
    pub(super) counts: &'a BaselineCounts,
}

impl FaultVariants {
    /// The variants of `fault`. `gpu` has its GPU calls, if it is injected at any.
    pub(super) fn of(fault: &Fault, place: FaultPlace<'_>, gpu: Option<GpuVariants>) -> FaultVariants {
        let choices = fault.effect.choices(place.counts.measurements());
        let choice_count = choices.len();
        let mut listed = Vec::new();
        let triggers = triggers(fault, place.counts);
        for (effect, when) in choices
            .into_iter()
            .flat_map(|effect| triggers.iter().map(move |when| (effect.clone(), when.clone())))
        {
            // A fault that reverts itself does so after its own time.
            let until = effect.spec().reverts_after().map_or_else(|| fault.until.clone(), Until::After);
            let fault = Fault { effect, until, when, ..fault.clone() };
            listed.extend(injection_points(&fault, place).into_iter().map(|injection_point| PlannedFault {
                number: place.number,
                fault: fault.clone(),
                injection_point,
                gpu: None,
            }));
        }
        let has_crash_states = fault.effect.spec().crash_states().is_some();
        let beyond = if has_crash_states { place.counts.crash_states_left_out } else { 0 };
        let is_call_each = matches!(&fault.when, Trigger::Call(trigger)
            if trigger.occurrence == Occurrence::Every && calls(trigger, place).len() == listed.len());
        let is_step_each =
            matches!(fault.when, Trigger::EveryStep) && place.counts.steps.len() == listed.len();
        let unit = match &gpu {
            _ if has_crash_states => TrialUnit::CrashStates,
            Some(gpu) if listed.len() == 1 && gpu.is_one_for_each_call() => TrialUnit::GpuCalls,
            Some(_) => TrialUnit::Trials,
            None if is_call_each => TrialUnit::SystemCalls,
            None if is_step_each => TrialUnit::Steps,
            None if choice_count == listed.len() => fault.effect.spec().choice_unit(),
            None => TrialUnit::Trials,
        };
        FaultVariants { fault: fault.clone(), listed, beyond, gpu, unit }
    }

    /// How many there are without any bound.
    pub(super) fn total(&self) -> u64 {
        (self.listed.len() as u64 + self.beyond).saturating_mul(self.gpu_total())
    }

    /// What each variant stands for.
    pub(super) fn unit(&self) -> TrialUnit {
        self.unit
    }

    fn gpu_total(&self) -> u64 {
        self.gpu.as_ref().map_or(1, GpuVariants::total)
    }

    /// The indices of the variants that are tried, at most as many as `selection` allows.
    pub(super) fn chosen(&self, selection: &TrialSelection, seed: u64) -> Vec<u64> {
        let max = selection.max_of_fault(&self.fault);
        if self.unit == TrialUnit::CrashStates {
            // They are ordered so that the first ones are of as many kinds as possible.
            return (0..self.listed.len() as u64).take(max as usize).collect();
        }
        let of_gpu = self.gpu.as_ref().map_or_else(|| vec![0], |gpu| gpu.chosen(max, seed));
        let candidates = self.listed.len() as u64 * of_gpu.len() as u64;
        let index = |position: u64| {
            let (listed, gpu) = (position / of_gpu.len() as u64, position % of_gpu.len() as u64);
            listed * self.gpu_total() + of_gpu[gpu as usize]
        };
        spread_indices(candidates, max, seed).into_iter().map(index).collect()
    }

    /// The variant with this index. `None`: it is not among those that are known.
    pub(super) fn at(&self, index: u64) -> Option<PlannedFault> {
        let (listed, gpu_index) = (index / self.gpu_total().max(1), index % self.gpu_total().max(1));
        let listed = self.listed.get(usize::try_from(listed).ok()?)?;
        let gpu = match &self.gpu {
            Some(gpu) => Some(gpu.at(&self.fault, gpu_index)?),
            None => None,
        };
        Some(PlannedFault { gpu, ..listed.clone() })
    }
}

/// The fault's trigger, with each step that it may mean.
fn triggers(fault: &Fault, counts: &BaselineCounts) -> Vec<Trigger> {
    match &fault.when {
        Trigger::EveryStep => counts.steps.iter().copied().map(Trigger::Step).collect(),
        when => vec![when.clone()],
    }
}

/// Why a fault at each step has no trial.
pub(super) fn without_steps(fault: &Fault, place: FaultPlace<'_>) -> Option<String> {
    let id = FaultId { number: place.number, key: fault.effect.name().to_owned() };
    (matches!(fault.when, Trigger::EveryStep) && place.counts.steps.is_empty())
        .then(|| format!("{id}: the baseline run announced no step, and it needs at least one"))
}

fn injection_points(fault: &Fault, place: FaultPlace<'_>) -> Vec<InjectionPoint> {
    match &fault.when {
        _ if fault.effect.spec().crash_states().is_some() => {
            place.counts.crash_states.iter().map(|state| InjectionPoint::CrashState(state.clone())).collect()
        }
        Trigger::Call(trigger) => call_injection_points(fault, trigger, place),
        _ => vec![InjectionPoint::Trigger],
    }
}

/// The calls that the baseline run counted for a trigger.
fn calls<'a>(trigger: &CallTrigger, place: FaultPlace<'a>) -> &'a [CountedCall] {
    let occurrence = if trigger.phase.is_some() { place.occurrence } else { 1 };
    let counted = place.counts.calls.get(&place.number);
    counted.and_then(|calls| calls.get(occurrence as usize - 1)).map_or(&[], Vec::as_slice)
}

/// Why a fault at a call has no trial, if the baseline run did not make the call that it waits for.
pub(super) fn unreached_call(fault: &Fault, trigger: &CallTrigger, place: FaultPlace<'_>) -> Option<String> {
    if !call_injection_points(fault, trigger, place).is_empty() {
        return None;
    }
    let calls = calls(trigger, place).len();
    let which = match &trigger.phase {
        Some(phase) => format!("in {phase} {}", place.occurrence),
        None => "in the whole run".into(),
    };
    let id = FaultId { number: place.number, key: fault.effect.name().to_owned() };
    let waits = match trigger.occurrence {
        Occurrence::Nth(nth) => format!("it waits for call {nth}"),
        Occurrence::Every => "it needs at least one".into(),
    };
    Some(format!("{id}: the baseline run made {calls} matching calls {which}, and {waits}"))
}

fn call_injection_points(fault: &Fault, trigger: &CallTrigger, place: FaultPlace<'_>) -> Vec<InjectionPoint> {
    let occurrence = trigger.phase.as_ref().map(|_| place.occurrence);
    let calls = calls(trigger, place);
    let (selected, is_one_of_every) = match trigger.occurrence {
        Occurrence::Every => (1..=calls.len() as u64, true),
        Occurrence::Nth(nth) => (u64::from(nth)..=u64::from(nth), false),
    };
    selected
        .flat_map(|nth| {
            let call = calls.get(nth as usize - 1);
            let site = CallSite {
                kind: call.map(|call| call.operation),
                len_bytes: call.map_or(0, |call| call.bytes),
                is_one_of_every,
                is_last: nth == calls.len() as u64,
                is_persistent: fault.persistence == Persistence::Persistent,
            };
            let point =
                move |injection| InjectionPoint::Call { occurrence, nth, call: call.cloned(), injection };
            // A fault at a call that the baseline run did not make is no trial.
            let is_aimed = call.is_some() || !place.is_alone;
            let injections = if is_aimed { fault.effect.spec().call_injections(&site) } else { Vec::new() };
            injections.into_iter().map(point)
        })
        .collect()
}
