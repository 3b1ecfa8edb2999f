//! GPU faults: a rule by which the driver shim injects a fault at a call, or a change of the state that the
//! GPU reports.
//!
//! Knows no driver. A rule is written into the plan that the target's processes read before their next call.
//! The evidence is what the shim reports.

use std::sync::Arc;

use scenarios::{Effect, ErrorReporting, GpuCallKind, GpuCallTrigger, GpuState, ThrottleReason, WrongValue};
use simgpu_plan::{
    Backend, CallFilter, ClockThrottleReason, DriverCallKind, ErrorTiming, FaultRule, GpuHealth,
    OverwriteValue, Persistence, RuleEffect,
};

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::gpu::Shim;
use crate::plan::{GpuInjection, PlannedFault, PlannedGpuFault};

/// A rule that returns this error makes the GPU fall off the bus. Number from `CUresult` in cuda.h.
const CUDA_ERROR_NO_DEVICE: u32 = 100;

/// Arms a GPU fault. Returns `None` for other faults.
pub(super) fn arm(planned: &PlannedFault) -> Option<Box<dyn InjectableFault>> {
    if let Effect::GpuState(change) = &planned.fault.effect {
        return Some(Box::new(ChangedGpuState {
            change: change.clone(),
            call_counter: None,
            original: None,
        }));
    }
    let is_persistent = planned.fault.persistence == scenarios::Persistence::Persistent;
    planned.gpu.as_ref().map(|gpu_fault| {
        Box::new(ArmedShimRule::new(shim_rule(gpu_fault, is_persistent))) as Box<dyn InjectableFault>
    })
}

/// Counts driver calls and changes nothing. For baseline runs.
pub(crate) struct GpuCallCounter {
    rule: ArmedShimRule,
}

impl GpuCallCounter {
    /// A counter that is not started yet.
    pub(crate) fn new(calls: &GpuCallTrigger) -> GpuCallCounter {
        GpuCallCounter { rule: ArmedShimRule::new(counting_rule(shim_calls(calls))) }
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
        self.rule.seen_calls()
    }
}

fn counting_rule(calls: CallFilter) -> FaultRule {
    FaultRule { armed: true, calls, nth: 1, persistence: Persistence::Persistent, effect: RuleEffect::Count }
}

fn shim_of<'s>(context: &FaultContext<'s>) -> Result<&'s Arc<Shim>, FaultError> {
    context.gpu.ok_or_else(|| {
        FaultError::Workload(
            "the target has no GPU; give it one with `gpu` in the scenario's `target`".into(),
        )
    })
}

/// A rule of the shim's plan. Dropping it disarms it.
struct ArmedShimRule {
    rule: FaultRule,
    /// The shim that has the rule, and the rule's number there.
    installed: Option<(Arc<Shim>, usize)>,
    is_active: bool,
}

impl ArmedShimRule {
    fn new(rule: FaultRule) -> ArmedShimRule {
        ArmedShimRule { rule, installed: None, is_active: false }
    }

    fn seen_calls(&self) -> u64 {
        self.installed.as_ref().map_or(0, |(gpu, number)| gpu.calls_seen(*number))
    }

    fn activate(&mut self, gpu: &Arc<Shim>) -> Result<(), FaultError> {
        if self.is_active {
            return Ok(());
        }
        match &self.installed {
            Some((gpu, number)) => gpu.set_armed(*number, true)?,
            None => {
                self.installed =
                    Some((Arc::clone(gpu), gpu.add_rule(FaultRule { armed: true, ..self.rule.clone() })?))
            }
        }
        self.is_active = true;
        Ok(())
    }

    fn evidence(&self) -> Option<String> {
        let (gpu, number) = self.installed.as_ref()?;
        let evidence = gpu.evidence_of(*number).ok()?;
        evidence
            .first()
            .map(|first| format!("the driver shim: {} (process {})", first.description, first.pid))
    }

    fn disarm(&mut self) -> Result<bool, FaultError> {
        let Some((gpu, number)) = self.installed.as_ref().filter(|_| self.is_active) else {
            return Ok(false);
        };
        gpu.set_armed(*number, false)?;
        if matches!(self.rule.effect, RuleEffect::Fail { code: CUDA_ERROR_NO_DEVICE, .. }) {
            gpu.restore_device();
        }
        self.is_active = false;
        Ok(true)
    }
}

impl InjectableFault for ArmedShimRule {
    fn mechanism(&self) -> String {
        "a rule of the shim for the GPU driver".into()
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.activate(shim_of(context)?)
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        _reaction: TargetReaction,
    ) -> Option<String> {
        self.evidence()
    }

    fn revert(&mut self, _context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let disarmed = self.disarm()?;
        Ok(disarmed.then(|| format!("the rule is disarmed; it counted {} calls", self.seen_calls())))
    }
}

