//! Less memory than the target needs: a memory cgroup's limit with a real OOM kill, or a fall-back if this
//! machine grants no memory cgroup. Knows no trigger.

use scenarios::MemoryCap;

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::ActiveMemoryLimit;

/// A limit on the memory of the whole target.
pub(super) struct MemoryLimitFault {
    limit: MemoryCap,
    active: Option<ActiveMemoryLimit>,
}

impl MemoryLimitFault {
    pub(super) fn new(limit: MemoryCap) -> MemoryLimitFault {
        MemoryLimitFault { limit, active: None }
    }

    fn limit_bytes(&self, context: &FaultContext<'_>) -> Result<u64, FaultError> {
        match (self.limit, context.baseline_peak_bytes) {
            (MemoryCap::Bytes(bytes), _) => Ok(bytes.0),
            (MemoryCap::PercentOfBaselinePeak(percent), Some(peak)) => Ok(peak / 100 * u64::from(percent)),
            (MemoryCap::PercentOfBaselinePeak(_), None) => Err(FaultError::Workload(
                "the peak memory of the baseline run could not be read; state the limit in bytes".into(),
            )),
        }
    }
}

impl InjectableFault for MemoryLimitFault {
    fn mechanism(&self) -> String {
        self.active.as_ref().map_or_else(|| "memory limit".into(), |limited| limited.mechanism().to_owned())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        // The limit of an earlier injection lasts. A second one would end with the first.
        if self.active.is_none() {
            self.active = Some(context.sandbox.limit_memory(self.limit_bytes(context)?)?);
        }
        Ok(())
    }

    fn effective_evidence(
        &mut self,
        context: &FaultContext<'_>,
        _reaction: TargetReaction,
    ) -> Option<String> {
        let limited = self.active.as_ref()?;
        let kills = limited.kills();
        let bytes = self.limit_bytes(context).ok()?;
        (kills > 0).then(|| format!("{}: {kills} kill under a limit of {bytes} bytes", limited.mechanism()))
    }

    fn revert(&mut self, _context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        Ok(self.active.take().map(|limited| format!("limit removed after {} kills", limited.kills())))
    }
}
