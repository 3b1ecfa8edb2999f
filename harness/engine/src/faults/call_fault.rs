//! A fault that alters the result of a system call. The call injector of the run injects it through the gate
//! and reports when it is effective, so there is nothing to do here.

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};

/// A fault at a system call, as a placeholder.
pub(super) struct CallFault;

impl InjectableFault for CallFault {
    fn mechanism(&self) -> String {
        "seccomp user notification: the call waits and gets an altered result".into()
    }

    fn inject(&mut self, _context: &FaultContext<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        _reaction: TargetReaction,
    ) -> Option<String> {
        None
    }
}
