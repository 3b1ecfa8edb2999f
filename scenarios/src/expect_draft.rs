//! The expectations of a scenario file, as they are written. Knows nothing of how a run is judged.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::leaf::{PathGlob, Pattern, Percent, Size, TimeSpan};
use crate::verdict::Outcome;

/// An expectation: in how many trials a fact must hold, then the fact.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExpectationDraft {
    /// The fact holds in every trial.
    Always(FactDraft),
    /// The fact holds in at least one trial.
    Sometimes(FactDraft),
    /// The fact holds at least once. Shows that the run reached the situation that the scenario is about.
    Reached(FactDraft),
}

/// A fact about a trial, which holds or does not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FactDraft {
    /// What the target did is one of these.
    Outcome(Vec<Outcome>),
    /// Number of steps that were trained again.
    LostSteps(MaxCount),
    /// What the target file's `same` pattern finds, such as a hash of the weights, equals what it found in
    /// the baseline.
    SameAsBaseline,
    /// The loss of the last step is near the baseline's. For a target that may finish on another device,
    /// where the weights need not be equal.
    FinalLoss(Tolerance),
    /// How often the harness had to start the target again, without the restarts that the method itself
    /// causes.
    Restarts(MaxCount),
    /// Time from when the fault became effective to the next announced step.
    RecoveryTime(MaxTime),
    /// Resident memory of the target's largest process.
    PeakMemory(MaxBytes),
    /// The target's `verify` command exits with 0 at the end.
    Verifies,
    /// The target's `verify` command exits with 0 on the files that `crash-states` left, before the target is
    /// resumed.
    VerifiesBeforeResume,
    /// After a `signal` that asks the target to exit, the main process exits with one of these codes.
    EndsWith(Vec<u8>),
    /// When the main process has exited by itself, no other process of the target is left.
    LeavesNoProcess,
    /// A line of the target's output matches.
    Output(Pattern),
    /// The number of matching files below the root at the end.
    Files(FilesDraft),
}

/// An upper bound on a number.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxCount {
    /// At most this many.
    pub(crate) max: u64,
}

/// How near to the baseline's value.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Tolerance {
    /// Largest difference, as a percentage of the baseline's value.
    pub(crate) within: Percent,
}

/// An upper bound on a time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxTime {
    /// At most this long.
    pub(crate) max: TimeSpan,
}

/// An upper bound on a size.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxBytes {
    /// At most this much.
    pub(crate) max: Size,
}

/// Files to be counted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct FilesDraft {
    /// Paths of the files.
    pub(crate) matching: PathGlob,
    /// Only files whose first MiB matches.
    pub(crate) containing: Option<Pattern>,
    /// At least this many. Default: 0.
    pub(crate) min: Option<u64>,
    /// At most this many. Default: no limit.
    pub(crate) max: Option<u64>,
    /// Count the files as `crash-states` left them, before the target is resumed, not at the end. Default:
    /// false.
    #[serde(default)]
    pub(crate) before_resume: bool,
}
