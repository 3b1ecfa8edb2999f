//! The memory of the devices. Each allocation lies between two pages that cannot be accessed. Must not know
//! streams or kernels.
//!
//! A device address is a host address. New memory holds poison. Freed memory stays inaccessible, in
//! quarantine, until many others were freed.

use std::collections::{BTreeMap, VecDeque};

use crate::address_space::AddressSpace;
use crate::fibers::POISON;
use crate::sys::{GuardedPages, PAGE_BYTES};

/// Maximum number of freed allocations that stay inaccessible.
const MAX_QUARANTINED: usize = 4096;
/// Bytes before an allocation that are checked after work. After it, all bytes up to the next page are
/// checked.
const REDZONE_BYTES: usize = 64;

/// One allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) address: usize,
    pub(crate) len_bytes: usize,
    pub(crate) device: usize,
    /// Range in the device's address space.
    space_offset: u64,
    space_len_bytes: u64,
    pages: GuardedPages,
}

impl Allocation {
    pub(crate) fn end(&self) -> usize {
        self.address + self.len_bytes
    }

    /// Checks `front_bytes` bytes before and all bytes after the allocation. Returns the first overwritten
    /// one.
    fn overrun(&self, front_bytes: usize) -> Option<Overrun> {
        let front = self.address.saturating_sub(front_bytes)..self.address;
        let back = self.end()..self.pages.end();
        let overwritten = self
            .pages
            .first_other_than(POISON, front)
            .or_else(|| self.pages.first_other_than(POISON, back))?;
        let offset = overwritten as isize - self.address as isize;
        Some(Overrun { allocation_bytes: self.len_bytes, offset })
    }

    /// Returns whether an address lies in the allocation's pages or in one of the two around them.
    fn is_near(&self, address: usize) -> bool {
        (self.pages.address() - PAGE_BYTES..self.pages.end() + PAGE_BYTES).contains(&address)
    }
}

/// A byte around an allocation that was overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun {
    pub(crate) allocation_bytes: usize,
    /// From the start of the allocation.
    pub(crate) offset: isize,
}

/// Where a freed allocation was, and whether bytes around it were overwritten.
pub(crate) enum FreeOutcome {
    /// No allocation starts there.
    Unknown,
    /// It was freed.
    Freed,
    /// It was freed, and a byte around it was overwritten.
    Overrun(Overrun),
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
        let Some(pages) = GuardedPages::map(bytes, POISON) else {
            self.spaces[device].release(offset, length);
            return None;
        };
        let address = pages.end() - bytes.next_multiple_of(16);
        self.live.insert(
            address,
            Allocation {
                address,
                len_bytes: bytes,
                device,
                space_offset: offset,
                space_len_bytes: length,
                pages,
            },
        );
        Some(address)
    }

    /// Frees the allocation that starts at an address. Its pages stay inaccessible until many others are freed.
    pub(crate) fn free(&mut self, address: usize) -> FreeOutcome {
        let Some(mut allocation) = self.live.remove(&address) else { return FreeOutcome::Unknown };
        let overrun = allocation.overrun(usize::MAX);
        self.spaces[allocation.device].release(allocation.space_offset, allocation.space_len_bytes);
        allocation.pages.discard();
        self.quarantine_order.push_back(address);
        self.quarantined.insert(address, allocation);
        if self.quarantine_order.len() > MAX_QUARANTINED
            && let Some(oldest) = self.quarantine_order.pop_front()
        {
            self.quarantined.remove(&oldest);
        }
        overrun.map_or(FreeOutcome::Freed, FreeOutcome::Overrun)
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

    /// Returns an overwritten byte around an allocation.
    pub(crate) fn overrun(&self) -> Option<Overrun> {
        self.live.values().find_map(|allocation| allocation.overrun(REDZONE_BYTES))
    }

    /// Like [`DeviceMemory::overrun`], for the allocations that contain these addresses.
    pub(crate) fn overrun_at(&self, mut addresses: impl Iterator<Item = usize>) -> Option<Overrun> {
        addresses.find_map(|address| self.containing(address)?.overrun(REDZONE_BYTES))
    }

    /// Describes an address for people, by the nearest live or freed allocation.
    pub(crate) fn describe(&self, address: usize) -> String {
        let (allocation, state) = match (nearest(&self.live, address), nearest(&self.quarantined, address)) {
            (Some(allocation), _) => (allocation, "an allocation"),
            (None, Some(allocation)) => (allocation, "a freed allocation"),
            (None, None) => return format!("address {address:#x}, which is near no allocation"),
        };
        let offset = address as isize - allocation.address as isize;
        format!("byte {offset} of {state} of {} bytes", allocation.len_bytes)
    }
}

/// Returns the allocation around an address: the one before it, else the one after it.
fn nearest(allocations: &BTreeMap<usize, Allocation>, address: usize) -> Option<&Allocation> {
    let before = allocations.range(..=address).next_back().map(|(_, allocation)| allocation);
    let after = allocations.range(address..).next().map(|(_, allocation)| allocation);
    before
        .filter(|allocation| allocation.is_near(address))
        .or(after.filter(|allocation| allocation.is_near(address)))
}
