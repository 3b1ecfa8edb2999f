//! Book-keeping of a device's memory: which ranges are free. Pure: accesses no memory. Must not know
//! allocations.

use std::collections::BTreeMap;

/// The size of an allocation is rounded up to a multiple of this.
pub(crate) const GRANULE_BYTES: u64 = 512;

/// The address space of one device, as offsets from 0.
#[derive(Debug)]
pub(crate) struct AddressSpace {
    total_bytes: u64,
    /// Lengths of the free ranges, by offset.
    free_ranges: BTreeMap<u64, u64>,
}

impl AddressSpace {
    pub(crate) fn new(total_bytes: u64) -> AddressSpace {
        let total_bytes = total_bytes / GRANULE_BYTES * GRANULE_BYTES;
        AddressSpace { total_bytes, free_ranges: BTreeMap::from([(0, total_bytes)]) }
    }

    /// Returns the size of the address space.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Returns the sum of all free ranges.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_ranges.values().sum()
    }

    /// Takes the lowest free range that is long enough. Returns its offset and its length.
    pub(crate) fn allocate(&mut self, bytes: u64) -> Option<(u64, u64)> {
        let length = bytes.max(1).checked_next_multiple_of(GRANULE_BYTES)?;
        let (&offset, &free) = self.free_ranges.iter().find(|(_, free)| **free >= length)?;
        self.free_ranges.remove(&offset);
        if free > length {
            self.free_ranges.insert(offset + length, free - length);
        }
        Some((offset, length))
    }

    /// Makes a range free again and merges it with its free neighbours.
    pub(crate) fn release(&mut self, offset: u64, length: u64) {
        let (mut offset, mut length) = (offset, length);
        if let Some(following) = self.free_ranges.remove(&(offset + length)) {
            length += following;
        }
        if let Some((&preceding, &free)) = self.free_ranges.range(..offset).next_back()
            && preceding + free == offset
        {
            (offset, length) = (preceding, free + length);
        }
        self.free_ranges.insert(offset, length);
    }

    /// Splits the free ranges into holes of at most `max_hole_bytes`, at least one granule. The granules in
    /// between stay taken permanently.
    pub(crate) fn fragment(&mut self, max_hole_bytes: u64) {
        let hole = (max_hole_bytes / GRANULE_BYTES * GRANULE_BYTES).max(GRANULE_BYTES);
        for (offset, length) in std::mem::take(&mut self.free_ranges) {
            let end = offset + length;
            let mut start = offset;
            while start < end {
                self.free_ranges.insert(start, hole.min(end - start));
                start += hole + GRANULE_BYTES;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_range_merges_with_its_neighbours() {
        let mut space = AddressSpace::new(4096);
        let [first, second, third] = [512, 700, 1].map(|bytes| space.allocate(bytes).unwrap());
        assert_eq!([first, second, third], [(0, 512), (512, 1024), (1536, 512)]);
        for (offset, length) in [first, third, second] {
            space.release(offset, length);
        }
        assert_eq!(space.allocate(4096), Some((0, 4096)));
        assert_eq!(space.allocate(1), None);
    }

    #[test]
    fn the_holes_of_a_fragmented_space_add_up_and_none_exceeds_the_limit() {
        let mut space = AddressSpace::new(1 << 20);
        space.allocate(10_000).unwrap();
        space.fragment(64 << 10);
        assert!(space.free_bytes() > 900_000);
        assert_eq!(space.allocate((64 << 10) + 1), None);
        assert!(space.allocate(64 << 10).is_some());
    }
}
