//! Measures how long threads have been waiting for the device. A watchdog thread uses it to detect a kernel
//! that never ends. Knows nothing of CUDA.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::locks::LockExt;
use crate::progress;

/// The current waits of all threads.
#[derive(Debug, Default)]
pub struct WaitTracker {
    next_id: AtomicU64,
    active_waits: Mutex<Vec<(u64, Instant)>>,
}

/// A wait in progress. It ends when this value is dropped.
#[must_use = "dropping it ends the wait"]
#[derive(Debug)]
pub struct ActiveWait<'a> {
    tracker: &'a WaitTracker,
    id: u64,
}

impl WaitTracker {
    /// Marks the start of a call that may block on the device. Keep the returned value until the call has
    /// returned.
    pub fn begin_wait(&self) -> ActiveWait<'_> {
        progress::advance();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.active_waits.locked().push((id, Instant::now()));
        ActiveWait { tracker: self, id }
    }

    /// Returns the duration of the longest current wait, or `None` if no thread is waiting.
    pub fn longest_wait(&self) -> Option<Duration> {
        self.active_waits.locked().iter().map(|(_, start)| start.elapsed()).max()
    }
}

impl Drop for ActiveWait<'_> {
    fn drop(&mut self) {
        self.tracker.active_waits.locked().retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_wait_is_reported_until_all_waits_end() {
        let tracker = WaitTracker::default();
        assert_eq!(tracker.longest_wait(), None);
        let long = tracker.begin_wait();
        std::thread::sleep(Duration::from_millis(20));
        drop(tracker.begin_wait());
        let short = tracker.begin_wait();
        assert!(tracker.longest_wait() >= Some(Duration::from_millis(20)));
        drop(long);
        assert!(tracker.longest_wait() < Some(Duration::from_millis(20)));
        drop(short);
        assert_eq!(tracker.longest_wait(), None);
    }
}
