//! Makes lines of what the target writes to pipes, and finds the acknowledged steps in them. Knows neither
//! files nor operations.

use std::collections::{BTreeSet, HashMap};

use regex::Regex;
use scenarios::ExplorationNote;

use super::forward_waits::{ForwardWaits, PhaseLines};
use crate::announcements::{LineSplitter, plain_line};
use crate::gate::FileId;

/// No buffer of a C library is smaller. A program that writes line by line writes no such piece of a line.
const MIN_BLOCK_BYTES: usize = 1024;
/// Recorded lines that nothing is looked for in. Further ones are left out, so that a target that prints a lot needs
/// no memory for it.
const MAX_OTHER_LINES: usize = 50_000;

/// Which pipes are read, and what is looked for in their lines.
pub(super) struct RecordedLines {
    /// The pipes behind the target's standard output and standard error.
    output_pipes: Vec<FileId>,
    /// A line of the target's output that acknowledges a step; the group `step` is its number.
    saved_pattern: Option<Regex>,
    /// The first line is recorded in other pipes, too. A worker that prints the last one waits until it is forwarded.
    phase: Option<PhaseLines>,
    forward_waits: ForwardWaits,
    /// Lines that are recorded however many there are.
    announced: Vec<Regex>,
    splitters: HashMap<FileId, LineSplitter>,
    other_lines: usize,
    /// How many lines that acknowledge a step were written together with others, and so too late.
    buffered_lines: u64,
}

/// One line that is recorded.
pub(super) struct RecordedLine {
    pub(super) text: String,
    /// The step that it acknowledges.
    pub(super) saved_step: Option<u64>,
    /// On standard output or standard error, and not in another pipe.
    pub(super) on_stdio: bool,
}

impl RecordedLines {
    pub(super) fn new(
        output_pipes: Vec<FileId>,
        saved_pattern: Option<Regex>,
        phase: Option<PhaseLines>,
        announced: Vec<Regex>,
    ) -> RecordedLines {
        RecordedLines {
            output_pipes,
            saved_pattern,
            phase,
            forward_waits: ForwardWaits::default(),
            announced,
            splitters: HashMap::new(),
            other_lines: 0,
            buffered_lines: 0,
        }
    }

    /// Whether lines of this pipe may be recorded.
    pub(super) fn observes(&self, pipe: FileId) -> bool {
        self.phase.is_some() || self.output_pipes.contains(&pipe)
    }

    /// Whether the next call of this thread has to wait.
    pub(super) fn holds(&mut self, thread: i32) -> bool {
        self.forward_waits.holds(thread)
    }

    /// Returns the lines that these bytes of a thread complete and that are recorded.
    pub(super) fn add(&mut self, pipe: FileId, thread: i32, bytes: &[u8]) -> Vec<RecordedLine> {
        let mut splitter = self.splitters.remove(&pipe).unwrap_or_default();
        let mut lines = Vec::new();
        splitter.push(bytes, |line| {
            let (text, on_stdio) = (text_of(line), self.output_pipes.contains(&pipe));
            if self.phase.as_ref().is_some_and(|phase| phase.ends.is_match(&text)) {
                self.forward_waits.on_end(thread, on_stdio);
            }
            lines.extend(self.recorded_line(text, on_stdio));
        });
        self.splitters.insert(pipe, splitter);
        self.note_buffering(&lines, bytes);
        lines
    }

    /// Notices that a program writes its lines later than it prints them: saves of several steps are acknowledged
    /// by one write, or a large write ends in the middle of a line.
    fn note_buffering(&mut self, lines: &[RecordedLine], bytes: &[u8]) {
        let steps: Vec<u64> = lines.iter().filter_map(|line| line.saved_step).collect();
        let is_block = bytes.len() >= MIN_BLOCK_BYTES && !matches!(bytes.last(), Some(b'\n' | b'\r'));
        if steps.iter().collect::<BTreeSet<_>>().len() > 1 || (is_block && !steps.is_empty()) {
            self.buffered_lines += steps.len() as u64;
        }
    }

    /// What the user has to know about the output.
    pub(super) fn note(&self) -> Option<ExplorationNote> {
        let lines = self.buffered_lines;
        (lines > 0).then_some(ExplorationNote::BufferedOutput { lines })
    }

    /// Returns the last lines, those without a line end. The target must have ended.
    pub(super) fn take_last_lines(&mut self) -> Vec<RecordedLine> {
        let splitters = std::mem::take(&mut self.splitters).into_iter();
        let last_lines = splitters.filter_map(|(pipe, mut splitter)| Some((pipe, splitter.take_rest()?)));
        last_lines
            .filter_map(|(pipe, line)| self.recorded_line(text_of(&line), self.output_pipes.contains(&pipe)))
            .collect()
    }

    fn recorded_line(&mut self, text: String, on_stdio: bool) -> Option<RecordedLine> {
        let begins = self.phase.as_ref().map(|phase| &phase.begins);
        if !on_stdio && !begins.is_some_and(|begins| begins.is_match(&text)) {
            return None;
        }
        let saved_step = self
            .saved_pattern
            .as_ref()
            .filter(|_| on_stdio)
            .and_then(|pattern| pattern.captures(&text))
            .and_then(|captures| captures.name("step").map_or(Some(0), |step| step.as_str().parse().ok()));
        let mut announced = self.announced.iter().chain(begins);
        if saved_step.is_none() && !announced.any(|pattern| pattern.is_match(&text)) {
            self.other_lines += 1;
            if self.other_lines > MAX_OTHER_LINES {
                return None;
            }
        }
        Some(RecordedLine { text, saved_step, on_stdio })
    }
}

fn text_of(line: &[u8]) -> String {
    plain_line(&String::from_utf8_lossy(line)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: FileId = FileId { dev: 1, ino: 2 };

    /// How many lines were written too late, if these are the writes of a target.
    fn buffered(writes: &[&str]) -> u64 {
        let saved = Regex::new(r"^saved step (?<step>\d+)").ok();
        let mut lines = RecordedLines::new(vec![PIPE], saved, None, Vec::new());
        writes.iter().for_each(|bytes| drop(lines.add(PIPE, 1, bytes.as_bytes())));
        lines.buffered_lines
    }

    #[test]
    fn acknowledgements_of_several_steps_in_one_write_are_late() {
        let rest_of_block = "x".repeat(MIN_BLOCK_BYTES);
        assert_eq!(buffered(&["saved step 1\nstep 2\nsaved step 2\n"]), 2);
        assert_eq!(buffered(&["saved step 1\n", "saved step 2\nsaved step 3\nsaved step 4\nsum\n"]), 3);
        assert_eq!(buffered(&["saved st", "ep 1\nsaved step 2\n"]), 2);
        assert_eq!(buffered(&[&format!("saved step 1\n{rest_of_block}"), "\n"]), 1);
    }

    #[test]
    fn lines_that_are_written_one_by_one_or_in_pieces_are_not() {
        let long_line = format!("saved step 1 {}\n", "x".repeat(2 * MIN_BLOCK_BYTES));
        assert_eq!(buffered(&["saved step 1\n", "saved step 2\n"]), 0);
        assert_eq!(buffered(&["saved step", " ", "1", "\n", "saved step", " ", "2", "\n"]), 0);
        assert_eq!(buffered(&["saved step 1\nsum 4\n", "step 2\nsaved step 2\n"]), 0);
        assert_eq!(buffered(&["saved step 1 (model)\nsaved step 1 (optimizer)\n", &long_line]), 0);
    }
}
