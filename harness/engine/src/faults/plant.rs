//! Files that are put into a place of the target. Each is renamed into place, so that the target never sees a
//! partial file. Knows no trigger.

use std::path::{Path, PathBuf};

use scenarios::PlantedFile;

use crate::faults::hostile_data;
use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::file_error::file_error;

/// Files that are planted in a place.
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

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        let dir = context.place_path(&self.place);
        for (salt, file) in (0..).zip(&self.files) {
            let staged = context.staging_dir.join(&file.name);
            hostile_data::write(&staged, &file.kind, salt)
                .map_err(file_error::<FaultError>("write", &staged))?;
            let destination = dir.join(&file.name);
            move_into_place(&staged, &destination)?;
            self.planted.push(destination);
        }
        Ok(())
    }

    /// Effective when the target has taken all files from the place, or has failed while some are there.
    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        reaction: TargetReaction,
    ) -> Option<String> {
        if self.planted.is_empty() {
            return None;
        }
        let count = self.planted.len();
        let remaining = self.planted.iter().filter(|path| path.symlink_metadata().is_ok()).count();
        match (remaining, reaction.ended_abnormally) {
            (0, _) => Some(format!("the target took all {count} files from `{}`", self.place)),
            (remaining, true) => {
                Some(format!("the target ended with {remaining} of {count} files still in `{}`", self.place))
            }
            _ => None,
        }
    }
}

/// Moves a file by rename. If the place is another file system, copies it first under a name that no target
/// reads as data.
pub(super) fn move_into_place(staged: &Path, destination: &Path) -> Result<(), FaultError> {
    match std::fs::rename(staged, destination) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) => {
            let temporary = destination.with_file_name(".trainwreck.part");
            std::fs::copy(staged, &temporary).map_err(file_error::<FaultError>("copy to", &temporary))?;
            std::fs::rename(&temporary, destination).map_err(file_error("rename to", destination))
        }
        renamed => renamed.map_err(file_error("rename to", destination)),
    }
}
