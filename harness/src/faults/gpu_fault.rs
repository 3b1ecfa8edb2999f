//! Faults of a GPU: a rule by which the stand-in for its driver fails at a call, or what the GPU tells of itself.
//!
//! Knows no driver: a rule is put into the plan that the target's processes read before their next call, and the stand-in's own
//! lines are the evidence.

use std::sync::Arc;

use scenarios::{
    Effect as Word, ErrorReporting as When, GpuCallKind, GpuCallTrigger, GpuState, ThrottleReason as Slow,
    WrongValue,
};
use simgpu_plan::{
    Backend, CallFilter, ClockThrottleReason, DriverCallKind, ErrorTiming, FaultRule, GpuHealth,
    OverwriteValue, Persistence, RuleEffect,
};

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::gpu::Shim;
use crate::plan::{GpuInjection, PlannedFault, PlannedGpuFault};

/// `CUDA_ERROR_NO_DEVICE`: a rule that tells it makes the GPU fall off the bus.
const CUDA_ERROR_NO_DEVICE: u32 = 100;

/// The fault; none for one that is not done to a GPU.
pub(super) fn arm(planned: &PlannedFault) -> Option<Box<dyn InjectableFault>> {
    if let Word::GpuState(change) = &planned.fault.effect {
        return Some(Box::new(ChangedGpuState {
            change: change.clone(),
            call_counter: None,
            original: None,
        }));
    }
    let from_then_on = planned.fault.persistence == scenarios::Persistence::Persistent;
    planned.gpu.as_ref().map(|strike| {
        Box::new(ArmedShimRule::new(shim_rule(strike, from_then_on))) as Box<dyn InjectableFault>
    })
}

/// Counts calls of the driver and does nothing; for the steady state.
pub(crate) struct GpuCallCounter {
    rule: ArmedShimRule,
}

impl GpuCallCounter {
    pub(crate) fn new(calls: &GpuCallTrigger) -> GpuCallCounter {
        GpuCallCounter { rule: ArmedShimRule::new(counting_rule(shim_calls(calls))) }
    }

    pub(crate) fn start(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        self.rule.inject(scene)
    }

    /// Calls counted so far.
    pub(crate) fn count(&self) -> u64 {
        self.rule.seen_calls()
    }
}

fn counting_rule(calls: CallFilter) -> FaultRule {
    FaultRule { armed: true, calls, nth: 1, persistence: Persistence::Persistent, effect: RuleEffect::Count }
}

fn shim_of<'s>(scene: &FaultContext<'s>) -> Result<&'s Arc<Shim>, FaultError> {
    scene.gpu.ok_or_else(|| FaultError::Workload("the target has no GPU to fail".into()))
}

/// A rule of the plan, armed while it is in force.
struct ArmedShimRule {
    rule: FaultRule,
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
        let done = gpu.evidence_of(*number).ok()?;
        done.first()
            .map(|one| format!("the stand-in for the driver: {} (process {})", one.description, one.pid))
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
        "a rule of the stand-in for the GPU's driver".into()
    }

    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        self.activate(shim_of(scene)?)
    }

    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, _since: TargetReaction) -> Option<String> {
        self.evidence()
    }

    fn revert(&mut self, _scene: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let lifted = self.disarm()?;
        Ok(lifted.then(|| format!("the rule is disarmed; it saw {} calls", self.seen_calls())))
    }
}

impl Drop for ArmedShimRule {
    fn drop(&mut self) {
        // The folder goes with the stage: where it can't be written any more, nobody reads it either.
        let _ = self.disarm();
    }
}

/// What the GPU tells of itself, changed.
struct ChangedGpuState {
    change: GpuState,
    /// Counts calls since the change: whoever calls has been told of it first.
    call_counter: Option<ArmedShimRule>,
    original: Option<(Arc<Shim>, Backend, GpuHealth)>,
}

impl ChangedGpuState {
    fn activate(&mut self, gpu: &Arc<Shim>) -> Result<(), FaultError> {
        if self.original.is_some() {
            return Ok(());
        }
        let mut before = None;
        gpu.update(|machine, state| {
            before = Some((machine.clone(), state.clone()));
            apply_change(&self.change, machine, state);
        })?;
        self.original = before.map(|(machine, state)| (Arc::clone(gpu), machine, state));
        let mut watch = ArmedShimRule::new(counting_rule(CallFilter::default()));
        watch.activate(gpu)?;
        self.call_counter = Some(watch);
        Ok(())
    }

    fn evidence(&self) -> Option<String> {
        let seen = self.call_counter.as_ref()?.seen_calls();
        (seen > 0).then(|| format!("in force while the target called the driver ({seen} calls so far)"))
    }

    fn restore(&mut self) -> Result<bool, FaultError> {
        if let Some(watch) = &mut self.call_counter {
            watch.disarm()?;
        }
        let Some((gpu, machine_before, before)) = self.original.take() else { return Ok(false) };
        gpu.update(|machine, state| (*machine, *state) = (machine_before, before))?;
        Ok(true)
    }
}

impl InjectableFault for ChangedGpuState {
    fn mechanism(&self) -> String {
        "what the stand-in for NVML and the driver tells of the GPU".into()
    }

    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        self.activate(shim_of(scene)?)
    }

    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, _since: TargetReaction) -> Option<String> {
        self.evidence()
    }

    fn revert(&mut self, _scene: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        Ok(self.restore()?.then(|| "the GPU tells what it told before".into()))
    }
}

