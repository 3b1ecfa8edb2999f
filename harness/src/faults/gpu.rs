//! Faults of a GPU: a rule by which the stand-in for its driver fails at a call, or what the GPU tells of itself.
//!
//! Knows no driver: a rule is put into the plan that the target's processes read before their next call, and the stand-in's own
//! lines are the evidence.

use std::sync::Arc;

use scenarios::{
    Effect as Word, GpuCallKind, GpuCalls, GpuState, Throttle as Slow, Told as When, WrongValue,
};
use simgpu_plan::{Calls, Effect, Kind, Machine, Overwrite, Rule, State, Strike, Throttle, Told};

use crate::faults::{Armed, FaultError, Scene, Since};
use crate::gpu::StandIn;
use crate::plan::{GpuStrike, GpuWay, Planned};

/// `CUDA_ERROR_NO_DEVICE`: a rule that tells it makes the GPU fall off the bus.
const NO_DEVICE: u32 = 100;

/// The fault; none for one that is not done to a GPU.
pub(super) fn arm(planned: &Planned) -> Option<Box<dyn Armed>> {
    if let Word::GpuState(change) = &planned.fault.effect {
        return Some(Box::new(Changed { change: change.clone(), watch: None, at: None }));
    }
    let from_then_on = planned.fault.strike == scenarios::Strike::FromThenOn;
    planned.gpu.as_ref().map(|strike| Box::new(Ruled::new(rule(strike, from_then_on))) as Box<dyn Armed>)
}

/// Counts calls of the driver and does nothing; for the steady state.
pub(crate) struct Counting {
    ruled: Ruled,
}

impl Counting {
    pub(crate) fn new(calls: &GpuCalls) -> Counting {
        Counting { ruled: Ruled::new(counting(calls_of(calls))) }
    }

    pub(crate) fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        self.ruled.strike(scene)
    }

    /// Calls counted so far.
    pub(crate) fn count(&self) -> u64 {
        self.ruled.seen()
    }
}

fn counting(calls: Calls) -> Rule {
    Rule { armed: true, calls, nth: 1, strike: Strike::FromThenOn, effect: Effect::Count }
}

fn stand_in<'s>(scene: &Scene<'s>) -> Result<&'s Arc<StandIn>, FaultError> {
    scene.gpu.ok_or_else(|| FaultError::Workload("the target has no GPU to fail".into()))
}

/// A rule of the plan, armed while it is in force.
struct Ruled {
    rule: Rule,
    at: Option<(Arc<StandIn>, usize)>,
    in_force: bool,
}

impl Ruled {
    fn new(rule: Rule) -> Ruled {
        Ruled { rule, at: None, in_force: false }
    }

    fn seen(&self) -> u64 {
        self.at.as_ref().map_or(0, |(gpu, number)| gpu.seen(*number))
    }

    fn put_in_force(&mut self, gpu: &Arc<StandIn>) -> Result<(), FaultError> {
        if self.in_force {
            return Ok(());
        }
        match &self.at {
            Some((gpu, number)) => gpu.arm(*number, true)?,
            None => self.at = Some((Arc::clone(gpu), gpu.add(Rule { armed: true, ..self.rule.clone() })?)),
        }
        self.in_force = true;
        Ok(())
    }

    fn evidence(&self) -> Option<String> {
        let (gpu, number) = self.at.as_ref()?;
        let done = gpu.done_by(*number).ok()?;
        done.first().map(|one| format!("the stand-in for the driver: {} (process {})", one.what, one.pid))
    }

    fn disarm(&mut self) -> Result<bool, FaultError> {
        let Some((gpu, number)) = self.at.as_ref().filter(|_| self.in_force) else { return Ok(false) };
        gpu.arm(*number, false)?;
        if matches!(self.rule.effect, Effect::Fail { code: NO_DEVICE, .. }) {
            gpu.put_back();
        }
        self.in_force = false;
        Ok(true)
    }
}

impl Armed for Ruled {
    fn mechanism(&self) -> String {
        "a rule of the stand-in for the GPU's driver".into()
    }

    fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        self.put_in_force(stand_in(scene)?)
    }

    fn landed(&mut self, _scene: &Scene<'_>, _since: Since) -> Option<String> {
        self.evidence()
    }

    fn lift(&mut self, _scene: &Scene<'_>) -> Result<Option<String>, FaultError> {
        let lifted = self.disarm()?;
        Ok(lifted.then(|| format!("the rule is disarmed; it saw {} calls", self.seen())))
    }
}

