//! Buffers in device memory, and the pool that keeps freed ones for the next step: once steps are alike, the driver is asked
//! for none. Knows no kernel.
//!
//! A buffer may be freed while work that uses it is still queued: whoever gets it next queues behind that work, because all
//! work of one device goes through one stream. Who uses another stream keeps the buffer until its event has come.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::DeviceError;
use super::sys::{Context, Memory};

/// What a buffer's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    Bf16,
    /// Indices, flags, and bits of whatever has 32 of them.
    Word,
    /// Of 64 bits: sums of checksums, doubles.
    Long,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Element::Bf16 => 2,
            Element::F32 | Element::Word => 4,
            Element::Long => 8,
        }
    }
}

/// By bytes.
type Free = BTreeMap<usize, Vec<Arc<Memory>>>;

/// Device memory by size, free for the next who wants it.
#[derive(Debug)]
pub(super) struct Pool {
    context: Arc<Context>,
    free: Mutex<Free>,
}

impl Pool {
    pub(super) fn new(context: Arc<Context>) -> Arc<Pool> {
        Arc::new(Pool { context, free: Mutex::default() })
    }

    /// Holds whatever was there before. Out of memory: all that is free goes back to the driver, and it is tried once more.
    pub(super) fn buffer(self: &Arc<Pool>, element: Element, len: usize) -> Result<Buffer, DeviceError> {
        let class = size_class(len * element.bytes());
        let kept = self.free().get_mut(&class).and_then(Vec::pop);
        let memory = match kept {
            Some(memory) => memory,
            None => Arc::new(self.fresh(class)?),
        };
        Ok(Buffer { memory, pool: Arc::clone(self), element, len })
    }

    fn fresh(&self, bytes: usize) -> Result<Memory, DeviceError> {
        match Memory::new(&self.context, bytes) {
            Err(error) if error.is_out_of_memory() => {
                tracing::debug!("{error}; what was kept for later is given back");
                self.release();
                Memory::new(&self.context, bytes)
            }
            other => other,
        }
    }

    /// Gives back all that is free.
    pub(super) fn release(&self) {
        let free = std::mem::take(&mut *self.free());
        drop(free);
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
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
pub struct Buffer {
    memory: Arc<Memory>,
    pool: Arc<Pool>,
    element: Element,
    len: usize,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn element(&self) -> Element {
        self.element
    }

    /// All of it.
    pub fn view(&self) -> View<'_> {
        self.from(0)
    }

    /// From an element on.
    pub fn from(&self, offset: usize) -> View<'_> {
        self.part(offset, self.len.saturating_sub(offset))
    }

    /// `len` elements from `offset` on.
    pub fn part(&self, offset: usize, len: usize) -> View<'_> {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "elements {offset}.. of {}, {len} of them",
            self.len
        );
        let at = self.memory.at() + (offset * self.element.bytes()) as u64;
        View { at, element: self.element, len, of: PhantomData }
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.pool.free().entry(self.memory.bytes()).or_default().push(Arc::clone(&self.memory));
    }
}

/// A place in a buffer.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub(super) at: u64,
    pub(super) element: Element,
    pub(super) len: usize,
    of: PhantomData<&'a Buffer>,
}

impl<'a> View<'a> {
    /// From a further element on.
    pub fn after(self, offset: usize) -> View<'a> {
        assert!(offset <= self.len, "element {offset} of {}", self.len);
        View { at: self.at + (offset * self.element.bytes()) as u64, len: self.len - offset, ..self }
    }

    /// The device's address, for tables that the device reads.
    pub fn address(self) -> u64 {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::size_class;

    #[test]
    fn a_size_class_is_at_most_an_eighth_larger_than_what_is_asked_for() {
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
