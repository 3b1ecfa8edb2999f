//! The errors that calls of this process report because of an earlier fault. Must not know rules.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The errors in force. A code of 0 means that there is none.
#[derive(Default)]
pub(super) struct StandingError {
    /// The code with which every call fails.
    sticky_code: AtomicU32,
    /// The code with which the next call that waits fails.
    deferred_code: AtomicU32,
    deferred_is_sticky: AtomicBool,
}

impl StandingError {
    /// Returns whether no error is in force.
    #[inline]
    pub(super) fn is_none(&self) -> bool {
        self.sticky_code.load(Ordering::Relaxed) == 0 && self.deferred_code.load(Ordering::Relaxed) == 0
    }

    /// Returns the code with which every call fails.
    pub(super) fn sticky(&self) -> Option<u32> {
        Some(self.sticky_code.load(Ordering::Acquire)).filter(|code| *code != 0)
    }

    /// Makes every later call of this process fail with a code. An earlier sticky error stays.
    pub(super) fn set_sticky(&self, code: u32) {
        let _ = self.sticky_code.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Makes the next call that waits fail with a code, and if `is_sticky`, every later call.
    pub(super) fn defer(&self, code: u32, is_sticky: bool) {
        self.deferred_is_sticky.store(is_sticky, Ordering::Release);
        self.deferred_code.store(code, Ordering::Release);
    }

    /// Takes the deferred error. The first call that waits reports it.
    pub(super) fn take_deferred(&self) -> Option<u32> {
        let code = self.deferred_code.swap(0, Ordering::AcqRel);
        if code != 0 && self.deferred_is_sticky.load(Ordering::Acquire) {
            self.set_sticky(code);
        }
        (code != 0).then_some(code)
    }
}
