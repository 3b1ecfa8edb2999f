//! Follows where the target is in one of its phases. A phase begins and ends with a line that the target
//! prints. Each line is read from the write call of the process that prints it first, so it is in order with
//! that process's other calls. Knows no fault.

use std::collections::HashMap;

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

/// The end of one occurrence of the phase.
pub(super) struct PhaseEnd {
    /// 1-based.
    pub(super) occurrence: u64,
}

/// Where the target is in its phase.
pub(super) struct PhaseTracker {
    /// `None`: no phase is followed.
    bounds: Option<PhaseBounds>,
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
    pub(super) fn new(target: &TargetFile, phase: Option<&str>) -> PhaseTracker {
        let phase = phase.and_then(|phase| target.phases().get(phase));
        let bounds =
            phase.map(|phase| PhaseBounds { begins: phase.begins().clone(), ends: phase.ends().clone() });
        PhaseTracker {
            bounds,
            occurrences: 0,
            is_inside: false,
            written_bytes: Vec::new(),
            partial_lines: HashMap::new(),
            main_outputs: Vec::new(),
            workers_announce: false,
            first_printed_in: HashMap::new(),
        }
    }

    /// Whether the target is in this occurrence of the phase, 1-based.
    pub(super) fn is_inside_of(&self, occurrence: u64) -> bool {
        self.is_inside && self.occurrences == occurrence
    }

    /// The occurrence that the target is in, 1-based. `None` outside of the phase.
    pub(super) fn current_occurrence(&self) -> Option<u64> {
        self.is_inside.then_some(self.occurrences)
    }

    /// Sets the outputs with which the target's main process is about to be started.
    pub(super) fn set_main_outputs(&mut self, outputs: Vec<FileId>) {
        (self.main_outputs, self.workers_announce) = (outputs, false);
    }

    /// Another call begins, so what was written so far is not part of its line.
    pub(super) fn clear_written(&mut self) {
        self.written_bytes.clear();
    }

    /// Bytes that the current call writes. They count only if the call turns out to write to an output.
    pub(super) fn on_payload(&mut self, bytes: &[u8]) {
        let len_bytes = MAX_LINE_BYTES.saturating_sub(self.written_bytes.len()).min(bytes.len());
        self.written_bytes.extend_from_slice(&bytes[..len_bytes]);
    }

    /// The current call has written to this output. Returns the phase ends among the lines that are now
    /// complete.
    pub(super) fn on_output_written(&mut self, pipe: FileId) -> Vec<PhaseEnd> {
        let mut text = self.partial_lines.remove(&pipe).unwrap_or_default();
        text.append(&mut self.written_bytes);
        let mut ends = Vec::new();
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            ends.extend(self.on_line(pipe, String::from_utf8_lossy(&line).trim_end()));
        }
        text.truncate(MAX_LINE_BYTES);
        self.partial_lines.insert(pipe, text);
        ends
    }

    /// Follows one line, which was printed in `pipe`.
    fn on_line(&mut self, pipe: FileId, line: &str) -> Option<PhaseEnd> {
        let bounds = self.bounds.as_ref()?;
        let (begins, ends) = (bounds.begins.is_match(line), bounds.ends.is_match(line));
        if !begins && !ends {
            return None;
        }
        let is_from_main = self.main_outputs.contains(&pipe);
        self.workers_announce |= !is_from_main;
        if is_from_main && self.workers_announce {
            return None;
        }
        match self.first_printed_in.get(line) {
            // Another process forwards the line, as a supervisor does with its worker's output.
            Some(first) if *first != pipe => {
                self.first_printed_in.remove(line);
                return None;
            }
            _ => drop(self.first_printed_in.insert(line.to_owned(), pipe)),
        }
        if begins {
            // An occurrence that never ended is not counted twice.
            self.occurrences += u64::from(!self.is_inside);
            self.is_inside = true;
            return None;
        }
        self.is_inside = false;
        Some(PhaseEnd { occurrence: self.occurrences })
    }
}
