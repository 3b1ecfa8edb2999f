//! The memory of the devices. Each allocation lies between two pages that cannot be accessed. Unsafe: it
//! fills and reads that memory. Must not know streams or kernels.
//!
//! A device address is a host address. New memory holds poison. Freed memory stays inaccessible, in
//! quarantine, until many others were freed.

use std::collections::{BTreeMap, VecDeque};

use crate::address_space::AddressSpace;
use crate::fibers::POISON;
use crate::sys::{self, PAGE_BYTES};

/// Maximum number of freed allocations that stay inaccessible.
const MAX_QUARANTINED: usize = 4096;
/// Bytes before an allocation that are checked after work. After it, all bytes up to the next page are
/// checked.
const REDZONE_BYTES: usize = 64;

/// One allocation.
#[derive(Debug, Clone)]
pub(crate) struct Allocation {
    pub(crate) address: usize,
    pub(crate) len_bytes: usize,
    pub(crate) device: usize,
    /// Range in the device's address space.
    space_offset: u64,
    space_len_bytes: u64,
    /// The accessible pages.
    map_address: usize,
    mapped_bytes: usize,
}

impl Allocation {
    pub(crate) fn end(&self) -> usize {
        self.address + self.len_bytes
    }

    /// Checks `front_bytes` bytes before and all bytes after the allocation. Returns the offset of the first
    /// overwritten one.
    fn overrun(&self, front_bytes: usize) -> Option<isize> {
        let front_address = self.address - front_bytes.min(self.address - self.map_address);
        let map_end = self.map_address + self.mapped_bytes;
        // SAFETY: the pages are mapped while the allocation lives. Callers check only while no kernel runs.
        let (front, back) = unsafe {
            (
                sys::bytes(front_address, self.address - front_address),
                sys::bytes(self.end(), map_end - self.end()),
            )
        };
        if is_poison(front) && is_poison(back) {
            return None;
        }
        let is_overwritten = |byte: &u8| *byte != POISON;
        let front_offset = front
            .iter()
            .position(is_overwritten)
            .map(|index| (front_address + index) as isize - self.address as isize);
        front_offset
            .or_else(|| back.iter().position(is_overwritten).map(|index| (self.len_bytes + index) as isize))
    }
}

fn with_overrun(allocation: &Allocation) -> Option<(&Allocation, isize)> {
    Some((allocation, allocation.overrun(REDZONE_BYTES)?))
}

/// Compares in pieces, which is fast: this runs for every allocation after each wait.
fn is_poison(bytes: &[u8]) -> bool {
    let pieces = bytes.chunks_exact(REDZONE_BYTES);
    pieces.remainder().iter().all(|byte| *byte == POISON)
        && pieces.into_iter().all(|piece| piece == [POISON; REDZONE_BYTES])
}

/// The memory of all devices.
pub(crate) struct DeviceMemory {
    spaces: Vec<AddressSpace>,
    /// By address.
    live: BTreeMap<usize, Allocation>,
    /// Freed allocations whose pages are inaccessible, by address.
    quarantined: BTreeMap<usize, Allocation>,
    /// Addresses, the first freed one first.
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

    /// Returns the free and the total memory of a device in bytes.
    pub(crate) fn free_and_total(&self, device: usize) -> (u64, u64) {
        self.spaces.get(device).map_or((0, 0), |space| (space.free_bytes(), space.total_bytes()))
    }

    /// Splits the free memory of all devices into holes of at most `hole_bytes`.
    pub(crate) fn fragment(&mut self, hole_bytes: u64) {
        self.spaces.iter_mut().for_each(|space| space.fragment(hole_bytes));
    }

    /// Allocates memory and returns its address, or `None` if there is not enough.
    pub(crate) fn allocate(&mut self, device: usize, bytes: usize) -> Option<usize> {
        let (offset, length) = self.spaces.get_mut(device)?.allocate(bytes as u64)?;
        let mapped = bytes.next_multiple_of(PAGE_BYTES);
        let Some(map) = sys::map_guarded(mapped) else {
            self.spaces[device].release(offset, length);
            return None;
        };
        // SAFETY: `map_guarded` has just mapped these pages as writable.
        unsafe { sys::fill(map, POISON, mapped) };
        let address = map + mapped - bytes.next_multiple_of(16);
        self.live.insert(
            address,
            Allocation {
                address,
                len_bytes: bytes,
                device,
                space_offset: offset,
                space_len_bytes: length,
                map_address: map,
                mapped_bytes: mapped,
            },
        );
        Some(address)
    }