impl Drop for ArmedShimRule {
    fn drop(&mut self) {
        // The plan can only fail to be written once its directory is removed, and then no process reads it.
        let _ = self.disarm();
    }
}

/// A change of the state that the GPU reports. Dropping it restores the state.
struct ChangedGpuState {
    change: GpuState,
    /// Counts driver calls since the change. A process reads the new state before each call.
    call_counter: Option<ArmedShimRule>,
    /// The shim that was changed, and its state before.
    original: Option<(Arc<Shim>, Backend, GpuHealth)>,
}

impl ChangedGpuState {
    fn activate(&mut self, gpu: &Arc<Shim>) -> Result<(), FaultError> {
        if self.original.is_some() {
            return Ok(());
        }
        let mut before = None;
        gpu.update(|backend, health| {
            before = Some((backend.clone(), health.clone()));
            apply_change(&self.change, backend, health);
        })?;
        self.original = before.map(|(backend, health)| (Arc::clone(gpu), backend, health));
        let mut counter = ArmedShimRule::new(counting_rule(CallFilter::default()));
        counter.activate(gpu)?;
        self.call_counter = Some(counter);
        Ok(())
    }

    fn evidence(&self) -> Option<String> {
        let seen = self.call_counter.as_ref()?.seen_calls();
        (seen > 0).then(|| format!("in force while the target called the driver ({seen} calls so far)"))
    }

    fn restore(&mut self) -> Result<bool, FaultError> {
        if let Some(counter) = &mut self.call_counter {
            counter.disarm()?;
        }
        let Some((gpu, original_backend, original_health)) = self.original.take() else { return Ok(false) };
        gpu.update(|backend, health| (*backend, *health) = (original_backend, original_health))?;
        Ok(true)
    }
}

impl InjectableFault for ChangedGpuState {
    fn mechanism(&self) -> String {
        "the GPU state that the shim for NVML and the driver reports".into()
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.activate(shim_of(context)?)
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        _reaction: TargetReaction,
    ) -> Option<String> {
        self.evidence()
    }

    fn revert(&mut self, _context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        Ok(self.restore()?.then(|| "the GPU reports its original state again".into()))
    }
}

impl Drop for ChangedGpuState {
    fn drop(&mut self) {
        // The plan can only fail to be written once its directory is removed, and then no process reads it.
        let _ = self.restore();
    }
}

/// Applies the change. Values that it does not state are kept.
fn apply_change(change: &GpuState, backend: &mut Backend, health: &mut GpuHealth) {
    if let (Backend::Simulated(simulated), Some(driver)) = (backend, change.driver) {
        simulated.driver_version = crate::gpu::cuda_version_number(driver);
    }
    health.lost |= change.lost;
    health.temperature_c = change.temperature_c.or(health.temperature_c);
    health.throttled.extend(change.throttled.iter().map(|reason| match reason {
        ThrottleReason::Thermal => ClockThrottleReason::Thermal,
        ThrottleReason::PowerCap => ClockThrottleReason::PowerCap,
        ThrottleReason::PowerBrake => ClockThrottleReason::PowerBrake,
    }));
    health.ecc_corrected += change.ecc_corrected;
    health.ecc_uncorrected += change.ecc_uncorrected;
    health.xids.extend(&change.xids);
}

fn shim_rule(gpu_fault: &PlannedGpuFault, is_persistent: bool) -> FaultRule {
    FaultRule {
        armed: true,
        calls: shim_calls(&gpu_fault.calls),
        nth: gpu_fault.nth,
        persistence: if is_persistent { Persistence::Persistent } else { Persistence::Transient },
        effect: shim_effect(gpu_fault.injection),
    }
}

fn shim_effect(injection: GpuInjection) -> RuleEffect {
    match injection {
        GpuInjection::Fail { code, reporting: ErrorReporting::Immediately, sticky } => {
            RuleEffect::Fail { code: code.number, reported: ErrorTiming::Immediately, sticky }
        }
        GpuInjection::Fail { code, reporting: ErrorReporting::AtNextSync, sticky } => {
            RuleEffect::Fail { code: code.number, reported: ErrorTiming::AtNextSync, sticky }
        }
        GpuInjection::Hang => RuleEffect::Hang,
        GpuInjection::Overwrite { with: WrongValue::Nan, seed } => {
            RuleEffect::Overwrite { with: OverwriteValue::Nan, seed }
        }
        GpuInjection::Overwrite { with: WrongValue::Wrong, seed } => {
            RuleEffect::Overwrite { with: OverwriteValue::Wrong, seed }
        }
        GpuInjection::FlipBit { seed } => RuleEffect::FlipBit { seed },
        GpuInjection::Fragment { hole_bytes } => RuleEffect::Fragment { hole_bytes },
    }
}

