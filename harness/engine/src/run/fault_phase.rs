//! The life of a fault as a state machine: the only place that says which phase may follow which. Pure. Knows
//! no mechanism, no trigger and no evidence.

use std::time::{Duration, Instant};

/// Where a fault is in its life.
///
/// ```text
/// Armed -> Injected -> Effective -> Ending -> Reverted
///   ^         |            |                     |
///   +---------+------------+                     +-> Reverted, now shown to have been effective
/// ```
///
/// `Effective` may be skipped: a fault can be reverted before anything shows its effect. The way back to
/// `Armed` is that of a persistent fault that ended the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FaultPhase {
    /// It waits for its trigger.
    Armed,
    /// It is made, for the first time at `since`. Nothing has shown its effect yet.
    Injected { since: Instant },
    /// It is made, for the first time at `since`, and something has shown its effect.
    Effective { since: Instant },
    /// It has reached its end and is not made again. The next tick reverts it.
    Ending { was_effective: bool },
    /// It is undone. Evidence of its effect may still arrive, such as a line that the target prints later.
    Reverted { was_effective: bool },
}

impl FaultPhase {
    /// Whether the fault has been made, whatever followed.
    pub(super) fn was_injected(self) -> bool {
        self != FaultPhase::Armed
    }

    /// Whether the fault is made and lasts.
    pub(super) fn is_active(self) -> bool {
        matches!(self, FaultPhase::Injected { .. } | FaultPhase::Effective { .. })
    }

    /// Whether the fault has reached its end.
    pub(super) fn is_over(self) -> bool {
        matches!(self, FaultPhase::Ending { .. } | FaultPhase::Reverted { .. })
    }

    /// Whether something has shown the fault's effect.
    pub(super) fn was_effective(self) -> bool {
        match self {
            FaultPhase::Armed | FaultPhase::Injected { .. } => false,
            FaultPhase::Effective { .. } => true,
            FaultPhase::Ending { was_effective } | FaultPhase::Reverted { was_effective } => was_effective,
        }
    }

    /// Whether the fault is active and was made at least this long ago.
    pub(super) fn has_lasted(self, time: Duration) -> bool {
        match self {
            FaultPhase::Injected { since } | FaultPhase::Effective { since } => since.elapsed() >= time,
            _ => false,
        }
    }

    /// The fault has been made. A persistent fault may be made again while it is active; `since` stays the
    /// first time.
    pub(super) fn inject(&mut self) {
        assert!(!self.is_over(), "a fault that is over is not injected again");
        if *self == FaultPhase::Armed {
            *self = FaultPhase::Injected { since: Instant::now() };
        }
        assert!(self.is_active());
    }

    /// Something shows the fault's effect. Returns whether this is the first evidence.
    pub(super) fn take_effect(&mut self) -> bool {
        assert!(self.was_injected(), "a fault that takes effect was injected");
        let is_first = !self.was_effective();
        *self = match *self {
            FaultPhase::Injected { since } => FaultPhase::Effective { since },
            FaultPhase::Ending { .. } => FaultPhase::Ending { was_effective: true },
            FaultPhase::Reverted { .. } => FaultPhase::Reverted { was_effective: true },
            unchanged => unchanged,
        };
        assert!(self.was_effective());
        is_first
    }

    /// The fault has reached its end.
    pub(super) fn end(&mut self) {
        assert!(self.is_active(), "only a fault that lasts can end");
        *self = FaultPhase::Ending { was_effective: self.was_effective() };
    }

    /// The fault is undone.
    pub(super) fn revert(&mut self) {
        assert!(self.was_injected(), "a fault that is reverted was injected");
        *self = FaultPhase::Reverted { was_effective: self.was_effective() };
    }

    /// The fault ended the target and waits for its trigger again.
    pub(super) fn arm_again(&mut self) {
        assert!(self.is_active(), "only a fault that lasts is armed again");
        *self = FaultPhase::Armed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_passes_through_its_phases_and_keeps_its_first_injection() {
        let mut phase = FaultPhase::Armed;
        assert!(!phase.was_injected());
        phase.inject();
        let first = phase;
        phase.inject();
        assert_eq!(phase, first);
        assert!(phase.has_lasted(Duration::ZERO) && !phase.has_lasted(Duration::from_secs(3600)));
        assert!(phase.take_effect(), "the first evidence");
        assert!(!phase.take_effect(), "the second evidence");
        assert!(phase.is_active());
        phase.end();
        assert!(phase.is_over() && !phase.is_active());
        phase.revert();
        assert_eq!(phase, FaultPhase::Reverted { was_effective: true });
    }

    #[test]
    fn evidence_may_arrive_after_the_revert() {
        let mut phase = FaultPhase::Armed;
        phase.inject();
        phase.revert();
        assert_eq!(phase, FaultPhase::Reverted { was_effective: false });
        assert!(phase.take_effect());
        assert_eq!(phase, FaultPhase::Reverted { was_effective: true });
    }

    #[test]
    fn a_fault_that_is_armed_again_can_be_injected_again() {
        let mut phase = FaultPhase::Armed;
        phase.inject();
        phase.take_effect();
        phase.arm_again();
        assert_eq!(phase, FaultPhase::Armed);
        phase.inject();
        assert!(!phase.was_effective());
    }

    #[test]
    #[should_panic(expected = "not injected again")]
    fn a_reverted_fault_is_never_injected_again() {
        let mut phase = FaultPhase::Armed;
        phase.inject();
        phase.revert();
        phase.inject();
    }

    #[test]
    #[should_panic(expected = "was injected")]
    fn a_fault_that_was_not_injected_has_no_effect() {
        FaultPhase::Armed.take_effect();
    }
}