    /// Frees the allocation that starts at an address. Returns `None` if there is none. Else returns the
    /// allocation and the offset of the first overwritten byte around it, if there is one.
    pub(crate) fn free(&mut self, address: usize) -> Option<Option<(Allocation, isize)>> {
        let allocation = self.live.remove(&address)?;
        let overrun = allocation.overrun(usize::MAX).map(|offset| (allocation.clone(), offset));
        self.spaces[allocation.device].release(allocation.space_offset, allocation.space_len_bytes);
        sys::discard_guarded(allocation.map_address, allocation.mapped_bytes);
        self.quarantine_order.push_back(address);
        self.quarantined.insert(address, allocation);
        if self.quarantine_order.len() > MAX_QUARANTINED
            && let Some(oldest) = self.quarantine_order.pop_front()
            && let Some(oldest) = self.quarantined.remove(&oldest)
        {
            sys::unmap_guarded(oldest.map_address, oldest.mapped_bytes);
        }
        Some(overrun)
    }

    /// Returns the allocation that starts at an address.
    pub(crate) fn starting_at(&self, address: usize) -> Option<&Allocation> {
        self.live.get(&address)
    }

    /// Returns the allocation that contains an address.
    pub(crate) fn containing(&self, address: usize) -> Option<&Allocation> {
        let (_, allocation) = self.live.range(..=address).next_back()?;
        (address < allocation.end()).then_some(allocation)
    }

    /// Returns whether one allocation contains all these bytes.
    pub(crate) fn contains(&self, address: usize, bytes: usize) -> bool {
        bytes == 0 || self.containing(address).is_some_and(|allocation| bytes <= allocation.end() - address)
    }

    /// Returns the largest allocation.
    pub(crate) fn largest(&self) -> Option<&Allocation> {
        // Of several equally large ones, the one with the lowest offset: addresses differ between runs,
        // offsets do not.
        let key = |allocation: &&Allocation| {
            (allocation.len_bytes, std::cmp::Reverse((allocation.device, allocation.space_offset)))
        };
        self.live.values().max_by_key(key)
    }

    /// Returns an allocation around which a byte was overwritten, and the byte's offset.
    pub(crate) fn overrun(&self) -> Option<(&Allocation, isize)> {
        self.live.values().find_map(with_overrun)
    }

    /// Like [`DeviceMemory::overrun`], for the allocations that contain these addresses.
    pub(crate) fn overrun_at(
        &self,
        mut addresses: impl Iterator<Item = usize>,
    ) -> Option<(&Allocation, isize)> {
        addresses.find_map(|address| self.containing(address).and_then(with_overrun))
    }

    /// Describes an address for people, by the nearest live or freed allocation.
    pub(crate) fn describe(&self, address: usize) -> String {
        let nearest = |map: &BTreeMap<usize, Allocation>| {
            let before = map.range(..=address).next_back().map(|(_, allocation)| allocation.clone());
            let after = map.range(address..).next().map(|(_, allocation)| allocation.clone());
            let within = |allocation: &Allocation| {
                (allocation.map_address - PAGE_BYTES
                    ..allocation.map_address + allocation.mapped_bytes + PAGE_BYTES)
                    .contains(&address)
            };
            before.filter(within).or(after.filter(within))
        };
        let (allocation, state) = match (nearest(&self.live), nearest(&self.quarantined)) {
            (Some(allocation), _) => (allocation, "an allocation"),
            (None, Some(allocation)) => (allocation, "a freed allocation"),
            (None, None) => return format!("address {address:#x}, which is near no allocation"),
        };
        let offset = address as isize - allocation.address as isize;
        format!("byte {offset} of {state} of {} bytes", allocation.len_bytes)
    }
}
