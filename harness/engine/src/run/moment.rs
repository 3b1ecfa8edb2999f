//! The moments of a run at which faults are injected, and which triggers are due at which. Pure.

use std::time::Duration;

use scenarios::Trigger;

/// Something that happened in a run, at which triggers may be due.
#[derive(Debug, Clone, Copy)]
pub(super) enum Moment<'a> {
    /// The target is about to be started for the first time.
    Start,
    /// The target has ended and is about to be started again.
    Restart,
    /// The target announced this step.
    Step(u64),
    /// The target printed this line.
    Line(&'a str),
    /// This much time has passed since the target was started.
    Elapsed(Duration),
}

impl Moment<'_> {
    /// Whether the trigger is due now. A call trigger never is: the gate decides when its call happens.
    pub(super) fn is_due(self, trigger: &Trigger) -> bool {
        match (trigger, self) {
            (Trigger::Start, Moment::Start) | (Trigger::Restart, Moment::Restart) => true,
            (Trigger::Step(from), Moment::Step(step)) => step >= *from,
            (Trigger::Output(pattern), Moment::Line(line)) => pattern.is_match(line),
            (Trigger::After(time), Moment::Elapsed(elapsed)) => elapsed >= *time,
            _ => false,
        }
    }
}
