//! Disk full and no free inodes: the place's tmpfs is resized to just what it holds. Knows no trigger.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use scenarios::{ExhaustInodes, FillDisk};

use crate::faults::injectable_fault::{
    FaultContext, FaultError, InjectableFault, RefusedCalls, TargetReaction,
};
use crate::plan::PAGE_BYTES;
use crate::sandbox::{FileSystemSpace, MountChange};

/// How often a remount is tried. It fails if the usage grows between the measurement and the remount.
const MAX_REMOUNT_TRIES: u32 = 500;
/// Time between two tries.
const RETRY_DELAY: Duration = Duration::from_micros(500);

/// What the file system runs out of.
#[derive(Clone, Copy)]
enum ExhaustedResource {
    Bytes { leave_bytes: u64 },
    Inodes,
}

/// A place without free space or free inodes.
pub(super) struct ExhaustedDisk {
    place: String,
    resource: ExhaustedResource,
    /// The space before the injection.
    before: Option<FileSystemSpace>,
    /// What statvfs showed after the injection, if nothing was free.
    full: Option<String>,
}

impl ExhaustedDisk {
    /// All but some bytes are used.
    pub(super) fn of_bytes(fault: &FillDisk) -> ExhaustedDisk {
        let leave_bytes = fault.leave.map_or(0, |leave| leave.0);
        ExhaustedDisk::of(&fault.place, ExhaustedResource::Bytes { leave_bytes })
    }

    /// All inodes are used.
    pub(super) fn of_inodes(fault: &ExhaustInodes) -> ExhaustedDisk {
        ExhaustedDisk::of(&fault.place, ExhaustedResource::Inodes)
    }

    fn of(place: &str, resource: ExhaustedResource) -> ExhaustedDisk {
        ExhaustedDisk { place: place.into(), resource, before: None, full: None }
    }

    fn mount_path(&self, context: &FaultContext<'_>) -> PathBuf {
        context.trainer.place_below_root(&self.place)
    }

    fn has_free_space(&self, now: &FileSystemSpace) -> bool {
        match self.resource {
            ExhaustedResource::Bytes { leave_bytes } => now.free_bytes > leave_bytes,
            ExhaustedResource::Inodes => now.free_inodes > 0,
        }
    }

    /// Shrinks the tmpfs to its usage. Tries again if the usage grew before the remount, which the kernel
    /// then refuses.
    fn shrink(&self, context: &FaultContext<'_>, mount_path: &Path) -> Result<FileSystemSpace, FaultError> {
        let mut tries = 0;
        loop {
            let now = context.sandbox.file_system_space(mount_path)?;
            match context.sandbox.change_mount(mount_path, self.mount_change(&now)) {
                Err(_) if tries < MAX_REMOUNT_TRIES => tries += 1,
                changed => return Ok(changed.map(|_| now)?),
            }
            std::thread::sleep(RETRY_DELAY);
        }
    }

    fn mount_change(&self, now: &FileSystemSpace) -> MountChange {
        match self.resource {
            ExhaustedResource::Bytes { leave_bytes } => {
                let used = now.total_bytes - now.free_bytes;
                // A size of 0 means unlimited to tmpfs.
                MountChange::Resize {
                    size_bytes: (used.next_multiple_of(PAGE_BYTES) + leave_bytes).max(PAGE_BYTES),
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

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        if context.open_place(&self.place).is_none() {
            return Ok(());
        }
        let mount_path = self.mount_path(context);
        let mut now = context.sandbox.file_system_space(&mount_path)?;
        // A mount with less room than is to be left is not enlarged.
        if self.has_free_space(&now) {
            now = self.shrink(context, &mount_path)?;
        }
        let after = context.sandbox.file_system_space(&mount_path)?;
        self.before.get_or_insert(now);
        let is_full = !self.has_free_space(&after);
        let evidence = format!(
            "statvfs of `{}`: {} bytes and {} inodes free",
            self.place, after.free_bytes, after.free_inodes
        );
        self.full = is_full.then_some(evidence);
        Ok(())
    }

    /// Removing files frees space. As long as the fault lasts, the tmpfs is shrunk again.
    fn tick(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        if self.before.is_none() || context.open_place(&self.place).is_none() {
            return Ok(());
        }
        let mount_path = self.mount_path(context);
        let now = context.sandbox.file_system_space(&mount_path)?;
        if self.has_free_space(&now) { self.shrink(context, &mount_path).map(drop) } else { Ok(()) }
    }

    fn effective_evidence(
        &mut self,
        _context: &FaultContext<'_>,
        reaction: TargetReaction,
    ) -> Option<String> {
        // A write to a mapped page is no call that could fail.
        let full = self.full.as_ref().filter(|_| reaction.ended_by_sigbus)?;
        Some(format!("{full}, and the target was ended by SIGBUS"))
    }

    fn revert(&mut self, context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let Some(before) = self.before.take() else { return Ok(None) };
        let change = match self.resource {
            ExhaustedResource::Bytes { .. } => MountChange::Resize { size_bytes: before.total_bytes },
            ExhaustedResource::Inodes => MountChange::Inodes { count: before.total_inodes },
        };
        context.sandbox.change_mount(&self.mount_path(context), change)?;
        Ok(Some("tmpfs has its original size again".into()))
    }

    fn refused_calls(&self) -> Option<RefusedCalls<'_>> {
        Some(RefusedCalls {
            place: Some(&self.place),
            errnos: &[Errno::ENOSPC, Errno::EDQUOT],
            extra_kinds: &[],
            although_modes_allow: false,
        })
    }

    fn missing_evidence(&self) -> String {
        let full = self.full.as_ref().map_or_else(String::new, |full| format!("; {full}"));
        format!("no call in `{}` failed with ENOSPC or EDQUOT{full}", self.place)
    }
}
