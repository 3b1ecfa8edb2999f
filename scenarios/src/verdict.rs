//! The outcome of a trial and the verdict on a scenario. Knows nothing of how either is reached.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a target did after a fault, or with a crash state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It resumed from the last acknowledged step or a later one, and ended as the baseline does.
    Recovered,
    /// It resumed from a step before the last acknowledged one.
    LostWork,
    /// It started from scratch although a save had been acknowledged.
    Restarted,
    /// It exited with 0 before the end that the baseline reached.
    EndedEarly,
    /// It exited with a clear error and a documented exit code.
    Refused,
    /// It was ended by a signal, or exited with an undocumented code.
    Crashed,
    /// It made no progress within its time limit.
    Hung,
    /// Its own check failed, or its final state differs from the baseline's.
    Corrupt,
    /// It ended with exit code 0, and nothing could tell whether that is right. No scenario can expect it.
    #[schemars(skip)]
    NotJudged,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Outcome::Recovered => "recovered",
            Outcome::LostWork => "lost-work",
            Outcome::Restarted => "restarted",
            Outcome::EndedEarly => "ended-early",
            Outcome::Refused => "refused",
            Outcome::Crashed => "crashed",
            Outcome::Hung => "hung",
            Outcome::Corrupt => "corrupt",
            Outcome::NotJudged => "not-judged",
        })
    }
}

/// What shows that an expectation did not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ViolationKind {
    /// What the target did or left: its outcome, lost steps, weights, files, processes, time or memory.
    #[default]
    Harm,
    /// Only a line of output is missing, such as a message about the fault.
    Words,
    /// A control: what the target does without any fault.
    Control,
}

/// One expectation that did not hold, and the trial in which it did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The expectation as written in the scenario file, such as `always: {restarts: {max: 0}}`.
    pub expectation: String,
    /// Trial in which it did not hold (1-based). `None` if it is about the whole scenario.
    pub trial: Option<u32>,
    /// What was observed instead, one line.
    pub found: String,
    /// What shows it.
    #[serde(default)]
    pub kind: ViolationKind,
}

/// The result of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every expectation held, and every fault was effective.
    Survived,
    /// At least one expectation did not hold.
    Violated { reasons: Vec<Reason> },
    /// Nothing is known: the fault was never effective, or the baseline failed.
    Inconclusive { why: String },
    /// This machine does not support the fault.
    Skipped { why: String },
}

impl Verdict {
    /// What shows that the scenario is violated: harm if there is any, else words. `None` if it is not violated.
    pub fn violation_kind(&self) -> Option<ViolationKind> {
        let Verdict::Violated { reasons } = self else { return None };
        let only_words =
            !reasons.is_empty() && reasons.iter().all(|reason| reason.kind == ViolationKind::Words);
        Some(if only_words { ViolationKind::Words } else { ViolationKind::Harm })
    }
}
