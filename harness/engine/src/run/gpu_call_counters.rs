//! The counters that a baseline run has in place of GPU faults. Knows no fault.

use scenarios::Trigger;

use crate::faults::{FaultContext, GpuCallCounter};
use crate::plan::GpuCountRequest;
use crate::run::error::RunError;
use crate::run::moment::Moment;

/// A counter that starts when the fault that it counts for would be injected.
struct TriggeredCounter {
    when: Trigger,
    counter: GpuCallCounter,
    is_started: bool,
}

/// Counters of GPU driver calls, in the order in which the plan requests them.
#[derive(Default)]
pub(super) struct GpuCallCounters {
    counters: Vec<TriggeredCounter>,
}

impl GpuCallCounters {
    /// One counter for each request, not started yet.
    pub(super) fn new(requests: &[GpuCountRequest]) -> GpuCallCounters {
        let counter = |request: &GpuCountRequest| TriggeredCounter {
            when: request.when.clone(),
            counter: GpuCallCounter::new(&request.calls),
            is_started: false,
        };
        GpuCallCounters { counters: requests.iter().map(counter).collect() }
    }

    /// Starts the counters that are due.
    ///
    /// # Errors
    /// If the target has no GPU or the plan of the shim cannot be written.
    pub(super) fn start_due(
        &mut self,
        moment: Moment<'_>,
        context: &FaultContext<'_>,
    ) -> Result<(), RunError> {
        let is_due = |counter: &&mut TriggeredCounter| !counter.is_started && moment.is_due(&counter.when);
        for triggered in self.counters.iter_mut().filter(is_due) {
            triggered.counter.start(context)?;
            triggered.is_started = true;
        }
        Ok(())
    }

    /// The counts, in the order of the requests.
    pub(super) fn counts(&self) -> Vec<u64> {
        self.counters.iter().map(|triggered| triggered.counter.count()).collect()
    }
}
