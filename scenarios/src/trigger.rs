//! When a fault is injected and reverted, and at which of several calls. Knows no fault.

use std::time::Duration;

use regex::Regex;

use crate::operation::CallKind;
use crate::yaml::leaf::{LeafError, leaf_of};

/// When a fault is injected.
#[derive(Debug, Clone)]
pub enum Trigger {
    /// Before the target starts.
    Start,
    /// After the target has ended, before it is started again.
    Restart,
    /// When the target announces this step or a later one.
    Step(u64),
    /// The same for each step in turn, one trial for each step that the baseline run announced.
    EveryStep,
    /// When a line of the target's output matches.
    Output(Regex),
    /// This long after the target has started.
    After(Duration),
    /// At a file system call.
    Call(CallTrigger),
}

/// Which file system call.
#[derive(Debug, Clone)]
pub struct CallTrigger {
    /// Kinds of call. Never empty.
    pub kinds: Vec<CallKind>,
    /// Glob on paths below the root. `None`: all paths.
    pub paths: Option<globset::GlobMatcher>,
    /// Only during one occurrence of this phase.
    pub phase: Option<String>,
    /// Which of the matching calls.
    pub occurrence: Occurrence,
}

/// Which of several matching calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    /// Each in turn, one trial for each call that was counted in the baseline.
    Every,
    /// The call with this number, 1-based.
    Nth(u32),
}

impl Occurrence {
    fn parse(text: &str) -> Result<Occurrence, LeafError> {
        match text.parse() {
            _ if text == "every" => Ok(Occurrence::Every),
            Ok(nth @ 1..) => Ok(Occurrence::Nth(nth)),
            _ => Err(LeafError::neither(text, "`every`", "a number from 1")),
        }
    }
}

leaf_of!(
    Occurrence,
    Occurrence::parse,
    r"^(every|[1-9]\d*)$",
    "Which occurrence: `every` (each in turn, one trial each), or a number from 1."
);

/// A step, as a scenario file states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StepChoice {
    /// Each in turn, one trial for each step of the baseline.
    Every,
    /// This step or a later one.
    From(u64),
}

impl StepChoice {
    fn parse(text: &str) -> Result<StepChoice, LeafError> {
        match text.parse() {
            _ if text == "every" => Ok(StepChoice::Every),
            Ok(from) => Ok(StepChoice::From(from)),
            _ => Err(LeafError::neither(text, "`every`", "a whole number")),
        }
    }
}

leaf_of!(
    StepChoice,
    StepChoice::parse,
    r"^(every|\d+)$",
    "A step: this one or a later one, or `every` (each in turn, one trial each)."
);

/// When a fault is reverted.
#[derive(Debug, Clone)]
pub enum Until {
    /// At the end of the trial.
    Never,
    /// This long after the injection.
    After(Duration),
    /// When a line of the target's output matches.
    Output(Regex),
}
