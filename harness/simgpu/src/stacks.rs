//! The stacks of fibers. Unsafe: implements a trait that promises valid memory. Must not know what runs on a
//! stack.

use corosensei::stack::{DefaultStack, Stack, StackPointer};

/// Size of a stack. Kernels keep tiles of accumulators here, which are registers on a GPU.
const STACK_BYTES: usize = 256 * 1024;

/// A stack that starts some cache lines below its end. If all stacks started at the same offset of a page,
/// they would evict each other from the cache.
pub(crate) struct StaggeredStack {
    stack: DefaultStack,
    base: StackPointer,
}

impl StaggeredStack {
    /// Creates the stack with this number in its block. Returns `None` if there is no memory.
    pub(crate) fn new(number: usize) -> Option<StaggeredStack> {
        let stack = DefaultStack::new(STACK_BYTES).ok()?;
        let base = StackPointer::new(stack.base().get() - number % 64 * 64)?;
        Some(StaggeredStack { stack, base })
    }
}

// SAFETY: it is a `DefaultStack`, which has a guard page, without less than one of its many pages. The base
// stays aligned.
unsafe impl Stack for StaggeredStack {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.stack.limit()
    }
}
