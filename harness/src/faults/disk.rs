//! Disk full and inodes gone: the place's tmpfs is made just as large as what it holds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::faults::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::plan::PAGE_BYTES;
use crate::sandbox::{FileSystemSpace, MountChange};

/// A tmpfs in use is looked at and remounted again so often.
const MAX_REMOUNT_TRIES: u32 = 500;
const RETRY_DELAY: Duration = Duration::from_micros(500);

/// What the file system runs out of.
#[derive(Clone, Copy)]
enum ExhaustedResource {
    Bytes { leave_bytes: u64 },
    Inodes,
}

/// A place without room.
pub(super) struct ExhaustedDisk {
    place: String,
    resource: ExhaustedResource,
    before: Option<FileSystemSpace>,
    evidence: Option<String>,
}

impl ExhaustedDisk {
    pub(super) fn of_bytes(place: &str, leave: u64) -> ExhaustedDisk {
        ExhaustedDisk {
            place: place.into(),
            resource: ExhaustedResource::Bytes { leave_bytes: leave },
            before: None,
            evidence: None,
        }
    }

    pub(super) fn of_inodes(place: &str) -> ExhaustedDisk {
        ExhaustedDisk {
            place: place.into(),
            resource: ExhaustedResource::Inodes,
            before: None,
            evidence: None,
        }
    }

    fn mount_path(&self, scene: &FaultContext<'_>) -> PathBuf {
        scene.trainer.place_below_root(&self.place)
    }

    fn has_free_space(&self, now: &FileSystemSpace) -> bool {
        match self.resource {
            ExhaustedResource::Bytes { leave_bytes: leave } => now.free_bytes > leave,
            ExhaustedResource::Inodes => now.free_inodes > 0,
        }
    }

    /// What is in use may grow between the look and the remount, which is refused then: look again.
    fn shrink(&self, scene: &FaultContext<'_>, at: &Path) -> Result<FileSystemSpace, FaultError> {
        let mut tries = 0;
        loop {
            let now = scene.sandbox.file_system_space(at)?;
            match scene.sandbox.change_mount(at, self.mount_change(&now)) {
                Err(_) if tries < MAX_REMOUNT_TRIES => tries += 1,
                changed => return Ok(changed.map(|_| now)?),
            }
            std::thread::sleep(RETRY_DELAY);
        }
    }

    fn mount_change(&self, now: &FileSystemSpace) -> MountChange {
        match self.resource {
            ExhaustedResource::Bytes { leave_bytes: leave } => {
                let used = now.total_bytes - now.free_bytes;
                // A size of 0 means unlimited to tmpfs.
                MountChange::Resize {
                    size_bytes: (used.next_multiple_of(PAGE_BYTES) + leave).max(PAGE_BYTES),
                }
            }
            ExhaustedResource::Inodes => {
                MountChange::Inodes { count: (now.total_inodes - now.free_inodes).max(1) }
            }
        }
    }
}

impl InjectableFault for ExhaustedDisk {
    fn mechanism(&self) -> String {
        match self.resource {
            ExhaustedResource::Bytes { .. } => "tmpfs remounted with a smaller `size`".into(),
            ExhaustedResource::Inodes => "tmpfs remounted with a smaller `nr_inodes`".into(),
        }
    }

    fn inject(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        let at = self.mount_path(scene);
        let now = self.shrink(scene, &at)?;
        let after = scene.sandbox.file_system_space(&at)?;
        self.before.get_or_insert(now);
        let took = !self.has_free_space(&after);
        let shown = format!(
            "statvfs of `{}`: {} bytes and {} inodes free",
            self.place, after.free_bytes, after.free_inodes
        );
        self.evidence = took.then_some(shown);
        Ok(())
    }

    /// What the target removes gives it room again: as long as the fault lasts, that is taken away too.
    fn tick(&mut self, scene: &FaultContext<'_>) -> Result<(), FaultError> {
        if self.before.is_none() {
            return Ok(());
        }
        let at = self.mount_path(scene);
        let now = scene.sandbox.file_system_space(&at)?;
        if self.has_free_space(&now) { self.shrink(scene, &at).map(drop) } else { Ok(()) }
    }

    fn effective_evidence(&mut self, _scene: &FaultContext<'_>, since: TargetReaction) -> Option<String> {
        let shown = self.evidence.as_ref().filter(|_| since.phase_in_place || since.ended_abnormally)?;
        Some(format!("{shown}, and the target went to write there"))
    }

    fn revert(&mut self, scene: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let Some(before) = self.before.take() else { return Ok(None) };
        let change = match self.resource {
            ExhaustedResource::Bytes { .. } => MountChange::Resize { size_bytes: before.total_bytes },
            ExhaustedResource::Inodes => MountChange::Inodes { count: before.total_inodes },
        };
        scene.sandbox.change_mount(&self.mount_path(scene), change)?;
        Ok(Some("tmpfs has its former size again".into()))
    }

    fn place(&self) -> Option<&str> {
        Some(&self.place)
    }
}
