//! A checked scenario. Its values are valid, so no other code has to check them again. Knows nothing of the
//! YAML file's form.

use std::collections::BTreeMap;
use std::time::Duration;

use gpu_words::Persistence;
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::Effect;
use crate::effect::checker::{NameKind, TargetName};
use crate::effect::target_need::{NeedKind, TargetNeed};
use crate::gpu::TargetGpu;
use crate::target::TargetFile;
use crate::trigger::{Trigger, Until};
use crate::units::ByteSize;
use crate::verdict::Outcome;
use crate::yaml::problem::{InvalidFile, Problem, suggestion};
use crate::yaml::spanned::Spanned;

/// A checked scenario file of language version 1.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) severity: Severity,
    /// Name of a target file, or a path to one, relative to the scenario's file.
    pub(crate) target: Spanned<String>,
    pub(crate) gpu: Option<TargetGpu>,
    /// Settings of the target that differ from its defaults, such as `train.micro_batch` -> `8`.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) submit: Vec<SubmittedFile>,
    /// The submitted files that must exist in the directory of the scenario file.
    pub(crate) data_files: Vec<Spanned<String>>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) method: Vec<Fault>,
    pub(crate) expect: Vec<Expectation>,
    pub(crate) guards: Vec<String>,
    /// Names that can be checked only against the target file.
    pub(crate) target_names: Vec<TargetName>,
    pub(crate) target_needs: Vec<TargetNeed>,
    pub(crate) file: String,
    pub(crate) text: String,
}

impl Scenario {
    /// Checks that the target defines every place, phase, guard and kind of data that the scenario names, and
    /// that it has what the scenario's expectations, settings and data files need.
    ///
    /// # Errors
    ///
    /// Returns a problem for each name that the target does not define, and for each need.
    pub fn check_against(&self, target: &TargetFile) -> Result<(), InvalidFile> {
        let names = self.target_names.iter().filter_map(|name| unknown_name(name, target));
        let needs = self.target_needs.iter().filter_map(|need| unmet_need(need, target));
        let problems: Vec<Problem> = names.chain(needs).collect();
        if problems.is_empty() { Ok(()) } else { Err(InvalidFile::new(&self.file, &self.text, problems)) }
    }

    /// Checks that the data files exist. `exists`: whether a file of this name is in the directory of the
    /// scenario file.
    ///
    /// # Errors
    ///
    /// Returns a problem for each file that is missing.
    pub fn check_data_files(&self, exists: impl Fn(&str) -> bool) -> Result<(), InvalidFile> {
        let missing = self.data_files.iter().filter(|file| !exists(&file.value));
        let problem = |file: &Spanned<String>| {
            let message = format!("there is no file `{}` beside this file", file.value);
            file.problem(message).help("correct the name, or add the file")
        };
        let problems: Vec<Problem> = missing.map(problem).collect();
        if problems.is_empty() { Ok(()) } else { Err(InvalidFile::new(&self.file, &self.text, problems)) }
    }

    /// The error for a target that is neither a file nor one of `shipped`.
    pub fn unknown_target(&self, shipped: &[String]) -> InvalidFile {
        let name = &self.target.value;
        let message = format!("there is neither a file nor a shipped target `{name}`");
        let nearest = suggestion(name, shipped.iter().map(String::as_str));
        let problem = self.target.problem(message).help(format!(
            "{nearest}{} a path is relative to this file",
            if nearest.ends_with('?') { "" } else { ";" }
        ));
        InvalidFile::new(&self.file, &self.text, vec![problem])
    }

    /// Domain and number, such as `fs-01`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// One line that describes what happens to the trainer.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// How bad it is if a trainer does not survive this scenario.
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// Name of a shipped target, or the path of a target file, relative to the scenario file.
    pub fn target(&self) -> &str {
        &self.target.value
    }

    /// The GPU that the target sees, if any.
    pub fn gpu(&self) -> Option<&TargetGpu> {
        self.gpu.as_ref()
    }

    /// Settings of the target that differ from its defaults.
    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// Data files that are submitted to the target before it starts.
    pub fn submit(&self) -> &[SubmittedFile] {
        &self.submit
    }

    /// Places of the target that get a tmpfs of their own.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// The faults, in order. Never empty.
    pub fn method(&self) -> &[Fault] {
        &self.method
    }

    /// What must hold. Never empty.
    pub fn expect(&self) -> &[Expectation] {
        &self.expect
    }

    /// Guards of the target that the scenario relies on.
    pub fn guards(&self) -> &[String] {
        &self.guards
    }
}

/// The problem with a name that the target does not define.
fn unknown_name(TargetName { kind, name }: &TargetName, target: &TargetFile) -> Option<Problem> {
    let (kind, known): (&str, Vec<&str>) = match kind {
        NameKind::Place => ("place", target.places.keys().map(String::as_str).collect()),
        NameKind::Phase => ("phase", target.phases.keys().map(String::as_str).collect()),
        NameKind::Guard => ("guard", target.guards.keys().map(String::as_str).collect()),
        NameKind::DataKind => ("kind of data", target.generate.keys().map(String::as_str).collect()),
    };
    if known.contains(&name.value.as_str()) {
        return None;
    }
    let message = format!("target `{}` has no {kind} `{}`", target.id, name.value);
    Some(name.problem(message).help(suggestion(&name.value, known)))
}

