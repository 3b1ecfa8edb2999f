//! Measures the memory of the target's largest process while the target runs.

use std::time::{Duration, Instant};

use scenarios::Event;

use crate::observe::Reporter;
use crate::sandbox::Sandbox;

/// Time between two measurements.
const MEASURING_INTERVAL: Duration = Duration::from_millis(40);

/// The largest peak of a process so far.
pub(super) struct PeakMemory {
    peak_bytes: u64,
    measured_at: Instant,
}

impl PeakMemory {
    /// Nothing is measured yet.
    pub(super) fn new() -> PeakMemory {
        PeakMemory { peak_bytes: 0, measured_at: Instant::now() }
    }

    /// Measures again if the last measurement is old enough, and emits a new peak.
    pub(super) fn tick(&mut self, sandbox: &Sandbox, reporter: &Reporter) {
        if self.measured_at.elapsed() < MEASURING_INTERVAL {
            return;
        }
        self.measured_at = Instant::now();
        let peak_bytes = sandbox.processes().iter().map(|process| process.peak_bytes).max().unwrap_or(0);
        if peak_bytes > self.peak_bytes {
            self.peak_bytes = peak_bytes;
            reporter.emit(Event::Memory { peak_bytes });
        }
    }

    /// The peak, or `None` if it could not be read.
    pub(super) fn bytes(&self) -> Option<u64> {
        Some(self.peak_bytes).filter(|peak| *peak > 0)
    }
}
