//! A fault that is a change of the GPU shim's plan. Dropping it undoes the change. Knows no driver.

use std::sync::Arc;

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::gpu::Shim;

/// A change of the shim's plan. The target's processes read the plan before their next call.
pub(super) trait ShimChange: Send {
    /// What makes the change, for the record.
    const MECHANISM: &'static str;

    /// Makes the change, unless it is made.
    fn activate(&mut self, gpu: &Arc<Shim>) -> Result<(), FaultError>;

    /// What the shim reports about it.
    fn evidence(&self) -> Option<String>;

    /// Undoes the change and returns how. Returns `None` if it was not made.
    fn undo(&mut self) -> Result<Option<String>, FaultError>;
}

/// A fault that makes this change.
pub(super) struct ShimFault<C: ShimChange> {
    pub(super) change: C,
}

impl<C: ShimChange> InjectableFault for ShimFault<C> {
    fn mechanism(&self) -> String {
        C::MECHANISM.into()
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        let gpu = context.gpu.ok_or_else(|| {
            FaultError::Workload(
                "the target has no GPU; give it one with `gpu` in the scenario's `target`".into(),
            )
        })?;
        self.change.activate(gpu)
    }

    fn effective_evidence(&mut self, _context: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        self.change.evidence()
    }

    fn revert(&mut self, _context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        self.change.undo()
    }
}

impl<C: ShimChange> Drop for ShimFault<C> {
    fn drop(&mut self) {
        // The plan can only fail to be written once its directory is removed, and then no process reads it.
        let _ = self.change.undo();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use simgpu_plan::{Backend, PlanDirectory, ShimPlan, SimulatedMachine};

    use super::*;

    /// A shim, and its plan as a target sees it.
    pub(in crate::faults) struct ShimFixture {
        pub(in crate::faults) gpu: Arc<Shim>,
        pub(in crate::faults) target: PlanDirectory,
        _dir: tempfile::TempDir,
    }

    impl ShimFixture {
        pub(in crate::faults) fn new() -> ShimFixture {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("gpu");
            let backend = Backend::Simulated(SimulatedMachine::default());
            let gpu = Arc::new(Shim::create(&path, Path::new("/dev/null"), backend).unwrap());
            ShimFixture { gpu, target: PlanDirectory::open(&path).unwrap(), _dir: dir }
        }

        pub(in crate::faults) fn plan(&self) -> ShimPlan {
            self.target.read_plan().unwrap()
        }
    }
}
