//! A fault that waits for a call: which calls it counts, which one it takes, and what the gate does there. Pure.

use std::path::{Path, PathBuf};

use scenarios::Replacement;

use crate::gate::{CallDecision, CallRule, CallRules, InterceptedCall, RuleMatch, Swap};
use crate::plan::{CallInjection, InjectionPoint, PlannedFault};
use crate::run::phase_tracker::PhaseTrackers;

/// The occurrence of a phase in which a fault's calls are counted.
#[derive(Debug, Clone)]
struct CountedPhase {
    phase: String,
    /// 1-based.
    occurrence: u64,
}

/// A fault that is injected at a call. It shares nothing with any other fault: each counts all calls that match
/// its own trigger.
pub(super) struct ArmedCallFault {
    /// The fault's place in the method.
    pub(super) number: u32,
    pub(super) injection: CallInjection,
    /// Whether its call has come.
    pub(super) is_decided: bool,
    /// Why it was not effective at its call, if so.
    pub(super) why: Option<String>,
    /// Where calls are counted. `None`: anywhere in the run.
    phase: Option<CountedPhase>,
    rules: CallRules,
}

/// How far the call injector got with a fault.
#[derive(Debug, Clone)]
pub(super) struct CallProgress {
    /// How many calls matched its trigger.
    pub(super) matched: u64,
    /// Whether its call has come.
    pub(super) is_decided: bool,
    /// Why it was not effective at its call, if so.
    pub(super) why: Option<String>,
}

impl ArmedCallFault {
    /// Arms a fault. `None`: it waits for no call.
    pub(super) fn arm(planned: &PlannedFault, root: &Path) -> Option<ArmedCallFault> {
        let (trigger, InjectionPoint::Call { occurrence, nth, injection, .. }) =
            (planned.call_trigger()?, &planned.injection_point)
        else {
            return None;
        };
        let rule = CallRule {
            kinds: trigger.kinds.clone(),
            paths: trigger.paths.clone(),
            nth: *nth,
            persistent: planned.is_persistent(),
            decision: gate_decision(injection),
        };
        let phase = |phase: &String| Some(CountedPhase { phase: phase.clone(), occurrence: (*occurrence)? });
        Some(ArmedCallFault {
            number: planned.number,
            injection: injection.clone(),
            is_decided: false,
            why: None,
            phase: trigger.phase.as_ref().and_then(phase),
            rules: CallRules::new(PathBuf::from(root), vec![rule]),
        })
    }

    /// Counts the call if it matches. Returns what the fault wants at it.
    pub(super) fn on_call(&mut self, call: &InterceptedCall, phases: &PhaseTrackers) -> Option<RuleMatch> {
        let is_in_phase = self
            .phase
            .as_ref()
            .is_none_or(|counted| phases.current_occurrence(&counted.phase) == Some(counted.occurrence));
        // A persistent fault goes on after the phase.
        if is_in_phase || self.is_decided { self.rules.on_call(call) } else { None }
    }

    /// ` in checkpoint-save 3`, or nothing.
    pub(super) fn phase_text(&self) -> String {
        let text = |counted: &CountedPhase| format!(" in {} {}", counted.phase, counted.occurrence);
        self.phase.as_ref().map(text).unwrap_or_default()
    }

    /// Whether calls may still be altered.
    pub(super) fn is_pending(&self) -> bool {
        !self.is_decided || self.rules.is_pending()
    }

    /// Later calls are not altered any more.
    pub(super) fn disarm(&mut self) {
        self.rules.disarm(0);
    }

    /// How far it got.
    pub(super) fn progress(&self) -> CallProgress {
        CallProgress { matched: self.rules.count(0), is_decided: self.is_decided, why: self.why.clone() }
    }
}

fn gate_decision(injection: &CallInjection) -> CallDecision {
    let errno = |errno: &scenarios::Errno| nix::errno::Errno::from_raw(errno.number);
    match injection {
        CallInjection::KillBefore => CallDecision::KillBefore,
        CallInjection::KillInside { bytes } => CallDecision::KillDuring(*bytes),
        CallInjection::KillAfter => CallDecision::KillAfter,
        CallInjection::Fail { errno: with, performed: false, .. } => CallDecision::Fail(errno(with)),
        CallInjection::Fail { errno: with, performed: true, .. } => {
            CallDecision::PerformThenFail(errno(with))
        }
        CallInjection::Short { bytes } => CallDecision::Short(u64::from(*bytes)),
        CallInjection::Delay { duration: delay } => CallDecision::Delay(*delay),
        CallInjection::Swap { by: Replacement::Nothing } => CallDecision::Swap(Swap::Nothing),
        CallInjection::Swap { by: Replacement::EmptyFile } => CallDecision::Swap(Swap::EmptyFile),
        CallInjection::Swap { by: Replacement::DanglingLink } => CallDecision::Swap(Swap::DanglingLink),
        CallInjection::HoldUntilInjected => CallDecision::Continue,
    }
}
