//! Keeps the lines of a command's outputs that match a pattern, in the order in which they arrive. Part of the init
//! process; knows no meaning of a line.

use std::collections::VecDeque;

use regex::RegexSet;

use crate::announcements::{LineSplitter, plain_line};

/// Bytes that are kept of the first lines, and of the last ones.
const MAX_KEPT_BYTES: usize = 1 << 20;

/// The matching lines of one run.
pub(super) struct WatchedLines<'a> {
    patterns: &'a RegexSet,
    splitters: [LineSplitter; 2],
    first: Vec<String>,
    last: VecDeque<String>,
    first_bytes: usize,
    last_bytes: usize,
    left_out: u64,
}

/// What was kept of the matching lines.
pub(super) struct KeptLines {
    pub(super) lines: Vec<String>,
    /// How many more there were, in the middle.
    pub(super) left_out: u64,
}

impl<'a> WatchedLines<'a> {
    pub(super) fn new(patterns: &'a RegexSet) -> WatchedLines<'a> {
        let (first, last) = (Vec::new(), VecDeque::new());
        let splitters = <[LineSplitter; 2]>::default();
        WatchedLines { patterns, splitters, first, last, first_bytes: 0, last_bytes: 0, left_out: 0 }
    }

    /// Takes bytes of one of the outputs.
    pub(super) fn add(&mut self, output: usize, bytes: &[u8]) {
        if self.patterns.is_empty() {
            return;
        }
        let mut splitter = std::mem::take(&mut self.splitters[output]);
        splitter.push(bytes, |line| self.keep(line));
        self.splitters[output] = splitter;
    }

    fn keep(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let plain = plain_line(&text);
        if !self.patterns.is_match(&plain) {
            return;
        }
        if self.first_bytes + plain.len() <= MAX_KEPT_BYTES && self.last.is_empty() {
            self.first_bytes += plain.len() + 1;
            self.first.push(plain.into_owned());
            return;
        }
        self.last_bytes += plain.len() + 1;
        self.last.push_back(plain.into_owned());
        while self.last_bytes > MAX_KEPT_BYTES
            && let Some(line) = self.last.pop_front()
        {
            self.last_bytes -= line.len() + 1;
            self.left_out += 1;
        }
    }

    /// The lines, with the last ones that have no end.
    pub(super) fn into_kept(mut self) -> KeptLines {
        for mut splitter in std::mem::take(&mut self.splitters) {
            splitter.take_rest().iter().for_each(|rest| self.keep(rest));
        }
        KeptLines { lines: self.first.into_iter().chain(self.last).collect(), left_out: self.left_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_lines_are_kept_wherever_they_are_in_a_long_output() {
        let patterns = RegexSet::new(["^saved", "^resumed"]).expect("the patterns are right");
        let mut watched = WatchedLines::new(&patterns);
        let noise = "a line of a log\n".repeat(100_000);
        for text in ["resumed 3\r", &noise, "saved ", "6\n", &noise, "saved 9"] {
            watched.add(0, text.as_bytes());
        }
        watched.add(1, b"\x1b[1msaved\x1b[0m 12\n");
        let kept = watched.into_kept();
        assert_eq!(kept.lines, ["resumed 3", "saved 6", "saved 12", "saved 9"]);
        assert_eq!(kept.left_out, 0);
    }

    #[test]
    fn of_too_many_matching_lines_the_first_and_the_last_are_kept() {
        let patterns = RegexSet::new(["^step"]).expect("the pattern is right");
        let mut watched = WatchedLines::new(&patterns);
        let count = 400_000;
        (0..count).for_each(|step| watched.add(0, format!("step {step}\n").as_bytes()));
        let kept = watched.into_kept();
        let last = format!("step {}", count - 1);
        assert_eq!((kept.lines[0].as_str(), kept.lines.last()), ("step 0", Some(&last)));
        assert_eq!(kept.lines.len() as u64 + kept.left_out, count);
        assert!(kept.left_out > 0);
    }
}
