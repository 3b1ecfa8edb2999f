//! A fault that is made where a call of the target is answered. The gate carries it out and says when it landed.

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction};

pub(super) struct CallFault;

impl InjectableFault for CallFault {
    fn mechanism(&self) -> String {
        "seccomp user notification: the call waits, and gets another answer".into()
    }

    fn inject(&mut self, _scene: &FaultContext<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, _since: TargetReaction) -> Option<String> {
        None
    }
}
