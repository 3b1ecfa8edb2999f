//! Buffers in device memory, and the pool that keeps freed ones for the next step: once steps are alike, the driver is asked
//! for none. Knows no kernel.
//!
//! A buffer may be freed while work that uses it is still queued: whoever gets it next queues behind that work, because all
//! work of one device goes through one stream. Who uses another stream keeps the buffer until its event has come.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::DeviceError;
use super::sys::{CudaContext, DeviceMemory};

/// What a buffer's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ElementType {
    F32,
    Bf16,
    /// Indices, flags, and bits of whatever has 32 of them.
    Bits32,
    /// Of 64 bits: sums of checksums, doubles.
    Bits64,
}

impl ElementType {
    pub fn size_bytes(self) -> usize {
        match self {
            ElementType::Bf16 => 2,
            ElementType::F32 | ElementType::Bits32 => 4,
            ElementType::Bits64 => 8,
        }
    }
}

/// By bytes.
type FreeMemory = BTreeMap<usize, Vec<Arc<DeviceMemory>>>;

/// Device memory by size, free for the next who wants it.
#[derive(Debug)]
pub(super) struct MemoryPool {
    context: Arc<CudaContext>,
    free_memory: Mutex<FreeMemory>,
}

impl MemoryPool {
    pub(super) fn new(context: Arc<CudaContext>) -> Arc<MemoryPool> {
        Arc::new(MemoryPool { context, free_memory: Mutex::default() })
    }

    /// Holds whatever was there before. Out of memory: all that is free goes back to the driver, and it is tried once more.
    pub(super) fn buffer(
        self: &Arc<MemoryPool>,
        element: ElementType,
        len: usize,
    ) -> Result<DeviceBuffer, DeviceError> {
        let class = size_class(len * element.size_bytes());
        let kept = self.free_memory().get_mut(&class).and_then(Vec::pop);
        let memory = match kept {
            Some(memory) => memory,
            None => Arc::new(self.allocate(class)?),
        };
        Ok(DeviceBuffer { memory, pool: Arc::clone(self), element, len })
    }

    fn allocate(&self, bytes: usize) -> Result<DeviceMemory, DeviceError> {
        match DeviceMemory::new(&self.context, bytes) {
            Err(error) if error.is_out_of_memory() => {
                tracing::debug!("{error}; what was kept for later is given back");
                self.release_free();
                DeviceMemory::new(&self.context, bytes)
            }
            other => other,
        }
    }

    /// Gives back all that is free.
    pub(super) fn release_free(&self) {
        let free = std::mem::take(&mut *self.free_memory());
        drop(free);
    }

    fn free_memory(&self) -> MutexGuard<'_, FreeMemory> {
        self.free_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At most an eighth more than was asked for, so that nearly equal sizes share what is free.
fn size_class(bytes: usize) -> usize {
    let bytes = bytes.max(512);
    let step = (bytes.next_power_of_two() / 16).max(512);
    bytes.next_multiple_of(step)
}

/// Memory for so many elements.
#[derive(Debug)]
pub struct DeviceBuffer {
    memory: Arc<DeviceMemory>,
    pool: Arc<MemoryPool>,
    element: ElementType,
    len: usize,
}

impl DeviceBuffer {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn element(&self) -> ElementType {
        self.element
    }

    /// All of it.
    pub fn view(&self) -> BufferView<'_> {
        self.view_from(0)
    }

    /// From an element on.
    pub fn view_from(&self, offset: usize) -> BufferView<'_> {
        self.view_range(offset, self.len.saturating_sub(offset))
    }

    /// `len` elements from `offset` on.
    pub fn view_range(&self, offset: usize, len: usize) -> BufferView<'_> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "elements {offset}.. of {}, {len} of them",
            self.len
        );
        let at = self.memory.address() + (offset * self.element.size_bytes()) as u64;
        BufferView { address: at, element: self.element, len, buffer: PhantomData }
    }

    pub(super) fn memory(&self) -> &DeviceMemory {
        &self.memory
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.pool.free_memory().entry(self.memory.len_bytes()).or_default().push(Arc::clone(&self.memory));
    }
}

/// A place in a buffer.
#[derive(Debug, Clone, Copy)]
pub struct BufferView<'a> {
    pub(super) address: u64,
    pub(super) element: ElementType,
    pub(super) len: usize,
    buffer: PhantomData<&'a DeviceBuffer>,
}

impl<'a> BufferView<'a> {
    /// From a further element on.
    pub fn skip(self, offset: usize) -> BufferView<'a> {
        assert!(offset <= self.len, "element {offset} of {}", self.len);
        BufferView {
            address: self.address + (offset * self.element.size_bytes()) as u64,
            len: self.len - offset,
            ..self
        }
    }

    /// The device's address, for tables that the device reads.
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
