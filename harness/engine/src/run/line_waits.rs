//! Holds a process of the target that has printed a line for which a fault waits, until the fault is injected or, if
//! it is awaited, done: so no later line of it comes first. Knows no mechanism of a fault.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use scenarios::{TargetFile, Trigger};

use crate::announcements::{Announced, AnnouncementPatterns};
use crate::plan::PlannedFault;
use crate::run::moment::Moment;

/// How long a thread is held at most. A line of a worker process may never reach the target's own outputs.
const MAX_HOLD: Duration = Duration::from_secs(3);

/// The faults that wait for a line, and the threads that have printed one.
#[derive(Default)]
pub(super) struct LineWaits {
    patterns: AnnouncementPatterns,
    triggers: BTreeMap<u32, Trigger>,
    /// The faults among them that have not been injected, or are awaited.
    waiting: Vec<u32>,
    held: BTreeMap<i32, HeldThread>,
    /// The faults for which a thread has waited in vain, and that are not told yet.
    in_vain: Vec<u32>,
}

/// A thread that has printed a line.
struct HeldThread {
    since: Instant,
    /// The faults that are due with the line.
    faults: Vec<u32>,
}

impl LineWaits {
    /// Of these faults, those that wait for a step or another line.
    pub(super) fn of(target: &TargetFile, faults: &[PlannedFault]) -> LineWaits {
        let triggers: BTreeMap<u32, Trigger> = faults
            .iter()
            .filter_map(|planned| Some((planned.number, planned.line_trigger()?.clone())))
            .collect();
        LineWaits {
            patterns: AnnouncementPatterns::of_target(target),
            waiting: triggers.keys().copied().collect(),
            triggers,
            held: BTreeMap::new(),
            in_vain: Vec::new(),
        }
    }

    /// The faults for which a thread has waited in vain. Each is told once.
    pub(super) fn take_in_vain(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.in_vain)
    }

    /// Whether a fault waits for a line.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A process is about to be started. Those before it are dead.
    pub(super) fn begin_attempt(&mut self) {
        self.held.clear();
    }

    /// A thread prints this line.
    pub(super) fn on_line(&mut self, thread: i32, line: &str) {
        if !self.is_waiting() {
            return;
        }
        let announcements = self.patterns.parse(line);
        let step = announcements.iter().find_map(|announcement| match announcement.what {
            Announced::Step { step, .. } => Some(Moment::Step(step)),
            _ => None,
        });
        let moments = [step, Some(Moment::Line(line))];
        let is_due = |fault: &&u32| {
            let trigger = self.triggers.get(*fault);
            trigger.is_some_and(|trigger| moments.iter().flatten().any(|moment| moment.is_due(trigger)))
        };
        let faults: Vec<u32> = self.waiting.iter().filter(is_due).copied().collect();
        if !faults.is_empty() {
            self.held.entry(thread).or_insert(HeldThread { since: Instant::now(), faults });
        }
    }

    /// The faults that still wait, after a line was handled: threads are not held any more for others.
    pub(super) fn set_waiting(&mut self, waiting: Vec<u32>) {
        self.held.retain(|_, held| held.faults.iter().any(|fault| waiting.contains(fault)));
        self.waiting = waiting;
    }

    /// Whether the next call of this thread has to wait. For a line that is not handled in time no thread is held
    /// again.
    pub(super) fn holds(&mut self, thread: i32) -> bool {
        let Some(HeldThread { since, faults }) = self.held.get(&thread) else { return false };
        if since.elapsed() <= MAX_HOLD {
            return true;
        }
        let late = faults.clone();
        self.held.clear();
        self.waiting.retain(|fault| !late.contains(fault));
        late.iter().for_each(|fault| drop(self.triggers.remove(fault)));
        self.in_vain.extend(late);
        false
    }
}
