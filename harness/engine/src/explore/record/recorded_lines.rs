//! Makes lines of what the target writes to pipes, and finds the acknowledged steps in them. Knows neither
//! files nor operations.

use std::collections::HashMap;

use regex::Regex;

use crate::gate::FileId;

/// A line is cut after this many bytes.
const MAX_LINE_BYTES: usize = 4096;

/// Which pipes are read, and what is looked for in their lines.
pub(super) struct RecordedLines {
    /// The pipes behind the target's standard output and standard error.
    output_pipes: Vec<FileId>,
    /// A line of the target's output that acknowledges a step; the group `step` is its number.
    saved_pattern: Option<Regex>,
    /// Lines in other pipes that are recorded too.
    internal_pattern: Option<Regex>,
    /// Bytes of each pipe after its last line end.
    partial_lines: HashMap<FileId, Vec<u8>>,
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
        internal_pattern: Option<Regex>,
    ) -> RecordedLines {
        RecordedLines { output_pipes, saved_pattern, internal_pattern, partial_lines: HashMap::new() }
    }

    /// Whether lines of this pipe may be recorded.
    pub(super) fn observes(&self, pipe: FileId) -> bool {
        self.internal_pattern.is_some() || self.output_pipes.contains(&pipe)
    }

    /// Returns the lines that these bytes complete and that are recorded.
    pub(super) fn add(&mut self, pipe: FileId, bytes: &[u8]) -> Vec<RecordedLine> {
        let mut text = self.partial_lines.remove(&pipe).unwrap_or_default();
        text.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            lines.extend(self.recorded_line(pipe, &line));
        }
        text.truncate(MAX_LINE_BYTES);
        self.partial_lines.insert(pipe, text);
        lines
    }

    /// Returns the last lines, those without a line end. The target must have ended.
    pub(super) fn take_last_lines(&mut self) -> Vec<RecordedLine> {
        let partial_lines = std::mem::take(&mut self.partial_lines);
        let last_lines = partial_lines.into_iter().filter(|(_, line)| !line.is_empty());
        last_lines.filter_map(|(pipe, line)| self.recorded_line(pipe, &line)).collect()
    }

    fn recorded_line(&self, pipe: FileId, line: &[u8]) -> Option<RecordedLine> {
        let on_stdio = self.output_pipes.contains(&pipe);
        let text = String::from_utf8_lossy(&line[..line.len().min(MAX_LINE_BYTES)]).trim_end().to_owned();
        if !on_stdio && !self.internal_pattern.as_ref().is_some_and(|pattern| pattern.is_match(&text)) {
            return None;
        }
        let saved_step = self
            .saved_pattern
            .as_ref()
            .filter(|_| on_stdio)
            .and_then(|pattern| pattern.captures(&text))
            .and_then(|captures| captures.name("step").map_or(Some(0), |step| step.as_str().parse().ok()));
        Some(RecordedLine { text, saved_step, on_stdio })
    }
}
