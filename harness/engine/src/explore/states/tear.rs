//! How a write reaches the disk in part, and which parts are tried. Pure; knows no persisted sets.

use std::collections::BTreeSet;

use scenarios::PAGE_BYTES;

use super::fs_model::FsBehavior;
use crate::explore::record::{ByteSource, FileContent, aligned_neighbors};

/// The unit in which a disk writes, in bytes.
const SECTOR_BYTES: u64 = 512;

/// How a write reached the disk in part. The numbers are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tear {
    /// The length is right, but the bytes from here on are what those blocks held before.
    GarbageTail(u64),
    /// The length is right, but the first bytes are zeroes.
    Hole(u64),
    /// Only its first bytes are written.
    Prefix(u64),
    /// The length is right, but the bytes from here on are zeroes.
    ZeroTail(u64),
}

/// The kind of a tear, without its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum TearKind {
    Prefix,
    ZeroTail,
    GarbageTail,
    Hole,
}

/// A write as far as tears depend on it.
pub(super) struct TearableWrite<'a> {
    /// Where it begins in the file.
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    /// The size of the file before it, in bytes.
    pub(super) size_before: u64,
    /// Boundaries of the checkpoint format, as offsets in the write.
    pub(super) boundaries: &'a [u64],
}

impl Tear {
    pub(super) fn kind(self) -> TearKind {
        match self {
            Tear::Prefix(_) => TearKind::Prefix,
            Tear::ZeroTail(_) => TearKind::ZeroTail,
            Tear::GarbageTail(_) => TearKind::GarbageTail,
            Tear::Hole(_) => TearKind::Hole,
        }
    }

    /// As in the name of a state: a letter, and a number of bytes.
    pub(super) fn name(self) -> String {
        match self {
            Tear::Prefix(len_bytes) => format!("p{len_bytes}"),
            Tear::ZeroTail(len_bytes) => format!("z{len_bytes}"),
            Tear::GarbageTail(len_bytes) => format!("g{len_bytes}"),
            Tear::Hole(len_bytes) => format!("h{len_bytes}"),
        }
    }

    /// Parses what [`name`](Tear::name) returns.
    pub(super) fn parse(name: &str) -> Option<Tear> {
        let (letter, len_bytes) = name.split_at_checked(1)?;
        let len_bytes = len_bytes.parse().ok()?;
        match letter {
            "p" => Some(Tear::Prefix(len_bytes)),
            "z" => Some(Tear::ZeroTail(len_bytes)),
            "g" => Some(Tear::GarbageTail(len_bytes)),
            "h" => Some(Tear::Hole(len_bytes)),
            _ => None,
        }
    }

    /// Writes to `content` what the tear leaves of a write. `payload_offset`: where the bytes of the write
    /// are in the payload log.
    pub(super) fn put(self, content: &mut FileContent, offset: u64, len_bytes: u64, payload_offset: u64) {
        let payload = ByteSource::PayloadLog(payload_offset);
        match self {
            Tear::Prefix(written) => content.put(offset, written.min(len_bytes), payload),
            Tear::ZeroTail(written) => {
                content.put(offset, len_bytes, ByteSource::Zeroes);
                content.put(offset, written.min(len_bytes), payload);
            }
            Tear::GarbageTail(written) => {
                content.put(offset, len_bytes, ByteSource::Garbage);
                content.put(offset, written.min(len_bytes), payload);
            }
            Tear::Hole(missing) => {
                let missing = missing.min(len_bytes);
                content.put(offset, missing, ByteSource::Zeroes);
                let rest = ByteSource::PayloadLog(payload_offset + missing);
                content.put(offset + missing, len_bytes - missing, rest);
            }
        }
    }
}

impl TearableWrite<'_> {
    /// Where a kill of the process can cut the write: at pages, some of them next to format boundaries.
    pub(super) fn process_crash_cuts(&self) -> BTreeSet<u64> {
        let mut cuts = self.page_cuts();
        cuts.extend(self.cuts_near_boundaries(PAGE_BYTES));
        cuts
    }

    /// The classes of tears that a power loss can leave, sorted.
    pub(super) fn power_loss_tears(&self, behavior: FsBehavior) -> Vec<Tear> {
        let mut tears: Vec<Tear> = self.page_cuts().into_iter().map(Tear::Prefix).collect();
        tears.extend(self.cuts_near_boundaries(PAGE_BYTES).into_iter().map(Tear::Prefix));
        if behavior.size_before_data || behavior.torn_overwrite {
            tears.extend(self.cuts_near_boundaries(SECTOR_BYTES).into_iter().map(Tear::Prefix));
        }
        let appends = self.offset + self.len_bytes > self.size_before;
        if behavior.size_before_data && appends {
            let cut = self.page_cuts().first().copied().unwrap_or(0);
            tears.extend([Tear::ZeroTail(0), Tear::GarbageTail(0)]);
            if cut > 0 {
                tears.extend([Tear::ZeroTail(cut), Tear::GarbageTail(cut), Tear::Hole(cut)]);
            }
            tears.extend((self.len_bytes > SECTOR_BYTES).then_some(Tear::Prefix(SECTOR_BYTES)));
        }
        if behavior.unwritten_zeroes && appends {
            let cut = self.page_cuts().first().copied();
            tears.extend([0].into_iter().chain(cut).map(Tear::ZeroTail));
        }
        if behavior.torn_overwrite && !appends && self.len_bytes > SECTOR_BYTES {
            let last = (self.len_bytes - 1) / SECTOR_BYTES * SECTOR_BYTES;
            tears.extend([Tear::Prefix(SECTOR_BYTES), Tear::Prefix(last)]);
        }
        tears.sort_unstable();
        tears.dedup();
        tears
    }

    fn cuts_near_boundaries(&self, unit: u64) -> Vec<u64> {
        aligned_neighbors(self.boundaries, unit, self.offset, self.len_bytes)
    }

    /// Where a crash can cut the write: at page boundaries of the file. Returns the first, one in the middle,
    /// and the last.
    fn page_cuts(&self) -> BTreeSet<u64> {
        let first = PAGE_BYTES - self.offset % PAGE_BYTES;
        if first >= self.len_bytes {
            return BTreeSet::new();
        }
        let last = first + (self.len_bytes - first - 1) / PAGE_BYTES * PAGE_BYTES;
        let middle = first + (last - first) / 2 / PAGE_BYTES * PAGE_BYTES;
        [first, middle, last].into()
    }
}
