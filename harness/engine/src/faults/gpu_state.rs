//! The fault `gpu-state`: the shim reports another state of the GPU. Knows no driver.

use std::sync::Arc;

use scenarios::GpuState;
use simgpu_plan::{Backend, CallFilter, GpuHealth};

use crate::faults::injectable_fault::FaultError;
use crate::faults::shim_fault::{ShimChange, ShimFault};
use crate::faults::shim_rule::ArmedShimRule;
use crate::gpu::Shim;

/// The fault that makes this change.
pub(super) fn changed_state(change: &GpuState) -> ShimFault<ChangedGpuState> {
    ShimFault { change: ChangedGpuState { change: change.clone(), call_counter: None, original: None } }
}

/// A change of the state that the GPU reports.
pub(super) struct ChangedGpuState {
    change: GpuState,
    /// Counts driver calls since the change. A process reads the new state before each call.
    call_counter: Option<ArmedShimRule>,
    original: Option<OriginalState>,
}

/// A shim, and its state before the change.
struct OriginalState {
    gpu: Arc<Shim>,
    backend: Backend,
    health: GpuHealth,
}

impl ShimChange for ChangedGpuState {
    const MECHANISM: &'static str = "the GPU state that the shim for NVML and the driver reports";

    fn activate(&mut self, gpu: &Arc<Shim>) -> Result<(), FaultError> {
        if self.original.is_some() {
            return Ok(());
        }
        let mut original = None;
        gpu.update(|backend, health| {
            let (backend_before, health_before) = (backend.clone(), health.clone());
            original =
                Some(OriginalState { gpu: Arc::clone(gpu), backend: backend_before, health: health_before });
            apply_change(&self.change, backend, health);
        })?;
        self.original = original;
        let mut counter = ArmedShimRule::counting(CallFilter::default());
        counter.activate(gpu)?;
        self.call_counter = Some(counter);
        Ok(())
    }

    fn evidence(&self) -> Option<String> {
        let seen = self.call_counter.as_ref()?.seen_calls();
        (seen > 0).then(|| format!("in force while the target called the driver ({seen} calls so far)"))
    }

    fn undo(&mut self) -> Result<Option<String>, FaultError> {
        if let Some(counter) = &mut self.call_counter {
            counter.undo()?;
        }
        let Some(original) = self.original.take() else { return Ok(None) };
        original.gpu.update(|backend, health| (*backend, *health) = (original.backend, original.health))?;
        Ok(Some("the GPU reports its original state again".into()))
    }
}

/// Applies the change. Values that it does not state are kept.
fn apply_change(change: &GpuState, backend: &mut Backend, health: &mut GpuHealth) {
    if let (Backend::Simulated(simulated), Some(driver)) = (backend, change.driver) {
        simulated.driver_version = crate::gpu::cuda_version_number(driver);
    }
    health.lost |= change.lost;
    health.temperature_c = change.temperature_c.or(health.temperature_c);
    health.throttled.extend(&change.throttled);
    health.ecc_corrected += change.ecc_corrected;
    health.ecc_uncorrected += change.ecc_uncorrected;
    health.xids.extend(&change.xids);
}

#[cfg(test)]
mod tests {
    use scenarios::ClockThrottleReason;

    use super::*;
    use crate::faults::shim_fault::tests::ShimFixture;

    #[test]
    fn a_changed_state_is_effective_from_the_next_call_on_and_is_restored_completely() {
        let fixture = ShimFixture::new();
        let before = fixture.plan();
        let change = GpuState {
            ecc_corrected: 12,
            xids: vec![79],
            throttled: vec![ClockThrottleReason::Thermal],
            driver: Some(scenarios::CudaVersion { major: 11, minor: 4 }),
            ..GpuState::default()
        };
        let mut changed = changed_state(&change);
        changed.change.activate(&fixture.gpu).unwrap();
        let state = fixture.plan().health;
        assert_eq!((state.ecc_corrected, state.xids, state.lost), (12, vec![79], false));
        let Backend::Simulated(machine) = fixture.plan().backend else { panic!("the backend is simulated") };
        assert_eq!(machine.driver_version, 11_040);
        assert_eq!(changed.change.evidence(), None, "no process has read it");
        fixture.target.control().count_call(0);
        assert!(changed.change.evidence().unwrap().contains("1 calls"));
        drop(changed);
        assert_eq!((fixture.plan().health, fixture.plan().backend), (before.health, before.backend));
        assert!(!fixture.plan().rules[0].armed);
    }
}
