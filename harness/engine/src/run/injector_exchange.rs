//! What a run and its call injector tell each other at any time. It has a lock of its own, which neither keeps: the
//! injector is locked while a call waits until the run has injected a fault.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::gate::GateFailure;
use crate::run::line_waits::LineWaits;

/// What a run and its call injector tell each other.
pub(super) struct InjectorExchange {
    /// The threads of the target that wait because of a line.
    pub(super) line_waits: LineWaits,
    /// The first failure of the gate. The trial is worth nothing then.
    pub(super) failure: Option<GateFailure>,
    /// The faults at calls that are over: later calls are not altered.
    pub(super) ended_faults: BTreeSet<u32>,
    /// The run has done everything that was due at this time. `None`: it does nothing by the time.
    done_until: Option<Instant>,
}

impl InjectorExchange {
    pub(super) fn new(line_waits: LineWaits) -> InjectorExchange {
        InjectorExchange { line_waits, failure: None, ended_faults: BTreeSet::new(), done_until: None }
    }

    /// The run has done everything that was due at this time. `None`: it does nothing by the time from now on.
    pub(super) fn set_done_until(&mut self, time: Option<Instant>) {
        self.done_until = time;
    }

    /// Whether a delay that is over at `due` may end. What is due before it comes before it, such as a second signal,
    /// however busy the machine is.
    pub(super) fn may_end_delay(&self, due: Instant) -> bool {
        self.done_until.is_none_or(|done| due <= done)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_delay_ends_after_everything_that_is_due_before_it() {
        let mut exchange = InjectorExchange::new(LineWaits::default());
        let due = Instant::now();
        assert!(exchange.may_end_delay(due), "a run that does nothing by the time is not waited for");
        exchange.set_done_until(Some(due - Duration::from_millis(1)));
        assert!(!exchange.may_end_delay(due));
        exchange.set_done_until(Some(due));
        assert!(exchange.may_end_delay(due));
        assert!(!exchange.may_end_delay(due + Duration::from_millis(1)));
    }
}
