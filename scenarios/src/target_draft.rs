//! A target file as it is written: how any trainer is started, watched, resumed and verified. Like `draft`,
//! it decides which keys there are, and its doc comments are the editor's help.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::leaf::{Pattern, SettingValue, TimeSpan};
use crate::spanned::Spanned;

/// How a trainer is started, watched, resumed and verified. Commands are lists of arguments. In them
/// `{program}`, `{root}`, `{seed}`, `{file}` and `{<place>}` are replaced, and an argument `{settings}`
/// becomes the arguments of all settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Trainwreck target, version 1")]
pub(crate) struct TargetDraft {
    /// Version of the target language: 1.
    pub(crate) version: Spanned<u32>,
    /// Name of the target.
    pub(crate) id: String,
    /// One line that describes the target.
    pub(crate) title: String,
    /// The program. A bare name is looked for next to the `trainwreck` binary, then on PATH. A path is
    /// relative to this file.
    pub(crate) program: Spanned<String>,
    /// Directories below the root, by the names that faults and mounts use for them.
    #[serde(default)]
    pub(crate) places: BTreeMap<String, Spanned<String>>,
    /// Environment variables of the target. In addition, only PATH, HOME and LANG are set.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, SettingValue>,
    /// Commands that prepare an empty root. Each must exit with 0.
    #[serde(default)]
    pub(crate) prepare: Vec<Spanned<Vec<String>>>,
    /// The arguments for one setting, with `{key}` and `{value}`.
    #[serde(default)]
    pub(crate) setting_args: Vec<String>,
    /// Commands that make a data file, by kind of data, with `{file}`, `{samples}`, `{seed}` and `{length}`
    /// (0: the command's default).
    #[serde(default)]
    pub(crate) generate: BTreeMap<String, Spanned<Vec<String>>>,
    /// Submits one data file, `{file}`, before the start.
    pub(crate) submit: Option<Spanned<Vec<String>>>,
    /// Runs the trainer until everything is done, then exits with 0.
    pub(crate) start: Spanned<Vec<String>>,
    /// Runs the trainer after a crash. Default: the same as `start`.
    pub(crate) resume: Option<Spanned<Vec<String>>>,
    /// Exits with 0 if everything that the trainer keeps on disk is intact.
    pub(crate) verify: Option<Spanned<Vec<String>>>,
    /// What the trainer announces in its output.
    pub(crate) announces: AnnouncesDraft,
    /// Named periods of the trainer's work, such as `checkpoint-save`.
    #[serde(default)]
    pub(crate) phases: BTreeMap<String, PhaseDraft>,
    /// Pattern with a group `value`. What it finds in the baseline must be found after a recovery too.
    pub(crate) same: Option<Spanned<Pattern>>,
    /// Exit codes with which the trainer refuses to go on, after a clear, documented error.
    #[serde(default)]
    pub(crate) refused_exits: Vec<u8>,
    /// How long the trainer may take.
    #[serde(default)]
    pub(crate) timeouts: TimeoutsDraft,
    /// Protections of the trainer, each with the settings that switch it off.
    #[serde(default)]
    pub(crate) guards: BTreeMap<String, BTreeMap<String, SettingValue>>,
}

/// Patterns on lines of standard output, each with a group `step`: `^saved step (?<step>\d+)`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct AnnouncesDraft {
    /// A training step has been done. May also have a group `loss`.
    pub(crate) step: Spanned<Pattern>,
    /// A save of this step is acknowledged: it is durable from here on.
    pub(crate) saved: Option<Spanned<Pattern>>,
    /// The step that the trainer resumes from; 0 means from scratch.
    pub(crate) resumed: Option<Spanned<Pattern>>,
}

/// A period of work between two lines of output.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PhaseDraft {
    /// Pattern of the line with which the phase begins.
    pub(crate) begins: Pattern,
    /// Pattern of the line with which the phase ends.
    pub(crate) ends: Pattern,
    /// The place whose files the phase touches.
    pub(crate) place: Spanned<String>,
}

/// When a trainer counts as hung.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct TimeoutsDraft {
    /// Longest time without a line of output. Default: 60 s.
    pub(crate) stall: Option<TimeSpan>,
    /// Longest time that one start may run in total. Default: 10 min.
    pub(crate) finish: Option<TimeSpan>,
}
