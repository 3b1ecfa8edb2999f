//! GPU faults at driver calls: a rule by which the shim injects a fault at a call, or counts calls. The
//! evidence is what the shim reports. Knows no driver.

use std::sync::Arc;

use scenarios::{GpuCallTrigger, GpuInjection, Persistence};
use simgpu_plan::{CallFilter, FaultRule, RuleEffect};

use crate::faults::injectable_fault::{FaultContext, FaultError, FaultMechanism, InjectableFault, injects};
use crate::faults::shim_fault::{ShimChange, ShimFault};
use crate::gpu::Shim;
use crate::plan::{PlannedFault, PlannedGpuFault};

/// A rule that returns this error makes the GPU fall off the bus. Number from `CUresult` in cuda.h.
const CUDA_ERROR_NO_DEVICE: u32 = 100;

/// A rule for the planned driver call.
pub(super) fn mechanism(planned: &PlannedFault) -> FaultMechanism {
    let Some(gpu_fault) = &planned.gpu else { return FaultMechanism::None };
    let change = ArmedShimRule::new(shim_rule(gpu_fault, planned.fault.persistence));
    injects(ShimFault { change })
}

/// Counts driver calls and changes nothing. For baseline runs.
pub(crate) struct GpuCallCounter {
    rule: ShimFault<ArmedShimRule>,
}

impl GpuCallCounter {
    /// A counter that is not started yet.
    pub(crate) fn new(calls: &GpuCallTrigger) -> GpuCallCounter {
        GpuCallCounter { rule: ShimFault { change: ArmedShimRule::counting(shim_calls(calls)) } }
    }

    /// Starts counting.
    ///
    /// # Errors
    /// If the target has no GPU or the shim's plan cannot be written.
    pub(crate) fn start(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.rule.inject(context)
    }

    /// Calls counted so far.
    pub(crate) fn count(&self) -> u64 {
        self.rule.change.seen_calls()
    }
}

/// A rule in the plan of a shim.
struct InstalledRule {
    gpu: Arc<Shim>,
    index: usize,
}

/// A rule of the shim's plan.
pub(super) struct ArmedShimRule {
    rule: FaultRule,
    installed: Option<InstalledRule>,
    is_active: bool,
}

impl ArmedShimRule {
    fn new(rule: FaultRule) -> ArmedShimRule {
        ArmedShimRule { rule, installed: None, is_active: false }
    }

    /// A rule that only counts these calls.
    pub(super) fn counting(calls: CallFilter) -> ArmedShimRule {
        let (persistence, effect) = (Persistence::Persistent, RuleEffect::Count);
        ArmedShimRule::new(FaultRule { armed: true, calls, nth: 1, persistence, effect })
    }

    /// Calls that the rule counted so far.
    pub(super) fn seen_calls(&self) -> u64 {
        self.installed.as_ref().map_or(0, |installed| installed.gpu.calls_seen(installed.index))
    }
}

impl ShimChange for ArmedShimRule {
    const MECHANISM: &'static str = "a rule of the shim for the GPU driver";

    fn activate(&mut self, gpu: &Arc<Shim>) -> Result<(), FaultError> {
        if self.is_active {
            return Ok(());
        }
        match &self.installed {
            Some(installed) => installed.gpu.set_armed(installed.index, true)?,
            None => {
                let index = gpu.add_rule(FaultRule { armed: true, ..self.rule.clone() })?;
                self.installed = Some(InstalledRule { gpu: Arc::clone(gpu), index });
            }
        }
        self.is_active = true;
        Ok(())
    }

    fn evidence(&self) -> Option<String> {
        let installed = self.installed.as_ref()?;
        let evidence = installed.gpu.evidence_of(installed.index).ok()?;
        let first = evidence.first()?;
        Some(format!("the driver shim: {} (process {})", first.description, first.pid))
    }

    fn undo(&mut self) -> Result<Option<String>, FaultError> {
        let Some(installed) = self.installed.as_ref().filter(|_| self.is_active) else { return Ok(None) };
        installed.gpu.set_armed(installed.index, false)?;
        if matches!(self.rule.effect, RuleEffect::Fail { code: CUDA_ERROR_NO_DEVICE, .. }) {
            installed.gpu.restore_device();
        }
        self.is_active = false;
        Ok(Some(format!("the rule is disarmed; it counted {} calls", self.seen_calls())))
    }
}

