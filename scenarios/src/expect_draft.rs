//! What a scenario expects, as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::leaf::{Files, Pattern, Percent, Size, Span};
use crate::verdict::Outcome;

/// An expectation: how it must hold, then what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExpectationDraft {
    /// In every trial.
    Always(FactDraft),
    /// In at least one trial.
    Sometimes(FactDraft),
    /// At least once: shows that the run went where it was meant to go.
    Reached(FactDraft),
}

/// Something that holds or does not.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FactDraft {
    /// What the target did is one of these.
    Outcome(Vec<Outcome>),
    /// Steps that had to be trained again.
    LostSteps(MaxCount),
    /// What the target file's `same` finds (a hash of the weights, say) is equal to the undisturbed run's.
    SameAsBaseline,
    /// The loss of its last step is near the undisturbed run's, for a target that may end on another device: weights are then not
    /// expected to be equal.
    FinalLoss(Tolerance),
    /// Times that the harness had to start the target again, beside those that the method caused.
    Restarts(MaxCount),
    /// From the fault's landing to the next announced step.
    RecoveryTime(MaxTime),
    /// Resident memory of the target's largest process.
    PeakMemory(MaxBytes),
    /// The target's `verify` command exits with 0 at the end.
    Verifies,
    /// It does so on the files as `crash-states` left them, before the target is resumed.
    VerifiesBeforeResume,
    /// Asked to end by `terminate`, the main process ends with one of these exit codes.
    EndsWith(Vec<u8>),
    /// When the main process has ended by itself, no other process of the target is left.
    LeavesNoProcess,
    /// A line of the target's output matches.
    Output(Pattern),
    /// Files below the root at the end, counted.
    Files(FilesDraft),
}

/// At most so many.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxCount {
    pub(crate) max: u64,
}

/// How near.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Tolerance {
    /// Part of the undisturbed run's value.
    pub(crate) within: Percent,
}

/// At most so long.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxTime {
    pub(crate) max: Span,
}

/// At most so much.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MaxBytes {
    pub(crate) max: Size,
}

/// Files to be counted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct FilesDraft {
    pub(crate) matching: Files,
    /// Only those whose first MiB matches.
    pub(crate) containing: Option<Pattern>,
    /// At least so many.
    pub(crate) min: Option<u64>,
    /// At most so many.
    pub(crate) max: Option<u64>,
    /// Asked of the files as `crash-states` left them, before the target is resumed, instead of at the end.
    #[serde(default)]
    pub(crate) before_resume: bool,
}