/// The problem with something that the target does not have.
fn unmet_need(TargetNeed { kind, span }: &TargetNeed, target: &TargetFile) -> Option<Problem> {
    let announces = &target.announces;
    let (is_met, what, remedy) = match kind {
        NeedKind::Verify => (target.verify.is_some(), "this needs a command `verify`", "add it"),
        NeedKind::Same => (target.same.is_some(), "this needs the pattern `same`", "add it"),
        NeedKind::Loss => (
            announces.step.capture_names().flatten().any(|group| group == "loss"),
            "this needs a group `loss` in the pattern `announces: step`",
            "add it",
        ),
        NeedKind::Resumed => (
            announces.resumed.is_some() || announces.saved.is_some(),
            "this needs the pattern `announces: resumed`",
            "add it",
        ),
        NeedKind::RefusedExits => {
            (!target.refused_exits.is_empty(), "the outcome `refused` needs `refused-exits`", "add them")
        }
        NeedKind::Submit => (target.submit.is_some(), "data files need a command `submit`", "add it"),
        NeedKind::Settings => (
            target.passes_settings(),
            "settings need `setting-args` and a command with an argument `{settings}`",
            "add them",
        ),
    };
    let message = || format!("{what}, which target `{}` does not have", target.id);
    let help = || format!("{remedy} to the target file, or remove this from the scenario");
    (!is_met).then(|| Problem::at(*span, message()).help(help()))
}

/// How bad it is if a trainer does not survive this scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Critical,
    Medium,
    Low,
    Extra,
}

impl std::fmt::Display for Severity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Severity::Critical => "critical",
            Severity::Medium => "medium",
            Severity::Low => "low",
            Severity::Extra => "extra",
        })
    }
}

/// A data file that is submitted before the start.
#[derive(Debug, Clone, PartialEq)]
pub enum SubmittedFile {
    /// A file in the directory of the scenario file.
    File(String),
    /// Made by the target's `generate` command of this kind. `length`: approximate bytes per sample.
    Generated { kind: String, samples: u32, length: Option<u32> },
}

/// A tmpfs for one place of the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// A place of the target file.
    pub place: String,
    /// Size of the tmpfs.
    pub size: ByteSize,
    /// Number of inodes. `None`: the kernel's choice.
    pub inodes: Option<u64>,
}

/// A fault: what is done to the target, and when.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What the fault does.
    pub effect: Effect,
    /// When it is injected.
    pub when: Trigger,
    /// How often it is injected in one trial.
    pub persistence: Persistence,
    /// When it is reverted. `Never` for faults that leave nothing to revert.
    pub until: Until,
    /// The fault counts as effective if a line of the target's output matches. Replaces the fault's own
    /// evidence.
    pub effective_if_output: Option<Regex>,
    /// Maximum number of trials. The others are left out evenly, as the seed decides, and counted.
    pub max_trials: u32,
    /// A trial counts also if this fault was not effective.
    pub is_optional: bool,
}

/// What a scenario expects.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// In how many trials the fact must hold.
    pub modality: Modality,
    /// What must hold.
    pub fact: Fact,
    /// As written in the file, in flow style on one line: `always: {restarts: {max: 0}}`.
    pub text: String,
}

/// In how many trials a fact must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// In every trial.
    Always,
    /// In at least one trial.
    Sometimes,
    /// At least once in the whole scenario. Shows that the run reached the situation that the scenario is
    /// about.
    Reached,
}

/// A fact about a trial, which holds or does not.
#[derive(Debug, Clone)]
pub enum Fact {
    /// The outcome is one of these.
    Outcome(Vec<Outcome>),
    /// Number of steps that were trained again.
    LostSteps { max: u64 },
    /// The values that the target's `same` pattern finds equal the baseline's.
    SameAsBaseline,
    /// The loss of the last step differs from the baseline's by at most this percentage of it.
    FinalLoss { within_percent: f64 },
    /// Restarts by the harness, without those that the method causes.
    Restarts { max: u32 },
    /// Time from when the fault became effective to the next announced step.
    RecoveryTime { max: Duration },
    /// Resident memory of the target's largest process.
    PeakMemory { max: ByteSize },
    /// Open files of the process that has most.
    OpenFiles { max: u64 },
    /// Threads of all processes together.
    Threads { max: u64 },
    /// How long a process was a zombie.
    ZombieTime { max: Duration },
    /// The target's `verify` command exits with 0 at the end.
    Verifies,
    /// The target's `verify` command exits with 0 on the files that the method left, before the target is
    /// resumed.
    VerifiesBeforeResume,
    /// After a signal of the method, the main process exits with one of these codes.
    EndsWith(Vec<i32>),
    /// Each command of the method exits with one of these codes.
    CommandsEndWith(Vec<i32>),
    /// Each answer to a request of the method has one of these codes as its status, and contains the pattern.
    Answers {
        status: Vec<u16>,
        /// A connection that is closed without an answer is right, too.
        or_closed: bool,
        containing: Option<Regex>,
    },
    /// When the main process has exited by itself, no other process of the target is left.
    LeavesNoProcess,
    /// A line of the target's output matches.
    Output(Regex),
    /// The number of files below the root that match the glob and contain the pattern is from `min` to `max`.
    Files {
        matching: globset::GlobMatcher,
        containing: Option<Regex>,
        min: u64,
        max: Option<u64>,
        /// Only those that everybody on the machine may write to.
        writable_by_others: bool,
        /// Counted before the target is resumed, not at the end.
        before_resume: bool,
    },
}
