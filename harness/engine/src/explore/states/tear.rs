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
    /// The length is right, but these bytes are what they were before: zeroes beyond the old end of the file.
    Gap { from: u64, to: u64 },
    /// The length is right, but the bytes from here on are what those blocks held before.
    GarbageTail(u64),
    /// The length is right, but the first bytes are what they were before: zeroes beyond the old end.
    Hole(u64),
    /// Only its first bytes are written.
    Prefix(u64),
    /// The length is right, but the bytes from here on are what they were before: zeroes beyond the old end.
    ZeroTail(u64),
}

/// The kind of a tear, without its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum TearKind {
    Prefix,
    ZeroTail,
    GarbageTail,
    Hole,
    Gap,
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
            Tear::Gap { .. } => TearKind::Gap,
        }
    }

    /// As in the name of a state: a letter, and one or two numbers of bytes.
    pub(super) fn name(self) -> String {
        match self {
            Tear::Prefix(len_bytes) => format!("p{len_bytes}"),
            Tear::ZeroTail(len_bytes) => format!("z{len_bytes}"),
            Tear::GarbageTail(len_bytes) => format!("g{len_bytes}"),
            Tear::Hole(len_bytes) => format!("h{len_bytes}"),
            Tear::Gap { from, to } => format!("m{from}.{to}"),
        }
    }

    /// Parses what [`name`](Tear::name) returns.
    pub(super) fn parse(name: &str) -> Option<Tear> {
        let (letter, len_bytes) = name.split_at_checked(1)?;
        if letter == "m" {
            let (from, to) = len_bytes.split_once('.')?;
            let (from, to) = (from.parse().ok()?, to.parse().ok()?);
            return (from < to).then_some(Tear::Gap { from, to });
        }
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
        let (from, to) = match self {
            Tear::Prefix(written) => return content.put(offset, written.min(len_bytes), payload),
            Tear::GarbageTail(written) => {
                content.put(offset, len_bytes, ByteSource::Garbage);
                return content.put(offset, written.min(len_bytes), payload);
            }
            Tear::ZeroTail(written) => (written.min(len_bytes), len_bytes),
            Tear::Hole(missing) => (0, missing.min(len_bytes)),
            Tear::Gap { from, to } => (from.min(len_bytes), to.min(len_bytes)),
        };
        content.extend_to(offset + len_bytes);
        content.put(offset, from, payload);
        content.put(offset + to, len_bytes - to, ByteSource::PayloadLog(payload_offset + to));
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
        let appends = self.appends();
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

    /// Tears with pages in the middle that are missing, and with all pages but the last missing, as far as the
    /// model allows them.
    pub(super) fn gap_tears(&self, behavior: FsBehavior) -> Vec<Tear> {
        let can_miss_pages = match self.appends() {
            true => behavior.size_before_data || behavior.unwritten_zeroes,
            false => behavior.torn_overwrite,
        };
        let cuts: Vec<u64> = self.page_cuts().into_iter().collect();
        let (Some(first), Some(last)) = (cuts.first().copied(), cuts.last().copied()) else {
            return Vec::new();
        };
        let middle = cuts[cuts.len() / 2];
        let gap = |from: u64, to: u64| (from < to && to <= last).then_some(Tear::Gap { from, to });
        let gaps = [gap(first, last), gap(middle, middle + PAGE_BYTES)].into_iter().flatten();
        let ends = [Tear::Hole(first), Tear::Hole(last)];
        if can_miss_pages { gaps.chain(ends).collect() } else { Vec::new() }
    }

    /// Whether some of it lies beyond the old end of the file.
    pub(super) fn appends(&self) -> bool {
        self.offset + self.len_bytes > self.size_before
    }

    /// How many boundaries of pages lie inside of it.
    pub(super) fn inner_page_count(&self) -> u64 {
        let first = PAGE_BYTES - self.offset % PAGE_BYTES;
        self.len_bytes.saturating_sub(first).div_ceil(PAGE_BYTES)
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
