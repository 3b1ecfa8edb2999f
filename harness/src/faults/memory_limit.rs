//! Less memory than the target needs: a memory cgroup's limit and a real OOM kill, or what comes nearest to it.

use scenarios::MemoryCap;

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::ActiveMemoryLimit;

pub(super) struct MemoryLimitFault {
    limit: MemoryCap,
    active: Option<ActiveMemoryLimit>,
}

impl MemoryLimitFault {
    pub(super) fn new(limit: MemoryCap) -> MemoryLimitFault {
        MemoryLimitFault { limit, active: None }
    }

    fn limit_bytes(&self, scene: &FaultContext<'_>) -> Result<u64, FaultError> {
        match (self.limit, scene.baseline_peak_bytes) {
            (MemoryCap::Bytes(bytes), _) => Ok(bytes.0),
            (MemoryCap::PercentOfBaselinePeak(percent), Some(peak)) => Ok(peak / 100 * u64::from(percent)),
            (MemoryCap::PercentOfBaselinePeak(_), None) => Err(FaultError::Workload(
                "the steady state's peak memory could not be read; give the limit in bytes".into(),
            )),
        }
    }
}

impl InjectableFault for MemoryLimitFault {
    fn mechanism(&self) -> String {
        self.active.as_ref().map_or_else(|| "memory limit".into(), |limited| limited.mechanism().to_owned())
    }

    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        self.active = Some(scene.sandbox.limit_memory(self.limit_bytes(scene)?)?);
        Ok(())
    }

    fn effective_evidence(&mut self, scene: &FaultContext<'_>, _since: TargetReaction) -> Option<String> {
        let limited = self.active.as_ref()?;
        let kills = limited.kills();
        let bytes = self.limit_bytes(scene).ok()?;
        (kills > 0).then(|| format!("{}: {kills} kill under a limit of {bytes} bytes", limited.mechanism()))
    }

    fn revert(&mut self, _scene: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        Ok(self.active.take().map(|limited| format!("limit lifted after {} kills", limited.kills())))
    }
}
