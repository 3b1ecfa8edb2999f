//! Files put into a place of the target's, each by rename, so that none is ever seen half written.

use std::path::{Path, PathBuf};

use scenarios::Planted;

use crate::faults::{Armed, FaultError, Scene, Since, hostile};

pub(super) struct Plant {
    place: String,
    files: Vec<Planted>,
    there: Vec<PathBuf>,
}

impl Plant {
    pub(super) fn new(place: &str, files: &[Planted]) -> Plant {
        Plant { place: place.into(), files: files.to_vec(), there: Vec::new() }
    }
}

impl Armed for Plant {
    fn mechanism(&self) -> String {
        format!("{} files renamed into `{}`", self.files.len(), self.place)
    }

    fn strike(&mut self, scene: &Scene<'_>) -> Result<(), FaultError> {
        let folder = scene.outside(&self.place);
        for (salt, file) in (0..).zip(&self.files) {
            let made = scene.backstage.join(&file.name);
            hostile::write(&made, &file.kind, salt).map_err(FaultError::file("write", &made))?;
            let planted = folder.join(&file.name);
            place(&made, &planted)?;
            self.there.push(planted);
        }
        Ok(())
    }

    /// Landed when all of them have been taken from the place, or the target died over them.
    fn landed(&mut self, _scene: &Scene<'_>, since: Since) -> Option<String> {
        if self.there.is_empty() {
            return None;
        }
        let count = self.there.len();
        let left = self.there.iter().filter(|path| path.symlink_metadata().is_ok()).count();
        match (left, since.ended_badly) {
            (0, _) => Some(format!("all {count} files were taken from `{}`", self.place)),
            (left, true) => {
                Some(format!("the target ended with {left} of {count} files still in `{}`", self.place))
            }
            _ => None,
        }
    }
}

/// By rename; where the place is a file system of its own, by way of a name that no target takes for data.
pub(super) fn place(made: &Path, planted: &Path) -> Result<(), FaultError> {
    match std::fs::rename(made, planted) {
        Err(error) if error.raw_os_error() == Some(nix::libc::EXDEV) => {
            let aside = planted.with_file_name(".trainwreck.part");
            std::fs::copy(made, &aside).map_err(FaultError::file("copy to", &aside))?;
            std::fs::rename(&aside, planted).map_err(FaultError::file("rename to", planted))
        }
        done => done.map_err(FaultError::file("rename to", planted)),
    }
}
