//! How a trainer is started, watched, resumed and asked to verify. Nothing here knows any one trainer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use crate::problem::InvalidFile;

/// A checked target file.
///
/// Commands are argument lists in which `{program}`, `{root}`, `{seed}`, `{file}` and any `{place}` are replaced, and an
/// argument `{settings}` becomes as many arguments as there are settings, by `setting_args`.
#[derive(Debug, Clone)]
pub struct TargetFile {
    pub(crate) id: String,
    pub(crate) title: String,
    /// A bare name is looked for beside the harness's own binary, then on PATH.
    pub(crate) program: PathBuf,
    /// Named places below the root that faults and mounts may speak of: `inbox`, `checkpoints`. Relative, no `..`.
    pub(crate) places: BTreeMap<String, PathBuf>,
    pub(crate) environment: BTreeMap<String, String>,
    /// Run in order in an empty root before the first start; must each exit with 0.
    pub(crate) prepare: Vec<Vec<String>>,
    /// Makes a data file of a kind: writes `{file}`; knows `{samples}`, `{seed}`, `{length}`. By kind, such as `arithmetic`.
    pub(crate) generate: BTreeMap<String, Vec<String>>,
    /// Hands in one data file, before the start.
    pub(crate) submit: Option<Vec<String>>,
    /// Runs until all that was submitted is done, then exits with 0.
    pub(crate) start: Vec<String>,
    /// Default: `start`.
    pub(crate) resume: Vec<String>,
    /// Exits with 0 when every durable thing it keeps is sound.
    pub(crate) verify: Option<Vec<String>>,
    /// Arguments for one setting, such as `["--set", "{key}={value}"]`.
    pub(crate) setting_args: Vec<String>,
    pub(crate) announces: Announces,
    /// By name, such as `checkpoint-save`.
    pub(crate) phases: BTreeMap<String, Phase>,
    /// Named group `value`; what it finds over a run, sorted, must be the same after recovery.
    pub(crate) same: Option<Regex>,
    /// Exit codes by which the target refuses with a documented error.
    pub(crate) refused_exits: Vec<i32>,
    /// Settings that take a guard away, by the guard's name.
    pub(crate) guards: BTreeMap<String, BTreeMap<String, String>>,
    /// No announced step, no output and no end for this long: hung.
    pub(crate) stall: Duration,
    /// A whole start may take this long.
    pub(crate) finish: Duration,
}

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        $($(#[$doc])* pub fn $name(&self) -> &$type { &self.$name })*
    };
}

impl TargetFile {
    /// Reads a target file's text; `file` is only named in errors.
    pub fn parse(text: &str, file: &str) -> Result<TargetFile, InvalidFile> {
        crate::check_target::check_target(text, file)
    }

    getters! {
        id: str,
        title: str,
        program: Path,
        places: BTreeMap<String, PathBuf>,
        environment: BTreeMap<String, String>,
        prepare: [Vec<String>],
        generate: BTreeMap<String, Vec<String>>,
        start: [String],
        resume: [String],
        setting_args: [String],
        announces: Announces,
        phases: BTreeMap<String, Phase>,
        refused_exits: [i32],
        guards: BTreeMap<String, BTreeMap<String, String>>,
    }

    pub fn submit(&self) -> Option<&[String]> {
        self.submit.as_deref()
    }

    pub fn verify(&self) -> Option<&[String]> {
        self.verify.as_deref()
    }

    pub fn same(&self) -> Option<&Regex> {
        self.same.as_ref()
    }

    pub fn stall(&self) -> Duration {
        self.stall
    }

    pub fn finish(&self) -> Duration {
        self.finish
    }
}

impl Announces {
    getters! { step: Regex, }

    pub fn saved(&self) -> Option<&Regex> {
        self.saved.as_ref()
    }

    pub fn resumed(&self) -> Option<&Regex> {
        self.resumed.as_ref()
    }
}

impl Phase {
    getters! { begins: Regex, ends: Regex, place: str, }
}

/// Patterns on the target's output. Each has the named group `step`; `step` may have `loss` too.
#[derive(Debug, Clone)]
pub struct Announces {
    pub(crate) step: Regex,
    pub(crate) saved: Option<Regex>,
    pub(crate) resumed: Option<Regex>,
}

/// A stretch of the target's work, between two lines of its output, with the files it touches.
#[derive(Debug, Clone)]
pub struct Phase {
    pub(crate) begins: Regex,
    pub(crate) ends: Regex,
    /// Place whose files the phase touches.
    pub(crate) place: String,
}
