//! A place becomes read-only while the target runs. Knows no trigger.

use std::fs::OpenOptions;
use std::path::Path;

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::MountChange;

/// A place whose mount is made read-only.
pub(super) struct ReadOnlyPlace {
    place: String,
    mechanism: String,
    injected: bool,
    evidence: Option<String>,
}

impl ReadOnlyPlace {
    pub(super) fn new(place: &str) -> ReadOnlyPlace {
        ReadOnlyPlace {
            place: place.into(),
            mechanism: "mount made read-only".into(),
            injected: false,
            evidence: None,
        }
    }
}

impl InjectableFault for ReadOnlyPlace {
    fn mechanism(&self) -> String {
        self.mechanism.clone()
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        let Some(dir) = context.open_place(&self.place) else { return Ok(()) };
        let applied = context
            .sandbox
            .change_mount(&context.trainer.place_below_root(&self.place), MountChange::ReadOnly)?;
        self.mechanism = applied.mechanism;
        self.injected = true;
        self.evidence = write_refusal(&dir.path())
            .map(|error| format!("{}; creating a file there: {error}", self.mechanism));
        Ok(())
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        reaction: TargetReaction,
    ) -> Option<String> {
        let evidence =
            self.evidence.as_ref().filter(|_| reaction.phase_in_place || reaction.ended_abnormally)?;
        Some(format!("{evidence}, and the target tried to write there"))
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

    fn place(&self) -> Option<&str> {
        Some(&self.place)
    }
}

/// The error of an attempt to create a file. Returns `None` if the place is not read-only.
fn write_refusal(dir: &Path) -> Option<std::io::Error> {
    let path = dir.join(".trainwreck-probe");
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(_) => {
            // The file was created, so the place is not read-only and there is no evidence.
            let _ = std::fs::remove_file(&path);
            None
        }
        Err(error) => Some(error).filter(|error| error.raw_os_error() == Some(nix::libc::EROFS)),
    }
}
