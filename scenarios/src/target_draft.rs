//! A target file as it is written: how any trainer is started, watched, resumed and asked.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::leaf::{Pattern, Setting, Span};
use crate::spanned::Placed;

/// How a trainer is started, watched, resumed and asked to verify. In commands `{program}`, `{root}`, `{seed}`, `{file}`
/// and `{<place>}` are filled in, and an argument `{settings}` becomes as many arguments as there are settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[schemars(title = "Trainwreck target, version 1")]
pub(crate) struct TargetDraft {
    /// Version of the language: 1.
    pub(crate) version: Placed<u32>,
    pub(crate) id: String,
    /// One line.
    pub(crate) title: String,
    /// A bare name is looked for beside trainwreck's own binary, then on PATH; a path counts from this file.
    pub(crate) program: Placed<String>,
    /// Folders below the root that faults and mounts may speak of.
    #[serde(default)]
    pub(crate) places: BTreeMap<String, Placed<String>>,
    /// Variables of the target's environment; PATH, HOME and LANG are set anyway, nothing else is.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, Setting>,
    /// Commands that make an empty root ready. Each must exit with 0.
    #[serde(default)]
    pub(crate) prepare: Vec<Placed<Vec<String>>>,
    /// One argument list for each setting, with `{key}` and `{value}`.
    #[serde(default)]
    pub(crate) setting_args: Vec<String>,
    /// Commands that make a data file of a kind, with `{file}`, `{samples}`, `{seed}` and `{length}` (0: as usual).
    #[serde(default)]
    pub(crate) generate: BTreeMap<String, Placed<Vec<String>>>,
    /// Hands in one data file, `{file}`, before the start.
    pub(crate) submit: Option<Placed<Vec<String>>>,
    /// Works until everything is done, then exits with 0.
    pub(crate) start: Placed<Vec<String>>,
    /// After a crash; the same as `start` where it is not said.
    pub(crate) resume: Option<Placed<Vec<String>>>,
    /// Exits with 0 when everything that it keeps is sound.
    pub(crate) verify: Option<Placed<Vec<String>>>,
    /// What its output tells.
    pub(crate) announces: AnnouncesDraft,
    /// Stretches of its work, such as `checkpoint-save`.
    #[serde(default)]
    pub(crate) phases: BTreeMap<String, PhaseDraft>,
    /// Pattern with a group `value`: what it finds in an undisturbed run must be found after recovery too.
    pub(crate) same: Option<Placed<Pattern>>,
    /// Exit codes by which it refuses with a clear, documented error.
    #[serde(default)]
    pub(crate) refused_exits: Vec<u8>,
    #[serde(default)]
    pub(crate) timeouts: TimeoutsDraft,
    /// Protections, each with the settings that take it away.
    #[serde(default)]
    pub(crate) guards: BTreeMap<String, BTreeMap<String, Setting>>,
}

/// Patterns on lines of standard output, each with a group `step`: `^saved step (?<step>\d+)`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct AnnouncesDraft {
    /// A training step has been done; may have a group `loss` too.
    pub(crate) step: Placed<Pattern>,
    /// The target promises that this step is durable.
    pub(crate) saved: Option<Placed<Pattern>>,
    /// The step that it goes on from; 0 is from scratch.
    pub(crate) resumed: Option<Placed<Pattern>>,
}

/// A stretch of work between two lines of output.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PhaseDraft {
    pub(crate) begins: Pattern,
    pub(crate) ends: Pattern,
    /// Place whose files it touches.
    pub(crate) place: Placed<String>,
}

/// How long is too long.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct TimeoutsDraft {
    /// Without a line of output: hung. 60 s where it is not said.
    pub(crate) stall: Option<Span>,
    /// For one start in all. 10 min where it is not said.
    pub(crate) finish: Option<Span>,
}
