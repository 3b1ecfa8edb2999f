//! A finding: crash states from which a target does not recover, why, and what shows it. Knows nothing of how
//! states are found, tried or shown.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::control::ControlFiles;
use crate::effect::CrashModel;
use crate::verdict::Outcome;

/// Crash states with one cause from which the target does not recover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Why the states fail.
    pub cause: Cause,
    /// What the target did with the state that is shown.
    pub outcome: Outcome,
    /// How many states had which outcome, if they had different ones. The most frequent first. A state that several
    /// crashes leave can have one outcome under each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<OutcomeCount>,
    /// Where the states can occur. Sorted by name.
    pub under: Vec<CrashModel>,
    /// Number of distinct states.
    pub states: u64,
    /// What the target did when the state that is shown was repeated alone. `None`: it was not repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmation: Option<Confirmation>,
    /// The two operations between which the crash falls, or whose order was not kept: see `crash_text`.
    pub between: [String; 2],
    /// The shortest sequence of operations that shows the cause.
    pub operations: Vec<OperationLine>,
    /// Files that differ from the tree before the crash, one line each.
    pub difference: Vec<String>,
    /// The line that explains the failure of most states; it may be empty.
    pub error: String,
    /// How many states had which line, if they had different ones. The most frequent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<MessageCount>,
    /// The controls that fail, if the target does not recover from undamaged files either. The states are then
    /// those that fail in the same way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controls: Option<FailingControls>,
    /// What to change in the trainer.
    pub advice: String,
    /// The name of the smallest state that shows the cause. `--state` takes it.
    pub state: String,
    /// The command that tries this state alone.
    pub repeat: String,
}

impl Finding {
    /// All outcomes of its states, the most frequent first.
    pub fn all_outcomes(&self) -> Vec<Outcome> {
        match &self.outcomes[..] {
            [] => vec![self.outcome],
            outcomes => outcomes.iter().map(|count| count.outcome).collect(),
        }
    }

    /// How many states it has, in words, and how many of them had which outcome if they had different ones.
    pub fn states_text(&self) -> String {
        let states = format!("{} state{}", self.states, if self.states == 1 { "" } else { "s" });
        let outcomes: Vec<String> =
            self.outcomes.iter().map(|count| format!("{} {}", count.states, count.outcome)).collect();
        if outcomes.is_empty() { states } else { format!("{states} ({})", outcomes.join(", ")) }
    }

    /// Where the crash falls, or what it loses, in words.
    pub fn crash_text(&self) -> String {
        let [first, second] = &self.between;
        let has = |is_meant: fn(Fate) -> bool| self.operations.iter().any(|line| is_meant(line.fate));
        if has(|fate| matches!(fate, Fate::Lost | Fate::HalfLost | Fate::Zeroes)) {
            format!("breaks if a power loss after  {second}  loses  {first}")
        } else if has(|fate| fate == Fate::Torn) {
            format!("breaks in the middle of  {first}")
        } else {
            format!("breaks between  {first}  and  {second}")
        }
    }

    /// Whether another finding has the same cause, and an outcome in common.
    pub fn is_like(&self, other: &Finding) -> bool {
        let others = other.all_outcomes();
        self.cause == other.cause && self.all_outcomes().iter().any(|outcome| others.contains(outcome))
    }

    /// Whether the state that is shown had the same outcome when it was repeated alone. A recovery that exceeds its
    /// time limit may be slow because the machine is busy: it must also exceed three times the limit.
    pub fn is_confirmed(&self) -> bool {
        self.confirmation.is_some_and(|seen| seen.tried > 1 && seen.failed == seen.tried)
    }

    /// Why the finding is not confirmed, and what to do. `None`: it is confirmed.
    pub fn doubt(&self) -> Option<String> {
        let other = |seen: Confirmation| seen.other.map_or_else(String::new, |other| other.to_string());
        match self.confirmation {
            _ if self.is_confirmed() => None,
            Some(seen) if self.outcome == Outcome::Hung => Some(format!(
                "not confirmed: with three times the time limit the recovery ended, and its outcome was {}; try again \
                 with a longer --timeout",
                other(seen)
            )),
            Some(seen) => Some(format!(
                "not confirmed: {} of {} recoveries from this state were {}, another was {}; something else than the \
                 files decides: chance, the time, or what --writable and --network let in",
                seen.failed,
                seen.tried,
                self.outcome,
                other(seen)
            )),
            None => Some("not confirmed: this state was not tried again; repeat it".into()),
        }
    }
}

/// How often the recovery from one state had the outcome of its finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmation {
    /// How many recoveries had it.
    pub failed: u64,
    /// How many there were: the first one, and those that repeated it, each of which ran alone.
    pub tried: u64,
    /// The outcome of the last one that had another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<Outcome>,
}

/// How many states of a finding had an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeCount {
    /// What the target did.
    pub outcome: Outcome,
    /// Number of distinct states.
    pub states: u64,
}

/// A line that explains a failure, and how many states had it. Lines that differ only in numbers, addresses and
/// paths count together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MessageCount {
    /// One of these lines.
    pub line: String,
    /// Number of distinct states.
    pub states: u64,
}

/// Recoveries from undamaged files that fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingControls {
    /// How many fail in this way.
    pub failing: u64,
    /// How many were tried.
    pub tried: u64,
    /// The files of the first one that fails.
    pub first: ControlFiles,
}

impl fmt::Display for FailingControls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fails without any crash, in {} of {} recoveries from undamaged files, the first from {}; states that \
             fail in the same way are counted here",
            self.failing, self.tried, self.first
        )
    }
}

/// One operation that leads to a crash state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationLine {
    /// The line as it is shown: the operation's number, the operation, and what happened to it.
    pub text: String,
    /// What happened to it.
    pub fate: Fate,
}

/// What became of an operation in a crash state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It happened in full.
    Happened,
    /// It did not reach the disk.
    Lost,
    /// One of its two name changes did not reach the disk.
    HalfLost,
    /// Its length reached the disk, but its bytes did not.
    Zeroes,
    /// It reached the disk in part.
    Torn,
    /// The line stands for operations that the list leaves out.
    Omitted,
}

impl Fate {
    /// Whether the crash changed the operation.
    pub fn is_damaged(self) -> bool {
        matches!(self, Fate::Lost | Fate::HalfLost | Fate::Zeroes | Fate::Torn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_crash_model_is_its_name_in_json() {
        for model in CrashModel::DEFAULTS.into_iter().chain([CrashModel::Lying]) {
            assert_eq!(serde_json::to_string(&model).unwrap(), format!("\"{}\"", model.name()));
        }
    }
}
