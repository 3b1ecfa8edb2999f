//! Matches lines of the target's output against the patterns of its target file. Pure.

use regex::Regex;
use scenarios::TargetFile;

/// What a line announces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ParsedLine {
    /// A training step is done. The loss may be NaN or infinite.
    Step { step: u64, loss: Option<f64> },
    /// This step is durable.
    Saved { step: u64 },
    /// The target resumes from this step; 0 is from scratch.
    Resumed { step: u64 },
    /// Nothing that the target file has a pattern for.
    Other,
}

/// The output patterns of a target file.
pub struct OutputPatterns<'a> {
    target: &'a TargetFile,
}

impl<'a> OutputPatterns<'a> {
    /// The patterns of this target file.
    pub fn new(target: &'a TargetFile) -> OutputPatterns<'a> {
        OutputPatterns { target }
    }

    /// Parses one line of standard output.
    pub fn parse(&self, line: &str) -> ParsedLine {
        let announces = self.target.announces();
        if let Some(step) = announces.saved().and_then(|pattern| step_in(pattern, line)) {
            return ParsedLine::Saved { step };
        }
        if let Some(step) = announces.resumed().and_then(|pattern| step_in(pattern, line)) {
            return ParsedLine::Resumed { step };
        }
        match step_in(announces.step(), line) {
            Some(step) => ParsedLine::Step { step, loss: loss_in(announces.step(), line) },
            None => ParsedLine::Other,
        }
    }

    /// Whether the line ends this phase.
    pub fn ends_phase(&self, phase: &str, line: &str) -> bool {
        self.target.phases().get(phase).is_some_and(|phase| phase.ends().is_match(line))
    }

    /// Whether the line has a value that must be the same after recovery.
    pub fn has_compared_value(&self, line: &str) -> bool {
        self.target.same().is_some_and(|same| same.is_match(line))
    }
}

fn step_in(pattern: &Regex, line: &str) -> Option<u64> {
    pattern.captures(line)?.name("step")?.as_str().parse().ok()
}

fn loss_in(pattern: &Regex, line: &str) -> Option<f64> {
    pattern.captures(line)?.name("loss")?.as_str().parse().ok()
}
