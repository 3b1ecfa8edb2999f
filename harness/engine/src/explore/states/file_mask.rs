//! Which of the pending writes to one file reached the disk: a small set of masks for each file. Pure; knows
//! neither names nor other files.

use std::collections::BTreeSet;

use super::crash_candidate::TornWrite;
use super::fs_model::FsBehavior;
use super::persist_unit::{BYTES_PART, PersistUnit};
use super::recording_index::RecordingIndex;
use super::tear::Tear;
use super::write_pages::WritePages;
use crate::explore::record::OpEffect;

/// At most this many boundaries between the pending writes of a file are cuts.
const MAX_WRITE_CUTS: usize = 8;
/// At most this many pending writes of a file are missing alone.
const MAX_WRITE_HOLES: usize = 16;

/// What of the pending writes to a file reached the disk. The numbers are indexes of the pending writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileMask {
    /// The writes before this one.
    Before(usize),
    /// The writes before this one, and the length of all.
    BeforeAtFullLength(usize),
    /// All but this one.
    AllBut(usize),
    /// This one.
    Only(usize),
    /// All, this one in part. After one that is cut short, the later ones are lost too.
    Torn { write: usize, tear: Tear },
}

impl FileMask {
    /// What is lost of a file as a whole.
    pub(super) fn whole(behavior: FsBehavior) -> &'static [FileMask] {
        match behavior.unwritten_zeroes {
            true => &[FileMask::Before(0), FileMask::BeforeAtFullLength(0)],
            false => &[FileMask::Before(0)],
        }
    }
}

/// What a mask leaves of the pending writes to a file.
pub(super) struct MaskedWrites {
    pub(super) lost: Vec<PersistUnit>,
    pub(super) torn: Option<TornWrite>,
}

/// The pending writes to a file, in order.
#[derive(Default)]
pub(super) struct PendingWrites {
    writes: Vec<LosableWrite>,
    /// Of each of them.
    pages: Vec<WritePages>,
}

/// A pending write, or a punched hole.
#[derive(Clone, Copy)]
struct LosableWrite {
    unit: PersistUnit,
    /// What is lost if it is missing, but later ones are there. `None`: the model does not allow that.
    missing: Option<PersistUnit>,
    /// What is lost if its length reached the disk, and its bytes did not.
    at_full_length: PersistUnit,
    is_write: bool,
}

impl PendingWrites {
    pub(super) fn push(&mut self, unit: PersistUnit, index: &RecordingIndex<'_>, behavior: FsBehavior) {
        let write = index.tearable_write(unit.op);
        let appends = write.as_ref().is_some_and(|write| write.appends());
        let bytes = PersistUnit { part: BYTES_PART, ..unit };
        let missing = match write {
            _ if behavior.unordered_names => Some(unit),
            Some(_) if appends => (behavior.unwritten_zeroes || behavior.size_before_data).then_some(bytes),
            Some(_) => behavior.torn_overwrite.then_some(unit),
            None => None,
        };
        let is_write = write.is_some();
        let at_full_length = if appends && behavior.unwritten_zeroes { bytes } else { unit };
        self.writes.push(LosableWrite { unit, missing, at_full_length, is_write });
        let (offset, len_bytes) = match index.recording.ops[unit.op as usize].effect {
            OpEffect::Write { offset, len_bytes, .. } | OpEffect::Zero { offset, len_bytes, .. } => {
                (offset, len_bytes)
            }
            _ => (0, 0),
        };
        self.pages.push(WritePages {
            offset,
            len_bytes,
            appends,
            is_missable: missing.is_some(),
            loses_length: missing == Some(unit),
        });
    }

    /// Takes away the others. Returns whether there were any.
    pub(super) fn retain(
        &mut self,
        is_kept: impl Fn(PersistUnit) -> bool,
        index: &RecordingIndex<'_>,
        behavior: FsBehavior,
    ) -> bool {
        if self.writes.iter().all(|write| is_kept(write.unit)) {
            return false;
        }
        let writes = std::mem::take(self).writes.into_iter().map(|write| write.unit);
        writes.filter(|unit| is_kept(*unit)).for_each(|unit| self.push(unit, index, behavior));
        true
    }

    pub(super) fn len(&self) -> usize {
        self.writes.len()
    }

    /// The last operation that writes to the file.
    pub(super) fn last_op(&self) -> Option<u32> {
        self.writes.last().map(|write| write.unit.op)
    }

    pub(super) fn pages(&self) -> &[WritePages] {
        &self.pages
    }

