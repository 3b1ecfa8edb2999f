//! A place becomes read-only under the running target.

use std::fs::OpenOptions;
use std::path::Path;

use crate::faults::{Armed, FaultError, Scene, Since};
use crate::sandbox::MountChange;

pub(super) struct ReadOnly {
    place: String,
    mechanism: String,
    struck: bool,
    shown: Option<String>,
}

impl ReadOnly {
    pub(super) fn new(place: &str) -> ReadOnly {
        ReadOnly { place: place.into(), mechanism: "mount made read-only".into(), struck: false, shown: None }
    }
}

impl Armed for ReadOnly {
    fn mechanism(&self) -> String {
        self.mechanism.clone()
    }

    fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        let applied =
            scene.room.remount(&scene.trainer.place_below_root(&self.place), MountChange::ReadOnly)?;
        self.mechanism = applied.mechanism;
        self.struck = true;
        self.shown = refusal(&scene.outside(&self.place))
            .map(|error| format!("{}; creating a file there: {error}", self.mechanism));
        Ok(())
    }

    fn landed(&mut self, _scene: &Scene<'_>, since: Since) -> Option<String> {
        let shown = self.shown.as_ref().filter(|_| since.met_in_place || since.ended_badly)?;
        Some(format!("{shown}, and the target went to write there"))
    }

    fn lift(&mut self, scene: &Scene<'_>) -> Result<Option<String>, FaultError> {
        if !std::mem::take(&mut self.struck) {
            return Ok(None);
        }
        scene.room.remount(&scene.trainer.place_below_root(&self.place), MountChange::Writable)?;
        Ok(Some("mount writable again".into()))
    }

    fn place(&self) -> Option<&str> {
        Some(&self.place)
    }
}

/// The kernel's answer to an attempt to create a file; none if, wrongly, it could be created.
fn refusal(folder: &Path) -> Option<std::io::Error> {
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
