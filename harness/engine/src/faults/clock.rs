//! Another wall clock for the target. The gate answers its calls for the time. Knows no trigger.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use scenarios::{Clock, ClockChange};

use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::faults::target_clock::{ClockSetter, ClockUse, TargetClock};
use crate::gate::ClockShift;

/// A changed wall clock.
pub(super) struct ChangedClock {
    change: ClockChange,
    /// What it sets, once it was injected.
    clock: Option<(Arc<TargetClock>, ClockSetter)>,
}

impl ChangedClock {
    pub(super) fn new(planned: &Clock) -> ChangedClock {
        ChangedClock { change: planned.change(), clock: None }
    }

    fn used(&self) -> ClockUse {
        self.clock.as_ref().map(|(clock, setter)| clock.used(*setter)).unwrap_or_default()
    }
}

impl InjectableFault for ChangedClock {
    fn mechanism(&self) -> String {
        format!("calls for the wall clock are answered with another time: {}", self.change)
    }

    /// Injected again, a change by a time starts from where the clock is.
    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        let new = || (Arc::clone(context.clock), context.clock.new_setter());
        let (clock, setter) = self.clock.get_or_insert_with(new);
        let machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        clock.set(*setter, |before| ClockShift { nanos: self.change.shift_nanos(before.nanos, machine) });
        Ok(())
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        (self.used().told > 0 && self.withdrawn_evidence().is_none()).then(|| {
            format!(
                "the target asked for the time and was told another one: its wall clock is {}",
                self.change
            )
        })
    }

    fn revert(&mut self, _context: &FaultContext<'_>) -> Result<Option<String>, FaultError> {
        let used = self.used();
        let refused: Vec<&str> = used.refused.into_iter().collect();
        let refused = match refused[..] {
            [] => String::new(),
            _ => format!("; its calls of {} were refused with EPERM", refused.join(", ")),
        };
        let was_set = self.clock.as_ref().is_some_and(|(clock, setter)| clock.revert(*setter));
        Ok(was_set.then(|| format!("this change of the clock is over, after {} answers{refused}", used.told)))
    }

    fn withdrawn_evidence(&self) -> Option<String> {
        let (clock, _) = self.clock.as_ref()?;
        let what = clock.not_followed()?;
        Some(format!("not all of the target may have gone by the changed clock: {what}"))
    }

    fn missing_evidence(&self) -> String {
        "the target did not ask for the time after the change".into()
    }
}
