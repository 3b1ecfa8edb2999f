//! A place on another file system: one that ignores case, or that has coarse times. Knows no trigger.

use scenarios::{EffectSpec, FileSystem};

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::sandbox::{FileSystemServer, FileSystemTraits};

/// A place over which another file system is mounted.
pub(super) struct OtherFileSystem {
    planned: FileSystem,
    /// Serves it. Kept after the revert: the target may still have files open there.
    server: Option<FileSystemServer>,
    is_mounted: bool,
}

impl OtherFileSystem {
    pub(super) fn new(planned: &FileSystem) -> OtherFileSystem {
        OtherFileSystem { planned: planned.clone(), server: None, is_mounted: false }
    }
}

impl InjectableFault for OtherFileSystem {
    fn mechanism(&self) -> String {
        format!("FUSE file system over the place: {}", self.planned.describe())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        let place = &self.planned.place;
        if self.is_mounted {
            return Ok(());
        }
        if context.open_place(place).is_none() {
            return Err(FaultError::Workload(format!(
                "there is no directory `{place}` when `file-system` is mounted over it; let a `prepare` command of the \
                 target file make it"
            )));
        }
        let traits =
            FileSystemTraits { folds_case: self.planned.ignores_case, time_unit_s: self.planned.time_unit_s };
        let mount_point = context.trainer.place_below_root(place);
        if mount_point.components().all(|part| part == std::path::Component::CurDir) {
            return Err(FaultError::Workload(format!(
                "`{place}` is the whole root, and `file-system` needs a directory in it; name a smaller place"
            )));
        }
        self.server = Some(context.sandbox.mount_file_system(&mount_point, traits)?);
        self.is_mounted = true;
        Ok(())
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        // One that has ended has shown nothing more.
        self.server.as_mut()?.evidence().ok().flatten().map(str::to_owned)
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        if !std::mem::take(&mut self.is_mounted) {
            return Ok(None);
        }
        context.sandbox.unmount_file_system(&context.trainer.place_below_root(&self.planned.place))?;
        Ok(Some("unmounted, so that the place is its own again".into()))
    }

    fn missing_evidence(&self) -> String {
        match (self.planned.ignores_case, self.planned.time_unit_s) {
            (true, None) => "no name was found in another case".into(),
            (false, _) => {
                "no process asked for the time of a file before and after a change that it hides".into()
            }
            (true, Some(_)) => "no name was found in another case, and no time has hidden a change".into(),
        }
    }
}