    /// Tears of the first and of the last write.
    pub(super) fn torn_ends(&self, index: &RecordingIndex<'_>, behavior: FsBehavior) -> Vec<FileMask> {
        let ends: BTreeSet<usize> = [0, self.writes.len().saturating_sub(1)].into();
        ends.into_iter().flat_map(|write| self.tears(write, index, behavior)).collect()
    }

    fn tears(&self, write: usize, index: &RecordingIndex<'_>, behavior: FsBehavior) -> Vec<FileMask> {
        let torn = self.writes.get(write).and_then(|write| index.tearable_write(write.unit.op));
        let tears = torn.map(|torn| torn.power_loss_tears(behavior)).unwrap_or_default();
        tears.into_iter().map(|tear| FileMask::Torn { write, tear }).collect()
    }

    /// Cuts at the boundaries between writes, single holes, only the first and only the last write, pages that
    /// are missing inside of a write, and tears of a write in the middle.
    pub(super) fn fine_masks(&self, index: &RecordingIndex<'_>, behavior: FsBehavior) -> Vec<FileMask> {
        let (count, mut masks) = (self.writes.len(), Vec::new());
        if count == 0 {
            return masks;
        }
        let (last, middle) = (count - 1, count / 2);
        for write in sampled(1, count, MAX_WRITE_CUTS) {
            masks.push(FileMask::Before(write));
            if behavior.unwritten_zeroes {
                masks.push(FileMask::BeforeAtFullLength(write));
            }
        }
        if count > 1 {
            let holes = sampled(0, count, MAX_WRITE_HOLES).into_iter();
            masks.extend(holes.filter(|write| self.writes[*write].missing.is_some()).map(FileMask::AllBut));
            let can_be_alone = |only: &usize| {
                let mut others = self.writes.iter().enumerate().filter(|(write, _)| write != only);
                others.all(|(_, other)| other.missing.is_some())
            };
            masks.extend([0, last].into_iter().filter(can_be_alone).map(FileMask::Only));
        }
        if middle > 0 && middle < last {
            masks.extend(self.tears(middle, index, behavior));
        }
        for write in BTreeSet::from([0, middle, last]) {
            let torn = index.tearable_write(self.writes[write].unit.op);
            let gaps = torn.map(|torn| torn.gap_tears(behavior)).unwrap_or_default();
            masks.extend(gaps.into_iter().map(|tear| FileMask::Torn { write, tear }));
        }
        masks
    }

    /// What a mask leaves. `sized_until`: the operation that has made the length of all writes before it durable.
    pub(super) fn masked(&self, mask: FileMask, sized_until: Option<u32>) -> MaskedWrites {
        let is_sized =
            |write: &LosableWrite| write.is_write && sized_until.is_some_and(|until| write.unit.op <= until);
        let lost = |write: &LosableWrite| match is_sized(write) {
            true => PersistUnit { part: BYTES_PART, ..write.unit },
            false => write.unit,
        };
        let missing = |write: &LosableWrite| write.missing.unwrap_or_else(|| lost(write));
        let at_full_length = |write: &LosableWrite| match is_sized(write) {
            true => lost(write),
            false => write.at_full_length,
        };
        let writes = &self.writes;
        let (lost, torn) = match mask {
            FileMask::Before(first) => (writes[first..].iter().map(lost).collect(), None),
            FileMask::BeforeAtFullLength(first) => {
                (writes[first..].iter().map(at_full_length).collect(), None)
            }
            FileMask::AllBut(write) => (vec![missing(&writes[write])], None),
            FileMask::Only(only) => {
                let others = writes.iter().enumerate().filter(|(write, _)| *write != only);
                (others.map(|(_, write)| missing(write)).collect(), None)
            }
            FileMask::Torn { write, tear } => {
                let (torn, cuts_short) = (&writes[write], matches!(tear, Tear::Prefix(_)));
                let tear = match tear {
                    Tear::Prefix(written) if is_sized(torn) => Tear::ZeroTail(written),
                    tear => tear,
                };
                let later = if cuts_short { &writes[write + 1..] } else { &[] };
                (later.iter().map(lost).collect(), Some(TornWrite { op: torn.unit.op, tear }))
            }
        };
        MaskedWrites { lost, torn }
    }
}

/// Numbers from `start` to below `end`: all of them, or those at both ends and some between.
fn sampled(start: usize, end: usize, max: usize) -> Vec<usize> {
    let count = end.saturating_sub(start);
    if count <= max {
        return (start..end).collect();
    }
    let ends = max / 3;
    let spread = (0..max - 2 * ends).map(|nth| start + nth * count / (max - 2 * ends));
    let chosen: BTreeSet<usize> = (start..start + ends).chain(end - ends..end).chain(spread).collect();
    chosen.into_iter().collect()
}
