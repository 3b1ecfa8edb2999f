//! The memory of the devices: each allocation lies by itself between pages that can't be touched. Unsafe: it fills and
//! reads that memory. It must not know streams or kernels.
//!
//! A device address is a host address. New memory holds poison; what was freed can't be touched until many others were freed.

use std::collections::{BTreeMap, VecDeque};

use crate::address_space::AddressSpace;
use crate::fibers::POISON;
use crate::sys::{self, PAGE_BYTES};

/// Freed allocations whose addresses stay closed.
const MAX_QUARANTINED: usize = 4096;
/// Bytes before an allocation that are looked at after work; behind it, all up to the page that can't be touched.
const REDZONE_BYTES: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    pub(crate) address: usize,
    pub(crate) len_bytes: usize,
    pub(crate) device: usize,
    space_offset: u64,
    space_len_bytes: u64,
    map_address: usize,
    mapped_bytes: usize,
}

impl Allocation {
    pub(crate) fn end(&self) -> usize {
        self.address + self.len_bytes
    }

    /// Whether something was written beside it, so far as is looked: the offset of the first such byte.
    fn overrun(&self, before: usize) -> Option<isize> {
        let front = self.address - before.min(self.address - self.map_address);
        let map_end = self.map_address + self.mapped_bytes;
        // SAFETY: mapped while the allocation lives, and no kernel runs now.
        let (front_bytes, back) = unsafe {
            (sys::bytes(front, self.address - front), sys::bytes(self.end(), map_end - self.end()))
        };
        if is_poison(front_bytes) && is_poison(back) {
            return None;
        }
        let bad = |byte: &u8| *byte != POISON;
        let front_bad =
            front_bytes.iter().position(bad).map(|place| (front + place) as isize - self.address as isize);
        front_bad.or_else(|| back.iter().position(bad).map(|place| (self.len_bytes + place) as isize))
    }
}

fn with_overrun(allocation: &Allocation) -> Option<(&Allocation, isize)> {
    Some((allocation, allocation.overrun(REDZONE_BYTES)?))
}

/// Compared in pieces: this is done for every allocation whenever somebody waits.
fn is_poison(bytes: &[u8]) -> bool {
    let pieces = bytes.chunks_exact(REDZONE_BYTES);
    pieces.remainder().iter().all(|byte| *byte == POISON)
        && pieces.into_iter().all(|piece| piece == [POISON; REDZONE_BYTES])
}

/// Of all devices.
pub(crate) struct DeviceMemory {
    spaces: Vec<AddressSpace>,
    live: BTreeMap<usize, Allocation>,
    quarantined: BTreeMap<usize, Allocation>,
    quarantine_order: VecDeque<usize>,
}

impl DeviceMemory {
    pub(crate) fn new(devices: usize, bytes_each: u64) -> DeviceMemory {
        let spaces = (0..devices).map(|_| AddressSpace::new(bytes_each)).collect();
        DeviceMemory {
            spaces,
            live: BTreeMap::new(),
            quarantined: BTreeMap::new(),
            quarantine_order: VecDeque::new(),
        }
    }

    pub(crate) fn free_and_total(&self, device: usize) -> (u64, u64) {
        self.spaces.get(device).map_or((0, 0), |space| (space.free(), space.total()))
    }

    pub(crate) fn fragment(&mut self, hole: u64) {
        self.spaces.iter_mut().for_each(|space| space.fragment(hole));
    }

    /// None: out of memory.
    pub(crate) fn allocate(&mut self, device: usize, bytes: usize) -> Option<usize> {
        let (offset, length) = self.spaces.get_mut(device)?.allocate(bytes as u64)?;
        let mapped = bytes.next_multiple_of(PAGE_BYTES);
        let Some(map) = sys::map_guarded(mapped) else {
            self.spaces[device].release(offset, length);
            return None;
        };
        // SAFETY: mapped just now.
        unsafe { sys::fill(map, POISON, mapped) };
        let at = map + mapped - bytes.next_multiple_of(16);
        self.live.insert(
            at,
            Allocation {
                address: at,
                len_bytes: bytes,
                device,
                space_offset: offset,
                space_len_bytes: length,
                map_address: map,
                mapped_bytes: mapped,
            },
        );
        Some(at)
    }

    /// None: no allocation starts there. Else whether something was written beside it, and at which offset.
    pub(crate) fn free(&mut self, at: usize) -> Option<Option<(Allocation, isize)>> {
        let allocation = self.live.remove(&at)?;
        let overrun = allocation.overrun(usize::MAX).map(|offset| (allocation.clone(), offset));
        self.spaces[allocation.device].release(allocation.space_offset, allocation.space_len_bytes);
        sys::discard_guarded(allocation.map_address, allocation.mapped_bytes);
        self.quarantine_order.push_back(at);
        self.quarantined.insert(at, allocation);
        if self.quarantine_order.len() > MAX_QUARANTINED
            && let Some(oldest) = self.quarantine_order.pop_front()
            && let Some(oldest) = self.quarantined.remove(&oldest)
        {
            sys::unmap_guarded(oldest.map_address, oldest.mapped_bytes);
        }
        Some(overrun)
    }

    /// The allocation that starts there.
    pub(crate) fn starting_at(&self, at: usize) -> Option<&Allocation> {
        self.live.get(&at)
    }

    /// The allocation that this address lies in.
    pub(crate) fn containing(&self, address: usize) -> Option<&Allocation> {
        let (_, allocation) = self.live.range(..=address).next_back()?;
        (address < allocation.end()).then_some(allocation)
    }

    /// Whether all these bytes lie in one allocation.
    pub(crate) fn contains(&self, address: usize, bytes: usize) -> bool {
        bytes == 0 || self.containing(address).is_some_and(|allocation| bytes <= allocation.end() - address)
    }

    pub(crate) fn largest(&self) -> Option<&Allocation> {
        // The first of the largest, by the order of allocation: addresses differ from run to run, offsets do not.
        let key = |allocation: &&Allocation| {
            (allocation.len_bytes, std::cmp::Reverse((allocation.device, allocation.space_offset)))
        };
        self.live.values().max_by_key(key)
    }

    /// An allocation that something was written beside, and the offset.
    pub(crate) fn overrun(&self) -> Option<(&Allocation, isize)> {
        self.live.values().find_map(with_overrun)
    }

    /// The same, of allocations that these addresses lie in.
    pub(crate) fn overrun_at(
        &self,
        mut addresses: impl Iterator<Item = usize>,
    ) -> Option<(&Allocation, isize)> {
        addresses.find_map(|address| self.containing(address).and_then(with_overrun))
    }

    /// What this address is, for people: which allocation it is near, alive or freed.
    pub(crate) fn describe(&self, address: usize) -> String {
        let near = |map: &BTreeMap<usize, Allocation>| {
            let before = map.range(..=address).next_back().map(|(_, allocation)| allocation.clone());
            let after = map.range(address..).next().map(|(_, allocation)| allocation.clone());
            let within = |allocation: &Allocation| {
                (allocation.map_address - PAGE_BYTES
                    ..allocation.map_address + allocation.mapped_bytes + PAGE_BYTES)
                    .contains(&address)
            };
            before.filter(within).or(after.filter(within))
        };
        let (allocation, state) = match (near(&self.live), near(&self.quarantined)) {
            (Some(allocation), _) => (allocation, "an allocation"),
            (None, Some(allocation)) => (allocation, "a freed allocation"),
            (None, None) => return format!("address {address:#x}, near no allocation"),
        };
        let offset = address as isize - allocation.address as isize;
        format!("byte {offset} of {state} of {} bytes", allocation.len_bytes)
    }
}
