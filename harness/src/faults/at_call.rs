//! A fault that is made where a call of the target is answered. The gate carries it out and says when it landed.

use crate::faults::{Armed, FaultError, Scene, Since};

pub(super) struct AtCall;

impl Armed for AtCall {
    fn mechanism(&self) -> String {
        "seccomp user notification: the call waits, and gets another answer".into()
    }

    fn strike(&mut self, _scene: &Scene<'_>) -> Result<(), FaultError> {
        Ok(())
    }

    fn landed(&mut self, _scene: &Scene<'_>, _since: Since) -> Option<String> {
        None
    }
}
