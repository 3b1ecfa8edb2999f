//! How far a target's wall clock is from the machine's. Pure but for the machine's clock.

use std::time::{SystemTime, UNIX_EPOCH};

/// How far the target's wall clock is from the machine's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockShift {
    /// Nanoseconds. Negative: the target's clock is behind.
    pub nanos: i64,
}

impl ClockShift {
    /// The shifted time now, in nanoseconds since 1970.
    pub(super) fn now(self) -> i128 {
        let machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        machine.as_nanos() as i128 + i128::from(self.nanos)
    }
}
