//! A run without any fault that did not end well, and the one text for people. Knows nothing of how it was run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ending::Ending;
use crate::sandbox_hint::SandboxHint;

/// At most this many last lines of each output are kept.
const MAX_LINES_OF_OUTPUT: usize = 10;
/// At most this many characters of a line are kept.
const MAX_LINE_CHARS: usize = 400;

/// Where a line was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// A line that a process printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputLine {
    /// Where it was printed.
    pub stream: OutputStream,
    /// The line without its line end, as it was printed: it may contain control characters.
    pub line: String,
}

/// What is run without any fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UndisturbedCommand {
    /// A `prepare` command of the target file.
    Prepare,
    /// A `generate` command of the target file.
    Generate,
    /// The `submit` command of the target file.
    Submit,
    /// The target, for the baseline.
    Baseline,
    /// The target without a guard.
    WithoutGuard,
    /// The target, while its file operations are recorded.
    Recording,
    /// The recovery from undamaged files.
    Recovery,
}

impl fmt::Display for UndisturbedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UndisturbedCommand::Prepare => "the target's `prepare` command",
            UndisturbedCommand::Generate => "the target's `generate` command",
            UndisturbedCommand::Submit => "the target's `submit` command",
            UndisturbedCommand::Baseline => "the baseline run",
            UndisturbedCommand::WithoutGuard => "the undisturbed run without the guard",
            UndisturbedCommand::Recording => "the recorded run",
            UndisturbedCommand::Recovery => "the recovery from undamaged files",
        })
    }
}

/// A run without any fault that did not end well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRun {
    /// What was run.
    pub command: UndisturbedCommand,
    /// How it ended.
    pub ending: Ending,
    /// The time limit that it exceeded. `None` if it did not, or if the target file has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_seconds: Option<u64>,
    /// The last lines of both outputs, up to a bound.
    pub last_lines: Vec<OutputLine>,
    /// What it met in the sandbox.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandbox_hints: Vec<SandboxHint>,
    /// Whether it was run for an earlier scenario with the same target, workload and seed.
    #[serde(default)]
    pub shared: bool,
}

impl FailedRun {
    /// A run that ended in this way. Of `lines`, the last ones of each output are kept.
    pub fn new(command: UndisturbedCommand, ending: Ending, lines: Vec<OutputLine>) -> FailedRun {
        FailedRun {
            command,
            ending,
            limit_seconds: None,
            last_lines: FailedRun::last_of(lines),
            sandbox_hints: Vec::new(),
            shared: false,
        }
    }

    /// The last lines of each output, in their order, without blank ones. Long lines are cut.
    pub fn last_of(lines: Vec<OutputLine>) -> Vec<OutputLine> {
        let mut counts = [0; 2];
        let mut last: Vec<OutputLine> = Vec::new();
        for OutputLine { stream, line } in lines.into_iter().rev().filter(|line| !line.line.trim().is_empty())
        {
            let count = &mut counts[usize::from(stream == OutputStream::Stderr)];
            *count += 1;
            if *count <= MAX_LINES_OF_OUTPUT {
                last.push(OutputLine { stream, line: line.chars().take(MAX_LINE_CHARS).collect() });
            }
        }
        last.reverse();
        last
    }

    /// The lines that explain the failure: the last lines of its outputs, then the hints that may be the
    /// reason. They may contain control characters of the target.
    pub fn details(&self) -> Vec<String> {
        let line = |OutputLine { stream, line }: &OutputLine| match stream {
            OutputStream::Stdout => format!("stdout: {line}"),
            OutputStream::Stderr => format!("stderr: {line}"),
        };
        let lines: Vec<String> = self.last_lines.iter().map(line).collect();
        let nothing = lines.is_empty().then(|| "it printed nothing".to_owned());
        let hints = self.sandbox_hints.iter().filter(|hint| hint.may_explain_failure());
        lines.into_iter().chain(nothing).chain(hints.map(SandboxHint::to_string)).collect()
    }
}

impl fmt::Display for FailedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = if self.shared { ", which was run once for several scenarios," } else { "" };
        write!(f, "{}{shared} ", self.command)?;
        match self.limit_seconds {
            Some(seconds) => write!(f, "exceeded {seconds} s"),
            None => write!(f, "{}", self.ending),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(stream: OutputStream, line: impl Into<String>) -> OutputLine {
        OutputLine { stream, line: line.into() }
    }

    #[test]
    fn the_last_lines_of_both_outputs_are_kept_however_much_the_other_printed() {
        let mut lines = vec![line(OutputStream::Stderr, "the reason"), line(OutputStream::Stderr, " ")];
        lines.extend(
            (0..5000).map(|number| line(OutputStream::Stdout, format!("{number} {}", "x".repeat(9000)))),
        );
        let failed = FailedRun::new(UndisturbedCommand::Baseline, Ending::Exited(2), lines);
        let details = failed.details();
        assert_eq!(details.len(), 1 + MAX_LINES_OF_OUTPUT, "{details:?}");
        assert_eq!(details[0], "stderr: the reason");
        assert!(details[10].starts_with("stdout: 4999 ") && details[10].len() < 500);
        assert_eq!(failed.to_string(), "the baseline run ended with exit code 2");
    }

    #[test]
    fn the_text_says_how_it_ended_and_that_it_was_shared() {
        let failed = |ending| FailedRun::new(UndisturbedCommand::Prepare, ending, Vec::new());
        assert_eq!(
            failed(Ending::Signalled(11)).to_string(),
            "the target's `prepare` command was ended by signal 11"
        );
        let late = FailedRun { limit_seconds: Some(60), shared: true, ..failed(Ending::TimedOut) };
        assert_eq!(
            late.to_string(),
            "the target's `prepare` command, which was run once for several scenarios, exceeded 60 s"
        );
        assert_eq!(late.details(), ["it printed nothing"]);
    }

    #[test]
    fn only_hints_that_may_be_the_reason_are_among_the_details() {
        let refused = SandboxHint::RefusedWrite { path: "/data".into() };
        let outside = SandboxHint::WroteOutside { path: "/tmp".into(), count: 3 };
        let failed = FailedRun::new(UndisturbedCommand::Submit, Ending::Exited(1), Vec::new());
        let failed = FailedRun { sandbox_hints: vec![outside, refused.clone()], ..failed };
        assert_eq!(failed.details(), ["it printed nothing".to_owned(), refused.to_string()]);
    }
}
