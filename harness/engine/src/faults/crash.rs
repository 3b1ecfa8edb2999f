//! Kills every process of the target at once. Knows no trigger.

use crate::faults::injectable_fault::{EndingFault, FaultError, TargetEnd};
use crate::sandbox::Sandbox;

/// SIGKILL to the whole sandbox.
pub(super) struct KillAll;

impl EndingFault for KillAll {
    fn mechanism(&self) -> String {
        "SIGKILL to every process in the pid namespace".into()
    }

    fn end_target(&self, sandbox: &Sandbox, _main_pid: i32) -> Result<Option<TargetEnd>, FaultError> {
        sandbox.kill_all()?;
        let evidence = "every process was killed".into();
        Ok(Some(TargetEnd { evidence, exit_time: None, again_after: None, then_kill: false }))
    }
}
