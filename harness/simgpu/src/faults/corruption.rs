//! Faults that are injected into queued work, and their way from a call to the work that it queues. Must not
//! know rules, or how work runs.

use std::cell::RefCell;
use std::mem::ManuallyDrop;

use simgpu_plan::OverwriteValue;

/// A fault that is injected into the work that a call queues. `rule` is the rule that injects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Corruption {
    /// The work never ends.
    Hang,
    /// One value that the work wrote is replaced.
    Overwrite { with: OverwriteValue, seed: u64, rule: usize },
    /// One bit of the largest allocation flips after the work.
    FlipBit { seed: u64, rule: usize },
}

thread_local! {
    /// Corruptions for the work that the current call of this thread will queue.
    /// Never dropped, because programs call the driver from destructors of their thread-locals.
    static PENDING_CORRUPTIONS: ManuallyDrop<RefCell<Vec<Corruption>>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

/// Stores the corruptions of the work that the current call of this thread will queue.
pub(crate) fn set_pending_corruptions(corruptions: Vec<Corruption>) {
    PENDING_CORRUPTIONS.with(|pending| pending.replace(corruptions));
}

/// Takes the corruptions of the work that the current call of this thread queues.
pub(crate) fn take_pending_corruptions() -> Vec<Corruption> {
    PENDING_CORRUPTIONS.with(|pending| pending.take())
}
