//! Less of a resource than the target needs: limits of setrlimit(2), and a cgroup for the number of processes.
//! Knows no trigger.

use nix::errno::Errno;
use scenarios::{CallKind, ResourceLimit};

use crate::faults::injectable_fault::{
    FaultContext, FaultError, InjectableFault, RefusedCalls, TargetReaction,
};
use crate::sandbox::{ActiveProcessCount, LimitedResource, ProcessLimit};

/// A limit on a resource.
pub(super) struct LimitedUse {
    limit: ResourceLimit,
    /// Nothing lifts the limit before the end of the trial, so that the target can't raise it either.
    is_final: bool,
    is_injected: bool,
    /// The limit on the number of processes.
    processes: Option<ActiveProcessCount>,
}

impl LimitedUse {
    pub(super) fn new(limit: ResourceLimit, is_final: bool) -> LimitedUse {
        LimitedUse { limit, is_final, is_injected: false, processes: None }
    }

    /// The limit of each process. `None`: the number of processes is limited.
    fn of_each_process(&self) -> Option<ProcessLimit> {
        let (resource, max) = match self.limit {
            ResourceLimit::OpenFiles(max) => (LimitedResource::OpenFiles, u64::from(max)),
            ResourceLimit::FileSize(max) => (LimitedResource::FileSize, max.0),
            ResourceLimit::Processes(_) => return None,
        };
        Some(ProcessLimit { resource, max, is_final: self.is_final })
    }
}

impl InjectableFault for LimitedUse {
    fn mechanism(&self) -> String {
        match (self.limit, &self.processes) {
            (ResourceLimit::OpenFiles(_), _) => "RLIMIT_NOFILE of each process, by prlimit".into(),
            (ResourceLimit::FileSize(_), _) => "RLIMIT_FSIZE of each process, by prlimit".into(),
            (ResourceLimit::Processes(_), Some(active)) => active.mechanism().into(),
            (ResourceLimit::Processes(_), None) => "pids.max of a cgroup".into(),
        }
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        // The limit of an earlier injection lasts.
        if std::mem::replace(&mut self.is_injected, true) {
            return Ok(());
        }
        match (self.of_each_process(), self.limit) {
            (Some(limit), _) => context.sandbox.limit_each_process(limit)?,
            (None, ResourceLimit::Processes(count)) => {
                let active = context.sandbox.limit_processes(count)?;
                let active = active.ok_or_else(|| {
                    FaultError::Workload("the number of processes can't be limited here: no cgroup".into())
                })?;
                self.processes = Some(active);
            }
            (None, _) => {}
        }
        Ok(())
    }

    /// For a limit that fails calls below the root, the gate sees the failure.
    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        reaction: TargetReaction,
    ) -> Option<String> {
        match self.limit {
            ResourceLimit::OpenFiles(_) => None,
            ResourceLimit::FileSize(_) => {
                reaction.ended_by_sigxfsz.then(|| "SIGXFSZ ended the target".to_owned())
            }
            ResourceLimit::Processes(_) => {
                let active = self.processes.as_ref()?;
                let (refusals, max) = (active.refusals(), active.max());
                let times = if refusals == 1 { "one start".into() } else { format!("{refusals} starts") };
                (refusals > 0)
                    .then(|| format!("{times} of a process or thread refused, as there may be {max} at most"))
            }
        }
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        if !self.is_injected {
            return Ok(None);
        }
        match self.of_each_process() {
            Some(limit) => context.sandbox.lift_limit(limit.resource)?,
            None => drop(self.processes.take()),
        }
        Ok(Some("the limit is lifted".into()))
    }

    fn refused_calls(&self) -> Option<RefusedCalls<'_>> {
        let (errnos, extra_kinds): (&[Errno], &[CallKind]) = match self.limit {
            ResourceLimit::OpenFiles(_) => (&[Errno::EMFILE], &[CallKind::OpenToRead]),
            ResourceLimit::FileSize(_) => (&[Errno::EFBIG], &[]),
            ResourceLimit::Processes(_) => return None,
        };
        Some(RefusedCalls { place: None, errnos, extra_kinds, although_modes_allow: false })
    }

    fn missing_evidence(&self) -> String {
        match self.limit {
            ResourceLimit::OpenFiles(max) => {
                format!("no call below the root failed with EMFILE; each process may have {max} open files")
            }
            ResourceLimit::FileSize(max) => {
                format!("no call below the root failed with EFBIG; files may have {} bytes", max.0)
            }
            ResourceLimit::Processes(_) => {
                let max =
                    self.processes.as_ref().map(|active| format!("; there may be {} at most", active.max()));
                format!("no start of a process or thread was refused{}", max.unwrap_or_default())
            }
        }
    }
}
