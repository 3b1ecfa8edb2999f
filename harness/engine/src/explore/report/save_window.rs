//! The save around a crash point. Pure.

use crate::explore::record::{Op, Recording};
use crate::explore::states::CrashCandidate;

/// The operations around a crash point, from the last acknowledged save before it to the next one after it.
/// The numbers are indexes of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SaveWindow {
    pub(super) start: usize,
    /// The crash point.
    pub(super) op_count: usize,
    /// One past the last operation.
    pub(super) end: usize,
}

impl SaveWindow {
    pub(super) fn of(recording: &Recording, candidate: &CrashCandidate) -> SaveWindow {
        SaveWindow::at(recording, candidate.op_count as usize)
    }

    /// The window around the moment after the first `op_count` operations.
    pub(super) fn at(recording: &Recording, op_count: usize) -> SaveWindow {
        let (before, after) = recording.ops.split_at(op_count);
        let start = before.iter().rposition(Op::is_acknowledgement).map_or(0, |op| op + 1);
        let next = after.iter().position(Op::is_acknowledgement);
        SaveWindow { start, op_count, end: next.map_or(recording.ops.len(), |op| op_count + op) }
    }

    /// The state at the moment at which the last save before the crash point was acknowledged. `None`: none was.
    pub(super) fn acknowledged_state(self) -> Option<CrashCandidate> {
        (self.start > 0).then(|| CrashCandidate::whole(self.start))
    }
}
