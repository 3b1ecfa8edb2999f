//! Less memory than the target needs: a memory cgroup's limit and a real OOM kill, or what comes nearest to it.

use scenarios::Limit;

use crate::faults::{Armed, FaultError, Scene, Since};
use crate::sandbox::MemoryLimited;

pub(super) struct Limited {
    limit: Limit,
    in_force: Option<MemoryLimited>,
}

impl Limited {
    pub(super) fn new(limit: Limit) -> Limited {
        Limited { limit, in_force: None }
    }

    fn bytes(&self, scene: &Scene<'_>) -> Result<u64, FaultError> {
        match (self.limit, scene.steady_peak_bytes) {
            (Limit::Bytes(bytes), _) => Ok(bytes.0),
            (Limit::PercentOfSteadyPeak(percent), Some(peak)) => Ok(peak / 100 * u64::from(percent)),
            (Limit::PercentOfSteadyPeak(_), None) => Err(FaultError::Workload(
                "the steady state's peak memory could not be read; give the limit in bytes".into(),
            )),
        }
    }
}

impl Armed for Limited {
    fn mechanism(&self) -> String {
        self.in_force.as_ref().map_or_else(|| "memory limit".into(), |limited| limited.mechanism().to_owned())
    }

    fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        self.in_force = Some(scene.room.limit_memory(self.bytes(scene)?)?);
        Ok(())
    }

    fn landed(&mut self, scene: &Scene<'_>, _since: Since) -> Option<String> {
        let limited = self.in_force.as_ref()?;
        let kills = limited.kills();
        let bytes = self.bytes(scene).ok()?;
        (kills > 0).then(|| format!("{}: {kills} kill under a limit of {bytes} bytes", limited.mechanism()))
    }

    fn lift(&mut self, _scene: &Scene<'_>) -> Result<Option<String>, FaultError> {
        Ok(self.in_force.take().map(|limited| format!("limit lifted after {} kills", limited.kills())))
    }
}
