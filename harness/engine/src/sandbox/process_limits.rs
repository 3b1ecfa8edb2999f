//! Limits on what a target may use: on the resources of each of its processes, by setrlimit(2), and on how many
//! processes it has, by a cgroup. Knows no fault.

use std::collections::BTreeSet;
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use scenarios::ProcessCount;

use super::cgroup::{CgroupVersion, ProcessCgroup};
use super::error::SandboxError;
use super::processes::SandboxProcesses;
use super::protocol::{LimitedResource, ProcessLimit};
use super::sys;

/// A process that starts another one while the limits are set may pass on its old limit. So many times it is
/// looked for such processes.
const MAX_PASSES: u32 = 100;

/// The number of a resource on this machine.
fn number_of(resource: LimitedResource) -> sys::ResourceNumber {
    match resource {
        LimitedResource::OpenFiles => libc::RLIMIT_NOFILE,
        LimitedResource::FileSize => libc::RLIMIT_FSIZE,
    }
}

/// Sets the limit for the process that calls this, and for its later children.
pub(super) fn set_for_this_process(limit: &ProcessLimit) -> std::io::Result<()> {
    Ok(set_for(0, limit)?)
}

/// Sets the limit for a process. A hard limit that is lower stays. `pid` 0: the process that calls this.
fn set_for(pid: i32, limit: &ProcessLimit) -> Result<(), Errno> {
    let number = number_of(limit.resource);
    let (_, hard) = sys::resource_limit(pid, number)?;
    let soft = limit.max.min(hard);
    sys::set_resource_limit(pid, number, soft, if limit.is_final { soft } else { hard })
}

/// Sets the limit for each process of the target.
pub(super) fn set_for_all(processes: SandboxProcesses, limit: ProcessLimit) -> Result<(), SandboxError> {
    for_all(processes, |pid| set_for(pid, &limit))
}

/// Gives each process of the target the limit that the sandbox's init has, as far as its hard limit allows.
pub(super) fn lift_for_all(
    processes: SandboxProcesses,
    resource: LimitedResource,
) -> Result<(), SandboxError> {
    let number = number_of(resource);
    for_all(processes, |pid| {
        let (usual, _) = sys::resource_limit(processes.init_pid, number)?;
        let (_, hard) = sys::resource_limit(pid, number)?;
        sys::set_resource_limit(pid, number, usual.min(hard), hard)
    })
}

fn for_all(processes: SandboxProcesses, set: impl Fn(i32) -> Result<(), Errno>) -> Result<(), SandboxError> {
    let mut done = BTreeSet::new();
    for _ in 0..MAX_PASSES {
        let new: Vec<i32> = processes.pids_outside().into_iter().filter(|pid| !done.contains(pid)).collect();
        if new.is_empty() {
            return Ok(());
        }
        for pid in new {
            match set(pid) {
                // A process that has ended needs no limit.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(SandboxError::system("limit a process")(error)),
            }
            done.insert(pid);
        }
    }
    Err(SandboxError::System {
        doing: "limit all processes",
        source: std::io::Error::other("the target starts new ones faster"),
    })
}

/// A limit on the number of processes and threads, in effect. Dropping it removes the limit.
pub struct ActiveProcessCount {
    cgroup: Arc<ProcessCgroup>,
    max: u32,
    refusals_before: u64,
}

impl ActiveProcessCount {
    pub(super) fn limit(
        cgroup: Arc<ProcessCgroup>,
        count: ProcessCount,
    ) -> Result<ActiveProcessCount, SandboxError> {
        let refusals_before = cgroup.refusals().unwrap_or(0);
        let limited = match count {
            ProcessCount::AtMost(max) => Ok(max),
            ProcessCount::Fewer(by) => cgroup.count().map(|now| now.saturating_sub(by).max(1)),
        };
        let limited = limited.and_then(|max| cgroup.write_limit(Some(max)).map(|()| max));
        let max = limited.map_err(SandboxError::system("limit the number of processes"))?;
        Ok(ActiveProcessCount { cgroup, max, refusals_before })
    }

    /// How many there may be.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// The mechanism that enforces the limit.
    pub fn mechanism(&self) -> &'static str {
        match self.cgroup.version() {
            CgroupVersion::V2 => "pids.max of a cgroup, version 2",
            CgroupVersion::V1 => "pids.max of a cgroup, version 1",
        }
    }

    /// How often a process or thread could not be started because of it.
    pub fn refusals(&self) -> u64 {
        self.cgroup.refusals().unwrap_or(0).saturating_sub(self.refusals_before)
    }
}

impl Drop for ActiveProcessCount {
    fn drop(&mut self) {
        // A failure is harmless: the limit affects only this sandbox, and its cgroup is removed with it.
        let _ = self.cgroup.write_limit(None);
    }
}
