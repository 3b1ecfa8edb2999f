//! Buffers in device memory, and the pool that caches freed memory: equal steps need no allocation by the
//! driver. Knows no kernel.
//!
//! A buffer may be freed while queued work still uses it. This is sound because all work of a device goes
//! through one stream: the next user's work is queued behind it. A user of another stream must keep the
//! buffer until its event has completed.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use super::context::CudaContext;
use super::error::DeviceError;
use super::sys::DeviceMemory;
use crate::locks::LockExt;

/// Type of a buffer's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// 32-bit float.
    F32,
    /// 16-bit bfloat.
    Bf16,
    /// 32 bits: indices, flags, or the bits of any 32-bit value.
    Bits32,
    /// 64 bits: checksums, doubles, addresses.
    Bits64,
}

impl ElementType {
    /// Size of an element in bytes.
    pub fn size_bytes(self) -> usize {
        match self {
            ElementType::Bf16 => 2,
            ElementType::F32 | ElementType::Bits32 => 4,
            ElementType::Bits64 => 8,
        }
    }
}

/// Free memory by size in bytes.
type FreeMemory = BTreeMap<usize, Vec<Arc<DeviceMemory>>>;

/// A pool of device memory, by size.
#[derive(Debug)]
pub(super) struct MemoryPool {
    context: Arc<CudaContext>,
    free_memory: Mutex<FreeMemory>,
}

impl MemoryPool {
    pub(super) fn new(context: Arc<CudaContext>) -> Arc<MemoryPool> {
        Arc::new(MemoryPool { context, free_memory: Mutex::default() })
    }

    /// Returns a buffer with undefined content. If the device is out of memory, returns all free memory to
    /// the driver and tries once more.
    pub(super) fn buffer(
        self: &Arc<MemoryPool>,
        element: ElementType,
        len: usize,
    ) -> Result<DeviceBuffer, DeviceError> {
        let class = size_class(len * element.size_bytes());
        let cached = self.free_memory.locked().get_mut(&class).and_then(Vec::pop);
        let memory = match cached {
            Some(memory) => memory,
            None => Arc::new(self.allocate(class)?),
        };
        Ok(DeviceBuffer { memory, pool: Arc::clone(self), element, len })
    }

    /// Allocates memory from the driver.
    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        match DeviceMemory::new(&self.context, bytes) {
            Err(error) if error.is_out_of_memory() => {
                tracing::debug!("{error}; cached memory is returned to the driver");
                self.release_free();
                DeviceMemory::new(&self.context, bytes)
            }
            other => other,
        }
    }

    /// Returns all free memory to the driver.
    pub(super) fn release_free(&self) {
        let free = std::mem::take(&mut *self.free_memory.locked());
        drop(free);
    }
}

/// Rounds a size up by at most an eighth, so that buffers of nearly equal sizes can reuse each other's
/// memory.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(512);
    let step = (bytes.next_power_of_two() / 16).max(512);
    bytes.next_multiple_of(step)
}

/// A typed buffer in device memory. Its memory returns to the pool when it is dropped.
#[derive(Debug)]
pub struct DeviceBuffer {
    memory: Arc<DeviceMemory>,
    pool: Arc<MemoryPool>,
    element: ElementType,
    len: usize,
}

impl DeviceBuffer {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the buffer has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Type of the elements.
    pub fn element(&self) -> ElementType {
        self.element
    }

    /// A view of the whole buffer.
    pub fn view(&self) -> BufferView<'_> {
        self.view_from(0)
    }

    /// A view from element `offset` to the end.
    pub fn view_from(&self, offset: usize) -> BufferView<'_> {
        self.view_range(offset, self.len.saturating_sub(offset))
    }

    /// A view of `len` elements, starting at element `offset`.
    ///
    /// # Panics
    ///
    /// If the range is not within the buffer.
    pub fn view_range(&self, offset: usize, len: usize) -> BufferView<'_> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} elements from element {offset} are not within {} elements",
            self.len
        );
        let address = self.memory.address() + (offset * self.element.size_bytes()) as u64;
        BufferView { address, element: self.element, len, buffer: PhantomData }
    }

    pub(super) fn memory(&self) -> &DeviceMemory {
        &self.memory
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.pool
            .free_memory
            .locked()
            .entry(self.memory.len_bytes())
            .or_default()
            .push(Arc::clone(&self.memory));
    }
}

/// A range of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct BufferView<'a> {
    pub(super) address: u64,
    pub(super) element: ElementType,
    pub(super) len: usize,
    buffer: PhantomData<&'a DeviceBuffer>,
}

impl<'a> BufferView<'a> {
    /// The view without its first `offset` elements.
    ///
    /// # Panics
    ///
    /// If the view is shorter.
    pub fn skip(self, offset: usize) -> BufferView<'a> {
        assert!(offset <= self.len, "element {offset} is not within {} elements", self.len);
        BufferView {
            address: self.address + (offset * self.element.size_bytes()) as u64,
            len: self.len - offset,
            ..self
        }
    }

    /// The device address, for tables that kernels read.
    pub fn address(self) -> u64 {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn size_class_is_at_most_an_eighth_above_the_request() {
        for bytes in [1, 511, 512, 513, 5_000, 123_456, 1 << 20, (1 << 30) + 1] {
            let class = size_class(bytes);
            assert!(
                class >= bytes && class <= (bytes + bytes / 8).max(bytes + 511).max(512),
                "{bytes}: {class}"
            );
            assert_eq!(size_class(class), class);
        }
    }
}
