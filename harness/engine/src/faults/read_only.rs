//! A place becomes read-only while the target runs. Knows no trigger.

use nix::errno::Errno;

use crate::faults::injectable_fault::{
    FaultContext, FaultError, InjectableFault, RefusedCalls, TargetReaction,
};
use crate::sandbox::MountChange;

/// A place whose mount is made read-only.
pub(super) struct ReadOnlyPlace {
    place: String,
    mechanism: String,
    injected: bool,
}

impl ReadOnlyPlace {
    pub(super) fn new(place: &str) -> ReadOnlyPlace {
        ReadOnlyPlace { place: place.into(), mechanism: "mount made read-only".into(), injected: false }
    }
}

impl InjectableFault for ReadOnlyPlace {
    fn mechanism(&self) -> String {
        self.mechanism.clone()
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        if context.open_place(&self.place).is_none() {
            return Ok(());
        }
        let applied = context
            .sandbox
            .change_mount(&context.trainer.place_below_root(&self.place), MountChange::ReadOnly)?;
        self.mechanism = applied.mechanism;
        self.injected = true;
        Ok(())
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        _reaction: TargetReaction,
    ) -> Option<String> {
        None
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        if !std::mem::take(&mut self.injected) {
            return Ok(None);
        }
        context
            .sandbox
            .change_mount(&context.trainer.place_below_root(&self.place), MountChange::Writable)?;
        Ok(Some("mount is writable again".into()))
    }

    fn refused_calls(&self) -> Option<RefusedCalls<'_>> {
        Some(RefusedCalls {
            place: Some(&self.place),
            errnos: &[Errno::EROFS],
            extra_kinds: &[],
            although_modes_allow: false,
        })
    }

    fn missing_evidence(&self) -> String {
        format!("no call in `{}` failed with EROFS", self.place)
    }
}
