//! Stacks of fibers. Unsafe: a stack says where it lies. It must not know what runs on it.

use corosensei::stack::{DefaultStack, Stack, StackPointer};

/// Of a fiber's stack. Kernels keep tiles of accumulators here that are registers on a card.
const STACK_BYTES: usize = 256 * 1024;

/// A stack that starts some cache lines below its end: stacks that all start at the same place of a page would push one
/// another out of the cache.
pub(crate) struct StaggeredStack {
    stack: DefaultStack,
    base: StackPointer,
}

impl StaggeredStack {
    /// The `number`-th of a block's. None: no memory.
    pub(crate) fn new(number: usize) -> Option<StaggeredStack> {
        let stack = DefaultStack::new(STACK_BYTES).ok()?;
        let base = StackPointer::new(stack.base().get() - number % 64 * 64)?;
        Some(StaggeredStack { stack, base })
    }
}

// SAFETY: a part of a stack that has its guard page; less than one page is missing of many.
unsafe impl Stack for StaggeredStack {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }
}
