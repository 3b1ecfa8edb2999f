//! Which blocks of a file are allocated. A write to others is a change of metadata that `fdatasync` has to
//! commit. Pure; knows no recording.

use std::collections::BTreeMap;

use scenarios::PAGE_BYTES;

/// The blocks of one file that a write or the start of the recording has allocated, and its size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct AllocatedBlocks {
    size_bytes: u64,
    /// Disjoint ranges of blocks that do not touch: the end of each by its start.
    ranges: BTreeMap<u64, u64>,
}

impl AllocatedBlocks {
    /// Those of a file without holes.
    pub(super) fn of_file(size_bytes: u64) -> AllocatedBlocks {
        let end = size_bytes.div_ceil(PAGE_BYTES);
        let ranges = (end > 0).then_some((0, end)).into_iter().collect();
        AllocatedBlocks { size_bytes, ranges }
    }

    /// Accounts for a write. Returns whether it made the file longer or allocated a block.
    pub(super) fn write(&mut self, offset: u64, len_bytes: u64) -> bool {
        if len_bytes == 0 {
            return false;
        }
        let (mut start, mut end) = (offset / PAGE_BYTES, (offset + len_bytes).div_ceil(PAGE_BYTES));
        let is_longer = offset + len_bytes > self.size_bytes;
        self.size_bytes = self.size_bytes.max(offset + len_bytes);
        let is_allocated = |(_, known_end): (&u64, &u64)| *known_end >= end;
        if self.ranges.range(..=start).next_back().is_some_and(is_allocated) {
            return is_longer;
        }
        // Those that overlap or touch the new range become one with it.
        let merged: Vec<(u64, u64)> = self
            .ranges
            .range(..=end)
            .rev()
            .take_while(|(_, known_end)| **known_end >= start)
            .map(|(known_start, known_end)| (*known_start, *known_end))
            .collect();
        for (known_start, known_end) in merged {
            self.ranges.remove(&known_start);
            (start, end) = (start.min(known_start), end.max(known_end));
        }
        self.ranges.insert(start, end);
        true
    }

    /// Accounts for a truncation or an extension. Returns whether the size is another one.
    pub(super) fn resize(&mut self, size_bytes: u64) -> bool {
        self.remove(size_bytes.div_ceil(PAGE_BYTES), u64::MAX);
        std::mem::replace(&mut self.size_bytes, size_bytes) != size_bytes
    }

    /// Accounts for a hole that is punched.
    pub(super) fn free(&mut self, offset: u64, len_bytes: u64) {
        self.remove(offset.div_ceil(PAGE_BYTES), (offset + len_bytes) / PAGE_BYTES);
    }

    fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let cut: Vec<(u64, u64)> = self
            .ranges
            .range(..end)
            .map(|(from, until)| (*from, *until))
            .filter(|(_, until)| *until > start)
            .collect();
        for (from, until) in cut {
            self.ranges.remove(&from);
            if from < start {
                self.ranges.insert(from, start);
            }
            if until > end {
                self.ranges.insert(end, until);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_over_existing_blocks_allocates_nothing() {
        let mut blocks = AllocatedBlocks::of_file(8192);
        assert!(!blocks.write(0, 8192));
        assert!(!blocks.write(5000, 3192));
        assert!(blocks.write(8000, 300), "it makes the file longer");
        assert!(!blocks.write(8100, 200));
    }

    #[test]
    fn a_write_to_a_hole_allocates() {
        let mut blocks = AllocatedBlocks::default();
        blocks.resize(5 * PAGE_BYTES);
        assert!(blocks.write(3 * PAGE_BYTES, 1) && blocks.write(PAGE_BYTES, 1));
        assert!(!blocks.write(3 * PAGE_BYTES + 9, 1));
        assert!(blocks.write(2 * PAGE_BYTES, 1));
        assert!(!blocks.write(PAGE_BYTES, 3 * PAGE_BYTES), "the three blocks are one range");
        blocks.free(2 * PAGE_BYTES, PAGE_BYTES);
        assert!(!blocks.write(3 * PAGE_BYTES, 1) && blocks.write(PAGE_BYTES, 3 * PAGE_BYTES));
        blocks.resize(PAGE_BYTES);
        blocks.resize(5 * PAGE_BYTES);
        assert!(blocks.write(3 * PAGE_BYTES, 1));
    }
}