fn shim_rule(gpu_fault: &PlannedGpuFault, persistence: Persistence) -> FaultRule {
    FaultRule {
        armed: true,
        calls: shim_calls(&gpu_fault.calls),
        nth: gpu_fault.nth,
        persistence,
        effect: shim_effect(gpu_fault.injection),
    }
}

fn shim_effect(injection: GpuInjection) -> RuleEffect {
    match injection {
        GpuInjection::Fail { code, reported, sticky } => {
            RuleEffect::Fail { code: code.number, reported, sticky }
        }
        GpuInjection::Hang => RuleEffect::Hang,
        GpuInjection::Overwrite { with, seed } => RuleEffect::Overwrite { with, seed },
        GpuInjection::FlipBit { seed } => RuleEffect::FlipBit { seed },
        GpuInjection::Fragment { hole_bytes } => RuleEffect::Fragment { hole_bytes },
    }
}

fn shim_calls(calls: &GpuCallTrigger) -> CallFilter {
    CallFilter {
        kinds: calls.kinds.clone(),
        function: calls.function.clone(),
        kernel: calls.kernel.clone(),
        min_bytes: calls.min_bytes,
    }
}

#[cfg(test)]
mod tests {
    use scenarios::{CudaError, DriverCallKind, ErrorTiming, Occurrence};
    use simgpu_plan::Evidence;

    use super::*;
    use crate::faults::shim_fault::tests::ShimFixture;

    fn armed_rule() -> ShimFault<ArmedShimRule> {
        let code = CudaError::from_name("no-device").unwrap();
        let calls = GpuCallTrigger {
            kinds: vec![DriverCallKind::Launch, DriverCallKind::Synchronise],
            function: None,
            kernel: Some("attention*".into()),
            min_bytes: 0,
            occurrence: Occurrence::Nth(40),
        };
        let injection = GpuInjection::Fail { code, reported: ErrorTiming::AtNextSync, sticky: true };
        let planned = PlannedGpuFault { calls, nth: 40, counted: None, injection };
        ShimFault { change: ArmedShimRule::new(shim_rule(&planned, Persistence::Transient)) }
    }

    #[test]
    fn a_rule_carries_everything_that_the_scenario_states() {
        let fixture = ShimFixture::new();
        let mut rule = armed_rule();
        rule.change.activate(&fixture.gpu).unwrap();
        let calls = CallFilter {
            kinds: vec![DriverCallKind::Launch, DriverCallKind::Synchronise],
            kernel: Some("attention*".into()),
            ..CallFilter::default()
        };
        let effect = RuleEffect::Fail { code: 100, reported: ErrorTiming::AtNextSync, sticky: true };
        let expected = FaultRule { armed: true, calls, nth: 40, persistence: Persistence::Transient, effect };
        assert_eq!(fixture.plan().rules, [expected]);
    }

    #[test]
    fn a_rule_is_effective_only_when_the_shim_reports_evidence_for_this_rule() {
        let fixture = ShimFixture::new();
        let (mut other, mut rule) = (armed_rule(), armed_rule());
        other.change.activate(&fixture.gpu).unwrap();
        rule.change.activate(&fixture.gpu).unwrap();
        let record = |rule, what: &str| {
            fixture.target.record_evidence(&Evidence { rule, pid: 7, description: what.into() }).unwrap()
        };
        record(Some(0), "launch 40 failed");
        record(None, "out of bounds");
        assert_eq!(rule.change.evidence(), None);
        record(Some(1), "synchronise 40 failed");
        assert!(rule.change.evidence().unwrap().contains("synchronise 40 failed"));
    }

    #[test]
    fn a_dropped_rule_is_disarmed_and_a_lost_gpu_is_back() {
        let fixture = ShimFixture::new();
        let mut rule = armed_rule();
        rule.change.activate(&fixture.gpu).unwrap();
        fixture.target.control().mark_lost();
        drop(rule);
        assert!(!fixture.plan().rules[0].armed && !fixture.target.control().is_lost());
    }
}
