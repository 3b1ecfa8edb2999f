//! Follows where the target is in its phases. A phase begins and ends with a line that the target prints. Each line is
//! read from the write call of the process that prints it first, so it is in order with that process's other calls.
//! Knows no fault.

use std::collections::BTreeMap;

use regex::Regex;
use scenarios::TargetFile;

use crate::gate::FileId;
use crate::run::printed_lines::{FirstPrints, PrintedLine};

/// Patterns of the lines that begin and end a phase.
struct PhaseBounds {
    begins: Regex,
    ends: Regex,
}

/// Where the target is in each of several phases.
pub(super) struct PhaseTrackers {
    by_phase: BTreeMap<String, PhaseTracker>,
}

impl PhaseTrackers {
    /// Follows those of these phases that the target has.
    pub(super) fn new<'a>(target: &TargetFile, phases: impl IntoIterator<Item = &'a str>) -> PhaseTrackers {
        let tracker = |phase: &str| Some((phase.to_owned(), PhaseTracker::new(target, phase)?));
        PhaseTrackers { by_phase: phases.into_iter().filter_map(tracker).collect() }
    }

    /// The occurrence of this phase that the target is in, 1-based. `None` outside of it.
    pub(super) fn current_occurrence(&self, phase: &str) -> Option<u64> {
        self.by_phase.get(phase)?.current_occurrence()
    }

    /// Sets the outputs with which the target's main process is about to be started.
    pub(super) fn set_main_outputs(&mut self, outputs: &[FileId]) {
        self.by_phase.values_mut().for_each(|tracker| tracker.prints.set_main_outputs(outputs));
    }

    /// Follows a line. Returns the phases that end with it.
    pub(super) fn on_line(&mut self, line: &PrintedLine) -> Vec<String> {
        let ended = self
            .by_phase
            .iter_mut()
            .filter_map(|(phase, tracker)| tracker.on_line(line).then(|| phase.clone()));
        ended.collect()
    }
}

/// Where the target is in one phase.
struct PhaseTracker {
    bounds: PhaseBounds,
    /// Occurrences begun so far.
    occurrences: u64,
    is_inside: bool,
    prints: FirstPrints,
}

impl PhaseTracker {
    /// Follows the phase of this name, if the target has it.
    fn new(target: &TargetFile, phase: &str) -> Option<PhaseTracker> {
        let phase = target.phases().get(phase)?;
        Some(PhaseTracker {
            bounds: PhaseBounds { begins: phase.begins().clone(), ends: phase.ends().clone() },
            occurrences: 0,
            is_inside: false,
            prints: FirstPrints::default(),
        })
    }

    fn current_occurrence(&self) -> Option<u64> {
        self.is_inside.then_some(self.occurrences)
    }

    /// Follows one line. Returns whether the phase ends with it.
    fn on_line(&mut self, line: &PrintedLine) -> bool {
        let (begins, ends) = (self.bounds.begins.is_match(&line.text), self.bounds.ends.is_match(&line.text));
        if !(begins || ends) || !self.prints.is_first(line) {
            return false;
        }
        if begins {
            // An occurrence that never ended is not counted twice.
            self.occurrences += u64::from(!self.is_inside);
            self.is_inside = true;
            return false;
        }
        self.is_inside = false;
        true
    }
}
