//! Files put into a place of the target's, each by rename, so that none is ever seen half written.

use std::path::{Path, PathBuf};

use scenarios::PlantedFile;

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction, hostile_data};

pub(super) struct PlantedFiles {
    place: String,
    files: Vec<PlantedFile>,
    planted: Vec<PathBuf>,
}

impl PlantedFiles {
    pub(super) fn new(place: &str, files: &[PlantedFile]) -> PlantedFiles {
        PlantedFiles { place: place.into(), files: files.to_vec(), planted: Vec::new() }
    }
}

impl InjectableFault for PlantedFiles {
    fn mechanism(&self) -> String {
        format!("{} files renamed into `{}`", self.files.len(), self.place)
    }

    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        let folder = scene.place_path(&self.place);
        for (salt, file) in (0..).zip(&self.files) {
            let made = scene.staging_dir.join(&file.name);
            hostile_data::write(&made, &file.kind, salt).map_err(FaultError::file("write", &made))?;
            let planted = folder.join(&file.name);
            move_into_place(&made, &planted)?;
            self.planted.push(planted);
        }
        Ok(())
    }

    /// Landed when all of them have been taken from the place, or the target died over them.
    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, since: TargetReaction) -> Option<String> {
        if self.planted.is_empty() {
            return None;
        }
        let count = self.planted.len();
        let left = self.planted.iter().filter(|path| path.symlink_metadata().is_ok()).count();
        match (left, since.ended_abnormally) {
            (0, _) => Some(format!("all {count} files were taken from `{}`", self.place)),
            (left, true) => {
                Some(format!("the target ended with {left} of {count} files still in `{}`", self.place))
            }
            _ => None,
        }
    }
}

/// By rename; where the place is a file system of its own, by way of a name that no target takes for data.
pub(super) fn move_into_place(made: &Path, planted: &Path) -> Result<(), FaultError> {
    match std::fs::rename(made, planted) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) => {
            let aside = planted.with_file_name(".trainwreck.part");
            std::fs::copy(made, &aside).map_err(FaultError::file("copy to", &aside))?;
            std::fs::rename(&aside, planted).map_err(FaultError::file("rename to", planted))
        }
        done => done.map_err(FaultError::file("rename to", planted)),
    }
}