impl Drop for Ruled {
    fn drop(&mut self) {
        // The folder goes with the stage: where it can't be written any more, nobody reads it either.
        let _ = self.disarm();
    }
}

/// What the GPU tells of itself, changed.
struct Changed {
    change: GpuState,
    /// Counts calls since the change: whoever calls has been told of it first.
    watch: Option<Ruled>,
    at: Option<(Arc<StandIn>, Machine, State)>,
}

impl Changed {
    fn put_in_force(&mut self, gpu: &Arc<StandIn>) -> Result<(), FaultError> {
        if self.at.is_some() {
            return Ok(());
        }
        let mut before = None;
        gpu.change(|machine, state| {
            before = Some((machine.clone(), state.clone()));
            apply(&self.change, machine, state);
        })?;
        self.at = before.map(|(machine, state)| (Arc::clone(gpu), machine, state));
        let mut watch = Ruled::new(counting(Calls::default()));
        watch.put_in_force(gpu)?;
        self.watch = Some(watch);
        Ok(())
    }

    fn evidence(&self) -> Option<String> {
        let seen = self.watch.as_ref()?.seen();
        (seen > 0).then(|| format!("in force while the target called the driver ({seen} calls so far)"))
    }

    fn restore(&mut self) -> Result<bool, FaultError> {
        if let Some(watch) = &mut self.watch {
            watch.disarm()?;
        }
        let Some((gpu, machine_before, before)) = self.at.take() else { return Ok(false) };
        gpu.change(|machine, state| (*machine, *state) = (machine_before, before))?;
        Ok(true)
    }
}

impl Armed for Changed {
    fn mechanism(&self) -> String {
        "what the stand-in for NVML and the driver tells of the GPU".into()
    }

    fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        self.put_in_force(stand_in(scene)?)
    }

    fn landed(&mut self, _scene: &Scene<'_>, _since: Since) -> Option<String> {
        self.evidence()
    }

    fn lift(&mut self, _scene: &Scene<'_>) -> Result<Option<String>, FaultError> {
        Ok(self.restore()?.then(|| "the GPU tells what it told before".into()))
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // As with a rule.
        let _ = self.restore();
    }
}

/// Changes what the fault speaks of; what it is silent about stays.
fn apply(change: &GpuState, machine: &mut Machine, state: &mut State) {
    if let (Machine::Simulated(simulated), Some(driver)) = (machine, change.driver) {
        simulated.driver_version = crate::gpu::version_number(driver);
    }
    state.lost |= change.lost;
    state.temperature_c = change.temperature_c.or(state.temperature_c);
    state.throttled.extend(change.throttled.iter().map(|reason| match reason {
        Slow::Thermal => Throttle::Thermal,
        Slow::PowerCap => Throttle::PowerCap,
        Slow::PowerBrake => Throttle::PowerBrake,
    }));
    state.ecc_corrected += change.ecc_corrected;
    state.ecc_uncorrected += change.ecc_uncorrected;
    state.xids.extend(&change.xids);
}

fn rule(strike: &GpuStrike, from_then_on: bool) -> Rule {
    Rule {
        armed: true,
        calls: calls_of(&strike.calls),
        nth: strike.nth,
        strike: if from_then_on { Strike::FromThenOn } else { Strike::Once },
        effect: effect(strike.way),
    }
}

fn effect(way: GpuWay) -> Effect {
    match way {
        GpuWay::Fail { code, told: When::AtOnce, sticky } => {
            Effect::Fail { code: code.number, told: Told::AtOnce, sticky }
        }
        GpuWay::Fail { code, told: When::AtNextSynchronise, sticky } => {
            Effect::Fail { code: code.number, told: Told::AtNextSynchronise, sticky }
        }
        GpuWay::Hang => Effect::Hang,
        GpuWay::Overwrite { with: WrongValue::Nan, seed } => Effect::Overwrite { with: Overwrite::Nan, seed },
        GpuWay::Overwrite { with: WrongValue::Wrong, seed } => {
            Effect::Overwrite { with: Overwrite::Wrong, seed }
        }
        GpuWay::FlipBit { seed } => Effect::FlipBit { seed },
        GpuWay::Fragment { hole_bytes } => Effect::Fragment { hole_bytes },
    }
}

