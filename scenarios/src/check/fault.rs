//! A fault of a scenario file -> Fault: the keys that every fault has, and which of them fit its effect.
//! Knows no single fault.

use gpu_words::Persistence;

use crate::effect::checker::{Checker, NameKind};
use crate::effect::keys::{CallDraft, CommonKeys, EffectiveIfDraft, TriggerDraft, UntilDraft};
use crate::effect::{Effect, FaultDraft};
use crate::operation::CallKind;
use crate::scenario::Fault;
use crate::trigger::{CallTrigger, StepChoice, Trigger, Until};
use crate::yaml::problem::Problem;

/// Default of `max-trials`.
const DEFAULT_MAX_TRIALS: u32 = 64;
/// Largest `max-trials`.
const MAX_TRIALS_LIMIT: u32 = 100_000;

/// The checked fault. It is only valid if no problem is added.
pub(super) fn checked_fault(draft: &FaultDraft, checker: &mut Checker) -> Fault {
    let common = draft.common();
    let max_trials = common.max_trials.map_or(DEFAULT_MAX_TRIALS, |max| {
        if !(1..=MAX_TRIALS_LIMIT).contains(&max.value) {
            checker.problems.push(max.problem(format!("`max-trials` must be from 1 to {MAX_TRIALS_LIMIT}")));
        }
        max.value
    });
    let effect = draft.check(checker);
    if effect.spec().is_at_call() && !matches!(common.when, Some(TriggerDraft::Call(_))) {
        checker.method_problem(
            format!("`{}` is injected at a file system call, and `when` names none", effect.name()),
            "add `when: {call: {to: [write], on: 'checkpoints/**', at: every}}`",
        );
    }
    let at_line = matches!(common.when, Some(TriggerDraft::Step(_) | TriggerDraft::Output(_)));
    if effect.spec().holds_target() && !at_line {
        checker.method_problem(
            "`target-waits` is about the thread that printed a line, and `when` names no line",
            "add `when: {step: 10}`, or `when: {output: '^saved'}`",
        );
    }
    check_until(&common, &effect, checker);
    Fault {
        when: trigger(common.when, &effect, checker),
        persistence: common.persistence,
        until: match common.until {
            None | Some(UntilDraft::Never) => Until::Never,
            Some(UntilDraft::After(time)) => Until::After(time.0),
            Some(UntilDraft::Output(pattern)) => Until::Output(pattern.0.clone()),
        },
        effective_if_output: common.effective_if.map(|EffectiveIfDraft::Output(pattern)| pattern.0.clone()),
        max_trials,
        is_optional: common.is_optional,
        effect,
    }
}

/// A time at which nothing ends was meant for something else.
fn check_until(common: &CommonKeys<'_>, effect: &Effect, checker: &mut Checker) {
    if matches!(common.until, None | Some(UntilDraft::Never)) {
        return;
    }
    let (name, spec) = (effect.name(), effect.spec());
    if spec.ends_target() {
        let message = format!("`until` has no effect: `{name}` ends the target, and that cannot be reverted");
        checker.method_problem(message, "remove `until`");
    } else if spec.is_momentary() && common.persistence == Persistence::Transient {
        let message = format!("`until` has no effect: `{name}` is injected once, and is over then");
        checker.method_problem(message, "remove `until`");
    }
}

fn trigger(draft: Option<&TriggerDraft>, effect: &Effect, checker: &mut Checker) -> Trigger {
    match draft {
        None | Some(TriggerDraft::Start) => Trigger::Start,
        Some(TriggerDraft::Restart) => Trigger::Restart,
        Some(TriggerDraft::Step(StepChoice::From(step))) => Trigger::Step(*step),
        Some(TriggerDraft::Step(StepChoice::Every)) => Trigger::EveryStep,
        Some(TriggerDraft::Output(pattern)) => Trigger::Output(pattern.0.clone()),
        Some(TriggerDraft::After(time)) => Trigger::After(time.0),
        Some(TriggerDraft::Call(call)) => Trigger::Call(call_trigger(call, effect, checker)),
    }
}

fn call_trigger(call: &CallDraft, effect: &Effect, checker: &mut Checker) -> CallTrigger {
    let kinds = match &call.to {
        Some(kinds) if !kinds.value.is_empty() => kinds.value.clone(),
        _ => CallKind::MUTATING.to_vec(),
    };
    let fits = |kind: &CallKind| effect.spec().fits_call(*kind);
    if let Some(wrong) = kinds.iter().find(|kind| !fits(kind)) {
        let fitting: Vec<&str> =
            CallKind::IN_SCENARIOS.into_iter().filter(fits).map(CallKind::name).collect();
        let message = format!("this fault cannot be injected at a `{}` call", wrong.name());
        let span = call.to.as_ref().map_or(call.at.span, |kinds| kinds.span);
        checker.problems.push(
            Problem::at(span, message)
                .help(format!("write `to` with one or more of: {}", fitting.join(", "))),
        );
    }
    CallTrigger {
        kinds,
        paths: call.on.as_ref().map(|on| on.0.compile_matcher()),
        phase: call.during.as_ref().map(|during| checker.target_name(NameKind::Phase, during)),
        occurrence: call.at.value,
    }
}
