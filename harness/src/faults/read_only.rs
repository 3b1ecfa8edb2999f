//! A place becomes read-only under the running target.

use std::fs::OpenOptions;
use std::path::Path;

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::MountChange;

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

    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        let applied = scene
            .sandbox
            .change_mount(&scene.trainer.place_below_root(&self.place), MountChange::ReadOnly)?;
        self.mechanism = applied.mechanism;
        self.injected = true;
        self.evidence = write_refusal(&scene.place_path(&self.place))
            .map(|error| format!("{}; creating a file there: {error}", self.mechanism));
        Ok(())
    }

    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, since: TargetReaction) -> Option<String> {
        let shown = self.evidence.as_ref().filter(|_| since.phase_in_place || since.ended_abnormally)?;
        Some(format!("{shown}, and the target went to write there"))
    }

    fn revert(&mut self, scene: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        if !std::mem::take(&mut self.injected) {
            return Ok(None);
        }
        scene.sandbox.change_mount(&scene.trainer.place_below_root(&self.place), MountChange::Writable)?;
        Ok(Some("mount writable again".into()))
    }

    fn place(&self) -> Option<&str> {
        Some(&self.place)
    }
}

/// The kernel's answer to an attempt to create a file; none if, wrongly, it could be created.
fn write_refusal(folder: &Path) -> Option<std::io::Error> {
    let path = folder.join(".trainwreck-probe");
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(_) => {
            // Created after all: not read-only, so nothing is shown, and no trace stays.
            let _ = std::fs::remove_file(&path);
            None
        }
        Err(error) => Some(error).filter(|error| error.raw_os_error() == Some(nix::libc::EROFS)),
    }
}
