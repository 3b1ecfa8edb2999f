//! The addresses of a device's memory: which are taken. Pure book-keeping: no memory is touched here.

use std::collections::BTreeMap;

/// Allocations take whole pieces of so many bytes.
pub(crate) const GRANULE_BYTES: u64 = 512;

/// Free ranges, by their start.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    total: u64,
    free: BTreeMap<u64, u64>,
}

impl AddressSpace {
    pub(crate) fn new(total: u64) -> AddressSpace {
        let total = total / GRANULE_BYTES * GRANULE_BYTES;
        AddressSpace { total, free: BTreeMap::from([(0, total)]) }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.values().sum()
    }

    /// The lowest range that is long enough: its start and its length.
    pub(crate) fn allocate(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let length = bytes.max(1).checked_next_multiple_of(GRANULE_BYTES)?;
        let (&at, &free) = self.free.iter().find(|(_, free)| **free >= length)?;
        self.free.remove(&at);
        if free > length {
            self.free.insert(at + length, free - length);
        }
        Some((at, length))
    }

    pub(crate) fn release(&mut self, at: u64, length: u64) {
        let (mut at, mut length) = (at, length);
        if let Some(behind) = self.free.remove(&(at + length)) {
            length += behind;
        }
        if let Some((&before, &free)) = self.free.range(..at).next_back()
            && before + free == at
        {
            (at, length) = (before, free + length);
        }
        self.free.insert(at, length);
    }

    /// Others take a piece here and there, for good: no hole of more than `hole` bytes is left.
    pub(crate) fn fragment(&mut self, hole: u64) {
        let hole = (hole / GRANULE_BYTES * GRANULE_BYTES).max(GRANULE_BYTES);
        for (at, length) in std::mem::take(&mut self.free) {
            let end = at + length;
            let mut start = at;
            while start < end {
                self.free.insert(start, hole.min(end - start));
                start += hole + GRANULE_BYTES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_joins_its_neighbours() {
        let mut space = AddressSpace::new(4096);
        let (one, two, three) =
            (space.allocate(512).unwrap(), space.allocate(700).unwrap(), space.allocate(1).unwrap());
        assert_eq!((one, two, three), ((0, 512), (512, 1024), (1536, 512)));
        for (at, length) in [one, three, two] {
            space.release(at, length);
        }
        assert_eq!(space.allocate(4096), Some((0, 4096)));
        assert_eq!(space.allocate(1), None);
    }

    #[test]
    fn holes_of_a_fragmented_space_add_up_and_none_is_larger_than_asked() {
        let mut space = AddressSpace::new(1 << 20);
        space.allocate(10_000).unwrap();
        space.fragment(64 << 10);
        assert!(space.free() > 900_000);
        assert_eq!(space.allocate((64 << 10) + 1), None);
        assert!(space.allocate(64 << 10).is_some());
    }
}
