//! How long somebody has been waiting for the device: a kernel that never ends is noticed by who looks from outside.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Waits that are going on, of all threads.
#[derive(Debug, Default)]
pub struct Pulse {
    numbers: AtomicU64,
    waits: Mutex<Vec<(u64, Instant)>>,
}

/// A wait, until it is dropped.
#[must_use = "dropping it ends the wait"]
#[derive(Debug)]
pub struct Waiting<'a> {
    pulse: &'a Pulse,
    number: u64,
}

impl Pulse {
    /// Every call that may wait for the device is made while the answer lives.
    pub fn waiting(&self) -> Waiting<'_> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.waits().push((number, Instant::now()));
        Waiting { pulse: self, number }
    }

    /// Since when the longest of the waits goes on.
    pub fn stuck_for(&self) -> Option<Duration> {
        self.waits().iter().map(|(_, since)| since.elapsed()).max()
    }

    fn waits(&self) -> MutexGuard<'_, Vec<(u64, Instant)>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pulse.waits().retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_counts_and_none_does_when_all_are_over() {
        let pulse = Pulse::default();
        assert_eq!(pulse.stuck_for(), None);
        let long = pulse.waiting();
        std::thread::sleep(Duration::from_millis(20));
        drop(pulse.waiting());
        let short = pulse.waiting();
        assert!(pulse.stuck_for() >= Some(Duration::from_millis(20)));
        drop(long);
        assert!(pulse.stuck_for() < Some(Duration::from_millis(20)));
        drop(short);
        assert_eq!(pulse.stuck_for(), None);
    }
}