fn shim_calls(calls: &GpuCallTrigger) -> CallFilter {
    let kind = |kind: &GpuCallKind| match kind {
        GpuCallKind::Initialise => DriverCallKind::Initialise,
        GpuCallKind::LoadModule => DriverCallKind::LoadModule,
        GpuCallKind::Launch => DriverCallKind::Launch,
        GpuCallKind::Allocate => DriverCallKind::Allocate,
        GpuCallKind::Free => DriverCallKind::Free,
        GpuCallKind::Copy => DriverCallKind::Copy,
        GpuCallKind::Synchronise => DriverCallKind::Synchronise,
        GpuCallKind::Other => DriverCallKind::Other,
    };
    CallFilter {
        kinds: calls.kinds.iter().map(kind).collect(),
        function: calls.function.clone(),
        kernel: calls.kernel.clone(),
        min_bytes: calls.min_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use scenarios::{CudaError, Occurrence};
    use simgpu_plan::{Evidence, PlanDirectory, ShimPlan, SimulatedMachine};

    use super::*;

    struct ShimFixture {
        gpu: Arc<Shim>,
        target: PlanDirectory,
        _dir: tempfile::TempDir,
    }

    impl ShimFixture {
        fn new() -> ShimFixture {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("gpu");
            let backend = Backend::Simulated(SimulatedMachine::default());
            let gpu = Arc::new(Shim::create(&path, Path::new("/dev/null"), backend).unwrap());
            ShimFixture { gpu, target: PlanDirectory::open(&path).unwrap(), _dir: dir }
        }

        fn plan(&self) -> ShimPlan {
            self.target.read_plan().unwrap()
        }
    }

    fn armed_rule() -> ArmedShimRule {
        let code = CudaError::from_name("no-device").unwrap();
        let calls = GpuCallTrigger {
            kinds: vec![GpuCallKind::Launch, GpuCallKind::Synchronise],
            function: None,
            kernel: Some("attention*".into()),
            min_bytes: 0,
            occurrence: Occurrence::Nth(40),
        };
        let injection = GpuInjection::Fail { code, reporting: ErrorReporting::AtNextSync, sticky: true };
        ArmedShimRule::new(shim_rule(&PlannedGpuFault { calls, nth: 40, counted: None, injection }, false))
    }

    #[test]
    fn a_rule_carries_everything_that_the_scenario_states() {
        let fixture = ShimFixture::new();
        let mut rule = armed_rule();
        rule.activate(&fixture.gpu).unwrap();
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
        other.activate(&fixture.gpu).unwrap();
        rule.activate(&fixture.gpu).unwrap();
        let record = |rule, what: &str| {
            fixture.target.record_evidence(&Evidence { rule, pid: 7, description: what.into() }).unwrap()
        };
        record(Some(0), "launch 40 failed");
        record(None, "out of bounds");
        assert_eq!(rule.evidence(), None);
        record(Some(1), "synchronise 40 failed");
        assert!(rule.evidence().unwrap().contains("synchronise 40 failed"));
    }

    #[test]
    fn a_dropped_rule_is_disarmed_and_a_lost_gpu_is_back() {
        let fixture = ShimFixture::new();
        let mut rule = armed_rule();
        rule.activate(&fixture.gpu).unwrap();
        fixture.target.control().mark_lost();
        drop(rule);
        assert!(!fixture.plan().rules[0].armed && !fixture.target.control().is_lost());
    }

    #[test]
    fn a_changed_state_is_effective_from_the_next_call_on_and_is_restored_completely() {
        let fixture = ShimFixture::new();
        let before = fixture.plan();
        let change = GpuState {
            ecc_corrected: 12,
            xids: vec![79],
            throttled: vec![ThrottleReason::Thermal],
            driver: Some(scenarios::CudaVersion { major: 11, minor: 4 }),
            ..GpuState::default()
        };
        let mut changed = ChangedGpuState { change, call_counter: None, original: None };
        changed.activate(&fixture.gpu).unwrap();
        let state = fixture.plan().health;
        assert_eq!((state.ecc_corrected, state.xids, state.lost), (12, vec![79], false));
        let Backend::Simulated(machine) = fixture.plan().backend else { panic!("the backend is simulated") };
        assert_eq!(machine.driver_version, 11_040);
        assert_eq!(changed.evidence(), None, "no process has read it");
        fixture.target.control().count_call(0);
        assert!(changed.evidence().unwrap().contains("1 calls"));
        drop(changed);
        assert_eq!((fixture.plan().health, fixture.plan().backend), (before.health, before.backend));
        assert!(!fixture.plan().rules[0].armed);
    }
}
