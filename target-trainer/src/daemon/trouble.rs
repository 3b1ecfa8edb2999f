//! Something that keeps failing: it is reported once for each cause, and tried again later and later. Knows
//! nothing of what is tried.

use std::time::{Duration, Instant};

/// Wait before the second attempt. It doubles with each failure.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Longest wait between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// A failure that is tried again.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    message: String,
    since: Instant,
    delay: Duration,
    next_try: Instant,
}

impl Trouble {
    /// Records a failure in `slot`. Returns whether it is to be reported: it is the first, or has another
    /// message than the one before.
    pub(super) fn record(slot: &mut Option<Trouble>, message: &str) -> bool {
        let now = Instant::now();
        let before = slot.take();
        let is_new = before.as_ref().is_none_or(|before| before.message != message);
        let delay = before.as_ref().map_or(FIRST_DELAY, |before| (before.delay * 2).min(MAX_DELAY));
        let since = before.map_or(now, |before| before.since);
        *slot = Some(Trouble { message: message.to_owned(), since, delay, next_try: now + delay });
        is_new
    }

    /// What failed.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// How long it has been failing.
    pub(super) fn lasted(&self) -> Duration {
        self.since.elapsed()
    }

    /// Time of the next attempt.
    pub(super) fn next_try(&self) -> Instant {
        self.next_try
    }

    /// Whether it is time for another attempt.
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.next_try
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_reported_once_and_the_waits_grow_up_to_a_limit() {
        let mut slot = None;
        assert!(Trouble::record(&mut slot, "a"));
        assert!(!Trouble::record(&mut slot, "a"));
        assert!(Trouble::record(&mut slot, "b"));
        let delay = slot.as_ref().unwrap().delay;
        assert_eq!(delay, FIRST_DELAY * 4);
        assert!((0..100).all(|_| !Trouble::record(&mut slot, "b")));
        assert_eq!(slot.unwrap().delay, MAX_DELAY);
    }
}
