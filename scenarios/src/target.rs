//! A checked target file: how a trainer is started, watched, resumed and verified. Knows no particular
//! trainer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use crate::template::{CommandArgument, Template};

/// A checked target file.
///
/// Commands are lists of arguments. An argument `{settings}` becomes as many arguments as there are settings,
/// by `setting_args`.
#[derive(Debug, Clone)]
pub struct TargetFile {
    pub(crate) id: String,
    pub(crate) title: String,
    /// A bare name is looked for next to the harness's own binary, then on PATH.
    pub(crate) program: PathBuf,
    /// Directories below the root by the names that faults and mounts use, such as `checkpoints`. Relative,
    /// without `..`.
    pub(crate) places: BTreeMap<String, PathBuf>,
    pub(crate) environment: BTreeMap<String, Template>,
    /// Names of environment variables of the harness that the target gets too.
    pub(crate) inherit: Vec<String>,
    /// Directories of the host in which the target may write. Absolute, or relative to the target file's
    /// directory.
    pub(crate) writable: Vec<PathBuf>,
    pub(crate) network: Option<TargetNetwork>,
    /// Commands that prepare an empty root, in order. Each must exit with 0.
    pub(crate) prepare: Vec<Vec<CommandArgument>>,
    /// Commands that write a data file, by kind of data, with `{file}`, `{samples}`, `{seed}` and `{length}`.
    pub(crate) generate: BTreeMap<String, Vec<CommandArgument>>,
    /// Submits one data file before the start.
    pub(crate) submit: Option<Vec<CommandArgument>>,
    /// Runs until everything that was submitted is done, then exits with 0.
    pub(crate) start: Vec<CommandArgument>,
    /// Default: `start`.
    pub(crate) resume: Vec<CommandArgument>,
    /// Exits with 0 if everything that the trainer keeps on disk is intact.
    pub(crate) verify: Option<Vec<CommandArgument>>,
    /// Arguments for one setting, such as `["--set", "{key}={value}"]`.
    pub(crate) setting_args: Vec<Template>,
    pub(crate) announces: Announces,
    /// By name, such as `checkpoint-save`.
    pub(crate) phases: BTreeMap<String, Phase>,
    /// Has a group `value`. The values that it finds in a run, sorted, must be the same after a recovery.
    pub(crate) same: Option<Regex>,
    /// Exit codes with which the target refuses to go on, after a documented error.
    pub(crate) refused_exits: Vec<i32>,
    /// Whether it exits with 0 when a signal asks it to stop and work is left.
    pub(crate) stops_with_zero: bool,
    /// Settings that switch a guard off, by the guard's name.
    pub(crate) guards: BTreeMap<String, BTreeMap<String, String>>,
    /// Longest time without an announced step, output or exit. After that the target counts as hung.
    pub(crate) stall: Duration,
    /// Longest time that one start may run in total.
    pub(crate) finish: Duration,
}

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        $($(#[$doc])* pub fn $name(&self) -> &$type { &self.$name })*
    };
}

impl TargetFile {
    getters! {
        /// Name of the target.
        id: str,
        /// One line that describes the target.
        title: str,
        /// The program. A bare name is looked for next to the harness's own binary, then on PATH.
        program: Path,
        /// Directories below the root, by name. Relative, without `..`.
        places: BTreeMap<String, PathBuf>,
        /// Environment variables of the target.
        environment: BTreeMap<String, Template>,
        /// Names of environment variables of the harness that the target gets too.
        inherit: [String],
        /// Directories of the host in which the target may write. Absolute, or relative to the target file's
        /// directory.
        writable: [PathBuf],
        /// Commands that prepare an empty root, in order.
        prepare: [Vec<CommandArgument>],
        /// Commands that write a data file, by kind of data.
        generate: BTreeMap<String, Vec<CommandArgument>>,
        /// Runs until everything that was submitted is done, then exits with 0.
        start: [CommandArgument],
        /// Runs the target after a crash.
        resume: [CommandArgument],
        /// Arguments for one setting, with `{key}` and `{value}`.
        setting_args: [Template],
        /// Patterns on the target's output.
        announces: Announces,
        /// Named periods of the target's work.
        phases: BTreeMap<String, Phase>,
        /// Exit codes with which the target refuses to go on, after a documented error.
        refused_exits: [i32],
        /// Settings that switch a guard off, by the guard's name.
        guards: BTreeMap<String, BTreeMap<String, String>>,
    }

    /// Whether settings reach the target: it says how one is passed, and a command passes them.
    pub fn passes_settings(&self) -> bool {
        let all = self.prepare.iter().chain(self.generate.values()).chain(&self.submit).chain(&self.verify);
        !self.setting_args.is_empty()
            && all
                .chain([&self.start, &self.resume])
                .flatten()
                .any(|argument| *argument == CommandArgument::Settings)
    }

    /// Whether it exits with 0 when a signal asks it to stop and work is left.
    pub fn stops_with_zero(&self) -> bool {
        self.stops_with_zero
    }

    /// The network that the target sees. Default: the sandbox's own.
    pub fn network(&self) -> Option<TargetNetwork> {
        self.network
    }

    /// Submits one data file before the start.
    pub fn submit(&self) -> Option<&[CommandArgument]> {
        self.submit.as_deref()
    }

    /// Exits with 0 if everything that the trainer keeps on disk is intact.
    pub fn verify(&self) -> Option<&[CommandArgument]> {
        self.verify.as_deref()
    }

    /// Has a group `value`, whose values must be the same after a recovery.
    pub fn same(&self) -> Option<&Regex> {
        self.same.as_ref()
    }

    /// Longest time without an announced step, output or exit.
    pub fn stall(&self) -> Duration {
        self.stall
    }

    /// Longest time that one start may run in total.
    pub fn finish(&self) -> Duration {
        self.finish
    }
}

impl Announces {
    getters! {
        /// A training step has been done. May also have a group `loss`.
        step: Regex,
    }

    /// A save of this step is acknowledged.
    pub fn saved(&self) -> Option<&Regex> {
        self.saved.as_ref()
    }

    /// The step that the target resumes from; 0 means from scratch.
    pub fn resumed(&self) -> Option<&Regex> {
        self.resumed.as_ref()
    }

    /// The step that the target goes back to on purpose.
    pub fn rolled_back(&self) -> Option<&Regex> {
        self.rolled_back.as_ref()
    }
}

impl Phase {
    getters! {
        /// Matches the line with which the phase begins.
        begins: Regex,
        /// Matches the line with which the phase ends.
        ends: Regex,
        /// The place whose files the phase touches.
        place: str,
    }
}

/// The network that a target sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetNetwork {
    /// A network of the sandbox's own, with a loopback device only.
    Private,
    /// The host's network.
    Host,
}

/// Patterns on the target's output. Each has a group `step` and may have a group `job`; the pattern `step` may
/// also have a group `loss`.
#[derive(Debug, Clone)]
pub struct Announces {
    pub(crate) step: Regex,
    pub(crate) saved: Option<Regex>,
    pub(crate) resumed: Option<Regex>,
    pub(crate) rolled_back: Option<Regex>,
}

/// A period of the target's work between two lines of its output.
#[derive(Debug, Clone)]
pub struct Phase {
    pub(crate) begins: Regex,
    pub(crate) ends: Regex,
    /// The place whose files the phase touches.
    pub(crate) place: String,
}
