//! Files that are put into a place of the target. Each is renamed into place, so that the target never sees a
//! partial file. Knows no trigger.

use std::path::{Path, PathBuf};

use scenarios::{DataKind, PlantedFile};

use crate::faults::hostile_data;
use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::OpenDirectory;

/// Files that are planted in a place.
pub(super) struct PlantedFiles {
    place: String,
    files: Vec<PlantedFile>,
    /// Where they were planted.
    dir: Option<OpenDirectory>,
    planted: Vec<PathBuf>,
}

impl PlantedFiles {
    pub(super) fn new(place: &str, files: &[PlantedFile]) -> PlantedFiles {
        PlantedFiles { place: place.into(), files: files.to_vec(), dir: None, planted: Vec::new() }
    }
}

impl InjectableFault for PlantedFiles {
    fn mechanism(&self) -> String {
        format!("{} files renamed into `{}`", self.files.len(), self.place)
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        self.dir = context.open_place(&self.place);
        let Some(dir) = self.dir.as_ref().map(OpenDirectory::path) else { return Ok(()) };
        for (salt, file) in (0..).zip(&self.files) {
            let destination = dir.join(&file.name);
            if write_into_place(&destination, &file.kind, salt) {
                self.planted.push(destination);
            }
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

/// Writes a file beside its destination, under a name that no target reads as data, and renames it. Returns
/// whether that was possible: the target may have removed the place, or have put something else there.
pub(super) fn write_into_place(destination: &Path, kind: &DataKind, salt: u64) -> bool {
    let temporary = destination.with_file_name(".trainwreck.part");
    // A link of this name would be followed; a file of this name is not written to.
    let _ = std::fs::remove_file(&temporary);
    let moved =
        hostile_data::write(&temporary, kind, salt).and_then(|()| std::fs::rename(&temporary, destination));
    if moved.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    moved.is_ok()
}
