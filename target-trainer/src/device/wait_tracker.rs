//! How long somebody has been waiting for the device: a kernel that never ends is noticed by who looks from outside.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Waits that are going on, of all threads.
#[derive(Debug, Default)]
pub struct WaitTracker {
    next_id: AtomicU64,
    active_waits: Mutex<Vec<(u64, Instant)>>,
}

/// A wait, until it is dropped.
#[must_use = "dropping it ends the wait"]
#[derive(Debug)]
pub struct ActiveWait<'a> {
    tracker: &'a WaitTracker,
    id: u64,
}

impl WaitTracker {
    /// Every call that may wait for the device is made while the answer lives.
    pub fn begin_wait(&self) -> ActiveWait<'_> {
        let number = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.active_waits().push((number, Instant::now()));
        ActiveWait { tracker: self, id: number }
    }

    /// Since when the longest of the waits goes on.
    pub fn longest_wait(&self) -> Option<Duration> {
        self.active_waits().iter().map(|(_, since)| since.elapsed()).max()
    }

    fn active_waits(&self) -> MutexGuard<'_, Vec<(u64, Instant)>> {
        self.active_waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ActiveWait<'_> {
    fn drop(&mut self) {
        self.tracker.active_waits().retain(|(number, _)| *number != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_wait_is_reported_until_all_waits_end() {
        let pulse = WaitTracker::default();
        assert_eq!(pulse.longest_wait(), None);
        let long = pulse.begin_wait();
        std::thread::sleep(Duration::from_millis(20));
        drop(pulse.begin_wait());
        let short = pulse.begin_wait();
        assert!(pulse.longest_wait() >= Some(Duration::from_millis(20)));
        drop(long);
        assert!(pulse.longest_wait() < Some(Duration::from_millis(20)));
        drop(short);
        assert_eq!(pulse.longest_wait(), None);
    }
}
