//! The faults `fill-disk` and `exhaust-inodes`: a place's tmpfs has no room for what comes next.

use crate::effect::checker::Checker;
use crate::effect::keys::fault;
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::trials_planned::TrialUnit;
use crate::units::{ByteSize, UnitError, parse_bytes};
use crate::yaml::leaf::leaf;
use crate::yaml::spanned::Spanned;

/// Size of a memory page on x86-64, in bytes. File systems write in this unit, and unmapped memory can only
/// begin at its multiples.
pub const PAGE_BYTES: u64 = 4096;

fault!(
    /// A full disk.
    FillDiskDraft {
        /// A place of the target file. It must be listed in `mounts`.
        place: Spanned<String>,
        /// How many bytes stay free.
        leave: FreeSpace,
    }
);
fault!(
    /// No free inodes.
    ExhaustInodesDraft {
        /// A place of the target file. It must be listed in `mounts`, with `inodes`.
        place: Spanned<String>,
    }
);

leaf!(
    FreeSpace(Option<ByteSize>),
    free_space,
    r"^(every-page|\d+ ?(B|KiB|MiB|GiB))$",
    "How much stays free: a size, or `every-page` for each number of 4 KiB pages from 0 to a whole save, one \
        trial each."
);

/// Why a text is no free space.
#[derive(Debug, thiserror::Error)]
#[error("{0}, nor `every-page`")]
struct FreeSpaceError(UnitError);

fn free_space(text: &str) -> Result<Option<ByteSize>, FreeSpaceError> {
    match text {
        "every-page" => Ok(None),
        _ => parse_bytes(text).map(Some).map_err(FreeSpaceError),
    }
}

/// Shrinks the place's tmpfs until only `leave` bytes are free.
#[derive(Debug, Clone)]
pub struct FillDisk {
    /// A place with a mount of its own.
    pub place: String,
    /// `None`: each number of pages from 0 to the size of one save. Always given in a planned trial.
    pub leave: Option<ByteSize>,
}

/// Leaves the place's tmpfs without a free inode.
#[derive(Debug, Clone)]
pub struct ExhaustInodes {
    /// A place with a mount of its own, whose inodes are limited.
    pub place: String,
}

impl CheckEffect for FillDiskDraft {
    type Checked = FillDisk;

    fn check(&self, checker: &mut Checker) -> FillDisk {
        FillDisk { place: checker.mounted_place(&self.place, false), leave: self.leave.0 }
    }
}

impl EffectSpec for FillDisk {
    fn describe(&self) -> String {
        format!("`{}` left with {} free bytes", self.place, self.leave.map_or(0, |leave| leave.0))
    }

    fn choices(&self, measured: Measurements<'_>) -> Vec<FillDisk> {
        if self.leave.is_some() {
            return vec![self.clone()];
        }
        let leaving =
            |page: u64| FillDisk { place: self.place.clone(), leave: Some(ByteSize(page * PAGE_BYTES)) };
        (0..measured.save_bytes.div_ceil(PAGE_BYTES)).map(leaving).collect()
    }

    fn choice_unit(&self) -> TrialUnit {
        TrialUnit::Pages
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some("tmpfs")
    }

    fn changed_mount(&self) -> Option<&str> {
        Some(&self.place)
    }

    fn is_shown_by_failed_calls(&self) -> bool {
        true
    }
}

impl CheckEffect for ExhaustInodesDraft {
    type Checked = ExhaustInodes;

    fn check(&self, checker: &mut Checker) -> ExhaustInodes {
        ExhaustInodes { place: checker.mounted_place(&self.place, true) }
    }
}

impl EffectSpec for ExhaustInodes {
    fn describe(&self) -> String {
        format!("no free inode in `{}`", self.place)
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some("tmpfs")
    }

    fn changed_mount(&self) -> Option<&str> {
        Some(&self.place)
    }

    fn is_shown_by_failed_calls(&self) -> bool {
        true
    }
}
