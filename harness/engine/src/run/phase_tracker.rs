//! Follows where the target is in its phases. A phase begins and ends with a line that the target
//! prints. Each line is read from the write call of the process that prints it first, so it is in order with
//! that process's other calls. Knows no fault.

use std::collections::{BTreeMap, HashMap};

use regex::Regex;
use scenarios::TargetFile;

use crate::gate::FileId;

/// Longest line that is compared with the patterns, in bytes.
const MAX_LINE_BYTES: usize = 4096;

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
        self.by_phase.values_mut().for_each(|tracker| tracker.set_main_outputs(outputs));
    }

    /// Another call begins, so what was written so far is not part of its line.
    pub(super) fn clear_written(&mut self) {
        self.by_phase.values_mut().for_each(PhaseTracker::clear_written);
    }

    /// Bytes that the current call writes. They count only if the call turns out to write to an output.
    pub(super) fn on_payload(&mut self, bytes: &[u8]) {
        self.by_phase.values_mut().for_each(|tracker| tracker.on_payload(bytes));
    }

    /// The current call has written to this output. Returns the phases that have ended with it.
    pub(super) fn on_output_written(&mut self, pipe: FileId) -> Vec<String> {
        let ended = self
            .by_phase
            .iter_mut()
            .filter_map(|(phase, tracker)| tracker.on_output_written(pipe).then(|| phase.clone()));
        ended.collect()
    }
}

/// Where the target is in one phase.
struct PhaseTracker {
    bounds: PhaseBounds,
    /// Occurrences begun so far.
    occurrences: u64,
    is_inside: bool,
    /// Bytes of the current write to an output.
    written_bytes: Vec<u8>,
    /// For each output, the start of a line that is not complete.
    partial_lines: HashMap<FileId, Vec<u8>>,
    /// Outputs of the target's main process.
    main_outputs: Vec<FileId>,
    /// A worker process prints the lines of the phase itself. The main process then only forwards them,
    /// later.
    workers_announce: bool,
    /// Lines that another process may forward, each with the pipe in which it was printed first.
    first_printed_in: HashMap<String, FileId>,
}

impl PhaseTracker {
    /// Follows the phase of this name, if the target has it.
    fn new(target: &TargetFile, phase: &str) -> Option<PhaseTracker> {
        let phase = target.phases().get(phase)?;
        Some(PhaseTracker {
            bounds: PhaseBounds { begins: phase.begins().clone(), ends: phase.ends().clone() },
            occurrences: 0,
            is_inside: false,
            written_bytes: Vec::new(),
            partial_lines: HashMap::new(),
            main_outputs: Vec::new(),
            workers_announce: false,
            first_printed_in: HashMap::new(),
        })
    }

    fn current_occurrence(&self) -> Option<u64> {
        self.is_inside.then_some(self.occurrences)
    }

    fn set_main_outputs(&mut self, outputs: &[FileId]) {
        (self.main_outputs, self.workers_announce) = (outputs.to_vec(), false);
    }

    fn clear_written(&mut self) {
        self.written_bytes.clear();
    }

    fn on_payload(&mut self, bytes: &[u8]) {
        let len_bytes = MAX_LINE_BYTES.saturating_sub(self.written_bytes.len()).min(bytes.len());
        self.written_bytes.extend_from_slice(&bytes[..len_bytes]);
    }

    /// Returns whether the phase ends with one of the lines that are now complete.
    fn on_output_written(&mut self, pipe: FileId) -> bool {
        let mut text = self.partial_lines.remove(&pipe).unwrap_or_default();
        text.append(&mut self.written_bytes);
        let mut has_ended = false;
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            has_ended |= self.on_line(pipe, String::from_utf8_lossy(&line).trim_end());
        }
        text.truncate(MAX_LINE_BYTES);
        self.partial_lines.insert(pipe, text);
        has_ended
    }

    /// Follows one line, which was printed in `pipe`. Returns whether the phase ends with it.
    fn on_line(&mut self, pipe: FileId, line: &str) -> bool {
        let (begins, ends) = (self.bounds.begins.is_match(line), self.bounds.ends.is_match(line));
        if !begins && !ends {
            return false;
        }
        let is_from_main = self.main_outputs.contains(&pipe);
        self.workers_announce |= !is_from_main;
        if is_from_main && self.workers_announce {
            return false;
        }
        match self.first_printed_in.get(line) {
            // Another process forwards the line, as a supervisor does with its worker's output.
            Some(first) if *first != pipe => {
                self.first_printed_in.remove(line);
                return false;
            }
            _ => drop(self.first_printed_in.insert(line.to_owned(), pipe)),
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