impl Drop for ChangedGpuState {
    fn drop(&mut self) {
        // As with a rule.
        let _ = self.restore();
    }
}

/// Changes what the fault speaks of; what it is silent about stays.
fn apply_change(change: &GpuState, machine: &mut Backend, state: &mut GpuHealth) {
    if let (Backend::Simulated(simulated), Some(driver)) = (machine, change.driver) {
        simulated.driver_version = crate::gpu::cuda_version_number(driver);
    }
    state.lost |= change.lost;
    state.temperature_c = change.temperature_c.or(state.temperature_c);
    state.throttled.extend(change.throttled.iter().map(|reason| match reason {
        Slow::Thermal => ClockThrottleReason::Thermal,
        Slow::PowerCap => ClockThrottleReason::PowerCap,
        Slow::PowerBrake => ClockThrottleReason::PowerBrake,
    }));
    state.ecc_corrected += change.ecc_corrected;
    state.ecc_uncorrected += change.ecc_uncorrected;
    state.xids.extend(&change.xids);
}

fn shim_rule(strike: &PlannedGpuFault, from_then_on: bool) -> FaultRule {
    FaultRule {
        armed: true,
        calls: shim_calls(&strike.calls),
        nth: strike.nth,
        persistence: if from_then_on { Persistence::Persistent } else { Persistence::Transient },
        effect: shim_effect(strike.injection),
    }
}

fn shim_effect(way: GpuInjection) -> RuleEffect {
    match way {
        GpuInjection::Fail { code, reporting: When::Immediately, sticky } => {
            RuleEffect::Fail { code: code.number, reported: ErrorTiming::Immediately, sticky }
        }
        GpuInjection::Fail { code, reporting: When::AtNextSync, sticky } => {
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
            let at = dir.path().join("gpu");
            let machine = Backend::Simulated(SimulatedMachine::default());
            let gpu = Arc::new(Shim::create(&at, Path::new("/dev/null"), machine).unwrap());
            ShimFixture { gpu, target: PlanDirectory::open(&at).unwrap(), _dir: dir }
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
        let way = GpuInjection::Fail { code, reporting: When::AtNextSync, sticky: true };
        ArmedShimRule::new(shim_rule(
            &PlannedGpuFault { calls, nth: 40, counted: None, injection: way },
            false,
        ))
    }

    #[test]
    fn a_rule_says_all_that_the_scenario_says() {
        let bench = ShimFixture::new();
        let mut ruled = armed_rule();
        ruled.activate(&bench.gpu).unwrap();
        let calls = CallFilter {
            kinds: vec![DriverCallKind::Launch, DriverCallKind::Synchronise],
            kernel: Some("attention*".into()),
            ..CallFilter::default()
        };
        let effect = RuleEffect::Fail { code: 100, reported: ErrorTiming::AtNextSync, sticky: true };
        let wanted = FaultRule { armed: true, calls, nth: 40, persistence: Persistence::Transient, effect };
        assert_eq!(bench.plan().rules, [wanted]);
    }

    #[test]
    fn a_rule_has_landed_only_when_the_stand_in_says_so_of_this_rule() {
        let bench = ShimFixture::new();
        let (mut other, mut ruled) = (armed_rule(), armed_rule());
        other.activate(&bench.gpu).unwrap();
        ruled.activate(&bench.gpu).unwrap();
        let tell = |rule, what: &str| {
            bench.target.record_evidence(&Evidence { rule, pid: 7, description: what.into() }).unwrap()
        };
        tell(Some(0), "launch 40 failed");
        tell(None, "out of bounds");
        assert_eq!(ruled.evidence(), None);
        tell(Some(1), "synchronise 40 failed");
        assert!(ruled.evidence().unwrap().contains("synchronise 40 failed"));
    }

    #[test]
    fn a_dropped_rule_is_disarmed_and_a_lost_gpu_is_back() {
        let bench = ShimFixture::new();
        let mut ruled = armed_rule();
        ruled.activate(&bench.gpu).unwrap();
        bench.target.control().mark_lost();
        drop(ruled);
        assert!(!bench.plan().rules[0].armed && !bench.target.control().is_lost());
    }

    #[test]
    fn a_changed_state_lands_with_the_first_call_after_it_and_is_taken_back_whole() {
        let bench = ShimFixture::new();
        let before = bench.plan();
        let change = GpuState {
            ecc_corrected: 12,
            xids: vec![79],
            throttled: vec![Slow::Thermal],
            driver: Some(scenarios::CudaVersion { major: 11, minor: 4 }),
            ..GpuState::default()
        };
        let mut changed = ChangedGpuState { change, call_counter: None, original: None };
        changed.activate(&bench.gpu).unwrap();
        let state = bench.plan().health;
        assert_eq!((state.ecc_corrected, state.xids, state.lost), (12, vec![79], false));
        let Backend::Simulated(machine) = bench.plan().backend else { panic!("it was simulated") };
        assert_eq!(machine.driver_version, 11_040);
        assert_eq!(changed.evidence(), None, "nobody has been told of it");
        bench.target.control().count_call(0);
        assert!(changed.evidence().unwrap().contains("1 calls"));
        drop(changed);
        assert_eq!((bench.plan().health, bench.plan().backend), (before.health, before.backend));
        assert!(!bench.plan().rules[0].armed);
    }
}
