//! Limits on what the programs of a sandbox may use.

use std::sync::Arc;

use scenarios::ProcessCount;

use super::Sandbox;
use crate::locks::LockExt;
use crate::sandbox::error::SandboxError;
use crate::sandbox::process_limits::{self, ActiveProcessCount};
use crate::sandbox::protocol::{LimitedResource, ProcessLimit};

impl Sandbox {
    /// Limits how many processes and threads the target has, together. Dropping the returned value removes the
    /// limit. `None`: this machine does not permit it.
    ///
    /// # Errors
    /// If the limit can't be set.
    pub fn limit_processes(&self, count: ProcessCount) -> Result<Option<ActiveProcessCount>, SandboxError> {
        let cgroup = self.parts.process_cgroup.as_ref();
        cgroup.map(|cgroup| ActiveProcessCount::limit(Arc::clone(cgroup), count)).transpose()
    }

    /// Limits a resource of each process of the target: of those that run, and of those that are started until
    /// the limit is lifted.
    ///
    /// # Errors
    /// If a limit can't be set.
    pub fn limit_each_process(&self, limit: ProcessLimit) -> Result<(), SandboxError> {
        self.limits.locked().push(limit);
        process_limits::set_for_all(self.init.processes, limit)
    }

    /// Lifts the limits on a resource. Programs that have raised or lowered theirs keep what they have set only
    /// until then.
    ///
    /// # Errors
    /// If a limit can't be set.
    pub fn lift_limit(&self, resource: LimitedResource) -> Result<(), SandboxError> {
        self.limits.locked().retain(|limit| limit.resource != resource);
        process_limits::lift_for_all(self.init.processes, resource)
    }
}
