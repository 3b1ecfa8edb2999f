//! Where the call of each exported function continues. Must not know who implements a function.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::symbols::FUNCTION_COUNT;

/// The address of each function's implementation. 0: not looked up yet.
static IMPLEMENTATIONS: [AtomicUsize; FUNCTION_COUNT] = [const { AtomicUsize::new(0) }; FUNCTION_COUNT];

/// Returns the address at which a call continues, or `None` if it was not looked up yet.
#[inline]
pub(crate) fn implementation_of(index: usize) -> Option<usize> {
    Some(IMPLEMENTATIONS[index].load(Ordering::Acquire)).filter(|address| *address != 0)
}

/// Sets the address at which the calls of a function continue.
pub(crate) fn set_implementation(index: usize, address: usize) {
    IMPLEMENTATIONS[index].store(address, Ordering::Release);
}
