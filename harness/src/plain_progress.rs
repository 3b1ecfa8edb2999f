//! The progress of `explore` without a terminal: a line when a phase begins that is silent otherwise, and one every ten
//! seconds. Knows no exploration.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::locks::LockExt;
use scenarios::{grouped, speed_text, time_text};

use crate::print;

/// Time between two lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// How often it is looked whether a line is due.
const TICK: Duration = Duration::from_millis(250);

/// What an exploration is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgressPhase {
    /// Recording a run, which has lines of its own.
    Recording,
    Enumerating,
    Controls,
    Trying,
    Confirming,
}

/// How far an exploration has come.
pub(crate) struct PlainProgress {
    phase: ProgressPhase,
    /// When the phase began.
    began: Instant,
    /// When the last line was printed.
    printed: Instant,
    /// How many states are to be tried.
    pub(crate) states: usize,
    pub(crate) done: usize,
    pub(crate) failing: usize,
}

impl PlainProgress {
    pub(crate) fn new() -> PlainProgress {
        let now = Instant::now();
        let phase = ProgressPhase::Recording;
        PlainProgress { phase, began: now, printed: now, states: 0, done: 0, failing: 0 }
    }

    pub(crate) fn begin(&mut self, phase: ProgressPhase) {
        let now = Instant::now();
        *self = PlainProgress { phase, began: now, printed: now, states: self.states, done: 0, failing: 0 };
    }

    /// Begins to try the states again. Returns whether they are being tried.
    pub(crate) fn restart_trying(&mut self) -> bool {
        let is_trying = self.phase == ProgressPhase::Trying;
        if is_trying {
            self.begin(ProgressPhase::Trying);
        }
        is_trying
    }

    /// The line that is due.
    fn line_at(&mut self, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.printed) < LINE_INTERVAL {
            return None;
        }
        self.printed = now;
        self.text(now.saturating_duration_since(self.began).as_secs_f64())
    }

    /// What is said after so many seconds of the phase.
    fn text(&self, seconds: f64) -> Option<String> {
        let doing = match self.phase {
            ProgressPhase::Recording => return None,
            ProgressPhase::Enumerating => "computing the crash states",
            ProgressPhase::Controls => "recovering from undamaged files",
            ProgressPhase::Confirming => "confirming the findings",
            ProgressPhase::Trying => {
                let (done, states) = (grouped(self.done as u64), grouped(self.states as u64));
                let speed = speed_text(self.done as u64, seconds);
                let rest = rest_text(self.done, self.states, seconds);
                return Some(format!(
                    "trying crash states: {done} of {states}, {} failing, {speed}{rest}",
                    self.failing
                ));
            }
        };
        Some(format!("{doing}: {}", time_text(seconds)))
    }
}

/// How long the other states will take, if they take as long as those that were tried. Empty: not known.
pub(crate) fn rest_text(done: usize, states: usize, seconds: f64) -> String {
    match states.checked_sub(done) {
        Some(rest) if done > 0 && rest > 0 => {
            format!(", about {} left", time_text(seconds / done as f64 * rest as f64))
        }
        _ => String::new(),
    }
}

/// A thread that prints the lines. Ends when it is dropped.
pub(crate) struct ProgressTicker {
    /// `None` once the thread was asked to end.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ProgressTicker {
    pub(crate) fn start(progress: Arc<Mutex<PlainProgress>>) -> ProgressTicker {
        let (stop, stopped) = channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let line = progress.locked().line_at(Instant::now());
                line.iter().for_each(|line| print::line(line));
            }
        });
        ProgressTicker { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for ProgressTicker {
    fn drop(&mut self) {
        self.stop = None;
        // A thread that has panicked prints nothing more.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trying(done: usize) -> PlainProgress {
        let mut progress = PlainProgress::new();
        progress.states = 1626;
        progress.begin(ProgressPhase::Trying);
        (progress.done, progress.failing) = (done, 3);
        progress
    }

    #[test]
    fn a_line_about_states_has_the_speed_and_the_time_that_is_left() {
        let slow = "trying crash states: 4 of 1,626, 3 failing, 5.2 s a state, about 2 h 21 min left";
        assert_eq!(trying(4).text(20.8).as_deref(), Some(slow));
        let fast = "trying crash states: 1,000 of 1,626, 3 failing, 100 states/s, about 6 s left";
        assert_eq!(trying(1000).text(10.0).as_deref(), Some(fast));
        let none = "trying crash states: 0 of 1,626, 3 failing, no state yet";
        assert_eq!(trying(0).text(10.0).as_deref(), Some(none));
    }

    #[test]
    fn a_line_is_due_every_ten_seconds_in_each_phase_that_prints_none_itself() {
        let mut progress = trying(7);
        let began = progress.began;
        let due = [0, 9, 10, 15, 19, 20]
            .map(|seconds| progress.line_at(began + Duration::from_secs(seconds)).is_some());
        assert_eq!(due, [false, false, true, false, false, true]);
        for phase in [ProgressPhase::Enumerating, ProgressPhase::Controls, ProgressPhase::Confirming] {
            progress.begin(phase);
            let line = progress.line_at(progress.began + LINE_INTERVAL).unwrap();
            assert!(line.ends_with(": 10 s"), "{line}");
        }
        progress.begin(ProgressPhase::Recording);
        assert_eq!(progress.line_at(progress.began + LINE_INTERVAL), None);
    }

    #[test]
    fn states_that_are_tried_again_are_counted_again() {
        let mut progress = trying(7);
        assert!(progress.restart_trying());
        assert_eq!((progress.done, progress.states), (0, 1626));
        progress.begin(ProgressPhase::Controls);
        assert!(!progress.restart_trying());
    }
}
