//! Why a fault was not injected in a trial, in words. Pure.

use scenarios::Trigger;

use crate::plan::{InjectionPoint, PlannedFault};
use crate::run::armed_call_fault::CallProgress;

/// How far a run came.
#[derive(Clone, Copy)]
pub(super) struct RunProgress<'a> {
    /// The last step that the target announced.
    pub(super) step: u64,
    /// How far the call injector got with the fault, if it waits for a call.
    pub(super) calls: Option<&'a CallProgress>,
}

/// Why a fault that still waits for its trigger was not injected.
pub(super) fn why_not_injected(planned: &PlannedFault, progress: RunProgress<'_>) -> String {
    let RunProgress { step, calls } = progress;
    if let InjectionPoint::Call { .. } = planned.injection_point {
        let matched = calls.map_or(0, |calls| calls.matched);
        let waits = planned.describe_call();
        return format!("the target made {matched} matching calls there; the fault waits for {waits}");
    }
    match &planned.fault.when {
        Trigger::EveryStep => "it was not planned for one step".into(),
        Trigger::Step(from) => format!("the run ended at step {step}; the fault waits for step {from}"),
        Trigger::Output(pattern) => {
            format!("the target printed no line that matches `{pattern}`, for which the fault waits")
        }
        Trigger::After(time) => format!("the run ended before {time:?}, for which the fault waits"),
        Trigger::Restart => "the target was not started again, for which the fault waits".into(),
        Trigger::Start | Trigger::Call(_) => "it was not injected".into(),
    }
}