fn calls_of(calls: &GpuCalls) -> Calls {
    let kind = |kind: &GpuCallKind| match kind {
        GpuCallKind::Initialise => Kind::Initialise,
        GpuCallKind::LoadModule => Kind::LoadModule,
        GpuCallKind::Launch => Kind::Launch,
        GpuCallKind::Allocate => Kind::Allocate,
        GpuCallKind::Free => Kind::Free,
        GpuCallKind::Copy => Kind::Copy,
        GpuCallKind::Synchronise => Kind::Synchronise,
        GpuCallKind::Other => Kind::Other,
    };
    Calls {
        kinds: calls.kinds.iter().map(kind).collect(),
        function: calls.function.clone(),
        kernel: calls.kernel.clone(),
        min_bytes: calls.min_bytes,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use scenarios::{Aim, CudaError};
    use simgpu_plan::{Evidence, Folder, Plan, Simulated};

    use super::*;

    struct Bench {
        gpu: Arc<StandIn>,
        target: Folder,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            let dir = tempfile::tempdir().unwrap();
            let at = dir.path().join("gpu");
            let machine = Machine::Simulated(Simulated::default());
            let gpu = Arc::new(StandIn::create(&at, Path::new("/dev/null"), machine).unwrap());
            Bench { gpu, target: Folder::open(&at).unwrap(), _dir: dir }
        }

        fn plan(&self) -> Plan {
            self.target.plan().unwrap()
        }
    }

    fn ruled() -> Ruled {
        let code = CudaError::named("no-device").unwrap();
        let calls = GpuCalls {
            kinds: vec![GpuCallKind::Launch, GpuCallKind::Synchronise],
            function: None,
            kernel: Some("attention*".into()),
            min_bytes: 0,
            at: Aim::Nth(40),
        };
        let way = GpuWay::Fail { code, told: When::AtNextSynchronise, sticky: true };
        Ruled::new(rule(&GpuStrike { calls, nth: 40, of: None, way }, false))
    }

    #[test]
    fn a_rule_says_all_that_the_scenario_says() {
        let bench = Bench::new();
        let mut ruled = ruled();
        ruled.put_in_force(&bench.gpu).unwrap();
        let calls = Calls {
            kinds: vec![Kind::Launch, Kind::Synchronise],
            kernel: Some("attention*".into()),
            ..Calls::default()
        };
        let effect = Effect::Fail { code: 100, told: Told::AtNextSynchronise, sticky: true };
        let wanted = Rule { armed: true, calls, nth: 40, strike: Strike::Once, effect };
        assert_eq!(bench.plan().rules, [wanted]);
    }

    #[test]
    fn a_rule_has_landed_only_when_the_stand_in_says_so_of_this_rule() {
        let bench = Bench::new();
        let (mut other, mut ruled) = (ruled(), ruled());
        other.put_in_force(&bench.gpu).unwrap();
        ruled.put_in_force(&bench.gpu).unwrap();
        let tell =
            |rule, what: &str| bench.target.tell(&Evidence { rule, pid: 7, what: what.into() }).unwrap();
        tell(Some(0), "launch 40 failed");
        tell(None, "out of bounds");
        assert_eq!(ruled.evidence(), None);
        tell(Some(1), "synchronise 40 failed");
        assert!(ruled.evidence().unwrap().contains("synchronise 40 failed"));
    }

    #[test]
    fn a_dropped_rule_is_disarmed_and_a_lost_gpu_is_back() {
        let bench = Bench::new();
        let mut ruled = ruled();
        ruled.put_in_force(&bench.gpu).unwrap();
        bench.target.control().lose();
        drop(ruled);
        assert!(!bench.plan().rules[0].armed && !bench.target.control().is_lost());
    }

    #[test]
    fn a_changed_state_lands_with_the_first_call_after_it_and_is_taken_back_whole() {
        let bench = Bench::new();
        let before = bench.plan();
        let change = GpuState {
            ecc_corrected: 12,
            xids: vec![79],
            throttled: vec![Slow::Thermal],
            driver: Some(scenarios::CudaVersion { major: 11, minor: 4 }),
            ..GpuState::default()
        };
        let mut changed = Changed { change, watch: None, at: None };
        changed.put_in_force(&bench.gpu).unwrap();
        let state = bench.plan().state;
        assert_eq!((state.ecc_corrected, state.xids, state.lost), (12, vec![79], false));
        let Machine::Simulated(machine) = bench.plan().machine else { panic!("it was simulated") };
        assert_eq!(machine.driver_version, 11_040);
        assert_eq!(changed.evidence(), None, "nobody has been told of it");
        bench.target.control().count(0);
        assert!(changed.evidence().unwrap().contains("1 calls"));
        drop(changed);
        assert_eq!((bench.plan().state, bench.plan().machine), (before.state, before.machine));
        assert!(!bench.plan().rules[0].armed);
    }
}
