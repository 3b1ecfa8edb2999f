//! What a target did, and what that means for a scenario.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a target did with one crash state or after one fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It went on from at least the last promised save and ended as the undisturbed run does.
    Recovered,
    /// It resumed, but before the last save that it had promised.
    LostWork,
    /// It began from scratch although a save had been promised.
    Restarted,
    /// It stopped with a clear error and a documented exit code.
    Refused,
    /// It died by a signal or an undocumented exit code.
    Crashed,
    /// It made no progress within its time.
    Hung,
    /// Its own check failed, or its end differs from the undisturbed run's.
    Corrupt,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Outcome::Recovered => "recovered",
            Outcome::LostWork => "lost-work",
            Outcome::Restarted => "restarted",
            Outcome::Refused => "refused",
            Outcome::Crashed => "crashed",
            Outcome::Hung => "hung",
            Outcome::Corrupt => "corrupt",
        })
    }
}

/// One expectation that did not hold, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// The expectation, in the words of the scenario file, such as `always: {restarts: {max: 0}}`.
    pub expectation: String,
    /// Trial in which it did not hold (1-based); none when it speaks of the whole scenario.
    pub trial: Option<u32>,
    /// What was found instead, one line.
    pub found: String,
}

/// The end of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every expectation held and every fault landed.
    Survived,
    /// At least one expectation did not hold.
    Violated { reasons: Vec<Reason> },
    /// The fault never landed, or the steady state failed: nothing is known.
    Inconclusive { why: String },
    /// This machine can't grant the mechanism.
    Skipped { why: String },
}
