//! Holds a worker process that has told its supervisor that a phase ended, until the supervisor has told the user. On a
//! busy machine the worker would be in its next phase by then, and the same run would have other crash states. Knows
//! no operation.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regex::Regex;

/// How long a thread is held at most. Its supervisor may tell nobody.
const MAX_HOLD: Duration = Duration::from_secs(1);

/// Lines with which a phase of the target begins and ends.
#[derive(Debug, Clone)]
pub struct PhaseLines {
    /// The first line.
    pub begins: Regex,
    /// The last line.
    pub ends: Regex,
}

/// The threads whose line is not forwarded yet.
#[derive(Default)]
pub(super) struct ForwardWaits {
    since: BTreeMap<i32, Instant>,
    /// Whether a supervisor has told the user what a worker had told it.
    is_forwarding: bool,
    /// A thread was held in vain, and no supervisor has ever told the user.
    is_useless: bool,
}

impl ForwardWaits {
    /// This thread has printed the last line of a phase.
    pub(super) fn on_end(&mut self, thread: i32, on_stdio: bool) {
        if on_stdio {
            self.is_forwarding |= !self.since.is_empty();
            self.since.clear();
        } else if !self.is_useless {
            self.since.insert(thread, Instant::now());
        }
    }

    /// Whether the next call of this thread has to wait.
    pub(super) fn holds(&mut self, thread: i32) -> bool {
        let is_waiting = self.since.get(&thread).is_some_and(|since| since.elapsed() <= MAX_HOLD);
        if !is_waiting && self.since.remove(&thread).is_some() {
            self.is_useless |= !self.is_forwarding;
        }
        is_waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_waits_until_its_line_was_forwarded() {
        let mut waits = ForwardWaits::default();
        assert!(!waits.holds(7));
        waits.on_end(7, false);
        assert!(waits.holds(7) && !waits.holds(1), "the supervisor goes on");
        waits.on_end(1, true);
        assert!(!waits.holds(7) && !waits.holds(1));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let mut waits = ForwardWaits::default();
        waits.on_end(7, false);
        waits.since.insert(7, Instant::now() - 2 * MAX_HOLD);
        assert!(!waits.holds(7) && waits.since.is_empty());
    }

    #[test]
    fn where_nothing_is_forwarded_one_thread_waits_once() {
        let mut waits = ForwardWaits::default();
        let hold_in_vain = |waits: &mut ForwardWaits| {
            waits.on_end(7, false);
            waits.since.entry(7).and_modify(|since| *since -= 2 * MAX_HOLD);
            waits.holds(7)
        };
        assert!(!hold_in_vain(&mut waits));
        waits.on_end(7, false);
        assert!(!waits.holds(7), "nobody forwards");
        let mut waits = ForwardWaits::default();
        waits.on_end(1, true);
        assert!(!hold_in_vain(&mut waits));
        waits.on_end(7, false);
        assert!(!waits.holds(7), "the line was printed before, and not forwarded");
        let mut waits = ForwardWaits::default();
        waits.on_end(7, false);
        waits.on_end(1, true);
        assert!(!hold_in_vain(&mut waits));
        waits.on_end(7, false);
        assert!(waits.holds(7), "it was only late");
    }
}
