//! The pages of the pending writes to one file, and how many sets of them a model allows. Pure; knows no masks.
//!
//! A set says of each page whether it is new, or is missing although later ones are there, or is beyond what reached
//! the disk.

use scenarios::{MAX_COUNTED_CANDIDATES, PAGE_BYTES};

/// The pages of one pending write.
#[derive(Debug, Clone, Copy)]
pub(super) struct WritePages {
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
    /// Whether some of it lies beyond the old end of the file.
    pub(super) appends: bool,
    /// Whether a page of it can be missing although later ones are there.
    pub(super) is_missable: bool,
    /// Whether the whole write, if it is missing, does not make the file longer either.
    pub(super) loses_length: bool,
}

impl WritePages {
    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        (self.offset + self.len_bytes).div_ceil(PAGE_BYTES) - self.offset / PAGE_BYTES
    }

    /// The number of pages before a cut. `None`: it lies inside of a page.
    pub(super) fn pages_before(&self, cut: u64) -> Option<u64> {
        let end = self.offset + cut;
        let is_boundary = cut == 0 || cut == self.len_bytes || end.is_multiple_of(PAGE_BYTES);
        let count = end.div_ceil(PAGE_BYTES).saturating_sub(self.offset / PAGE_BYTES);
        is_boundary.then_some(if cut == 0 { 0 } else { count })
    }

    /// Whether its pages can keep their old bytes.
    pub(super) fn is_overwritable(&self) -> bool {
        self.is_missable && !self.appends
    }
}

/// How many sets of pages a model allows. Not counted beyond [`MAX_COUNTED_CANDIDATES`].
pub(super) fn allowed_sets(writes: &[WritePages]) -> u64 {
    let (mut sets, mut missable) = (0u64, 0);
    let appended = writes.iter().position(|write| write.appends && write.loses_length);
    if appended.is_some_and(|first| writes[first..].iter().any(|later| !later.appends)) {
        // Each page may be there, or only its length, or nothing of it. Some of these sets are equal.
        let pages: u64 = writes.iter().map(WritePages::count).sum();
        return 3u64.saturating_pow(pages.min(40) as u32).min(MAX_COUNTED_CANDIDATES);
    }
    for write in writes {
        let count = write.count();
        // A cut before pages that can be missing alone is the same as these being missing.
        if write.is_overwritable() {
            missable += count;
        } else if write.is_missable {
            sets = sets.saturating_add(subsets(missable).saturating_mul(subsets(count) - 1));
            missable += count;
        } else {
            sets = sets.saturating_add(subsets(missable).saturating_mul(count));
        }
    }
    sets.saturating_add(subsets(missable)).min(MAX_COUNTED_CANDIDATES)
}

/// How many subsets a set of this size has.
pub(super) fn subsets(count: u64) -> u64 {
    1u64.checked_shl(count.min(62) as u32).unwrap_or(u64::MAX)
}
