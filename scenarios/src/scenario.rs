//! A checked scenario. Its values are valid, so no other code has to check them again. Knows nothing of the
//! YAML file's form.

use std::collections::BTreeMap;
use std::time::Duration;

use regex::Regex;

use crate::calls::{CrashModel, Errno, FileCallKind};
use crate::gpu::{CudaError, ErrorReporting, GpuCallTrigger, GpuState, TargetGpu, WrongValue};
use crate::problem::{InvalidFile, Problem, suggestion};
use crate::signal::SentSignal;
use crate::spanned::Spanned;
use crate::target::TargetFile;
use crate::units::ByteSize;
use crate::verdict::Outcome;

/// A checked scenario file of language version 1.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) severity: Severity,
    /// Name of a target file, or a path to one, relative to the scenario's file.
    pub(crate) target: String,
    pub(crate) gpu: Option<TargetGpu>,
    /// Settings of the target that differ from its defaults, such as `train.micro_batch` -> `8`.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) submit: Vec<SubmittedFile>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) method: Vec<Fault>,
    pub(crate) expect: Vec<Expectation>,
    pub(crate) guards: Vec<String>,
    /// Names that can be checked only against the target file.
    pub(crate) target_names: Vec<(NameKind, Spanned<String>)>,
    pub(crate) file: String,
    pub(crate) text: String,
}

/// What a name in a scenario refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameKind {
    Place,
    Phase,
    Guard,
    DataKind,
}

impl Scenario {
    /// Parses and checks the text of a scenario file. `file` is only named in errors.
    ///
    /// # Errors
    ///
    /// Returns every problem of the file.
    pub fn parse(text: &str, file: &str) -> Result<Scenario, InvalidFile> {
        crate::check::check_scenario(text, file)
    }

    /// Checks that the target defines every place, phase, guard and kind of data that the scenario names.
    ///
    /// # Errors
    ///
    /// Returns a problem for each name that the target does not define.
    pub fn check_against(&self, target: &TargetFile) -> Result<(), InvalidFile> {
        let problems: Vec<Problem> =
            self.target_names.iter().filter_map(|(kind, name)| unknown_name(*kind, name, target)).collect();
        if problems.is_empty() { Ok(()) } else { Err(InvalidFile::new(&self.file, &self.text, problems)) }
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
        &self.target
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
fn unknown_name(kind: NameKind, name: &Spanned<String>, target: &TargetFile) -> Option<Problem> {
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

/// How bad it is if a trainer does not survive a scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Critical,
    Medium,
    Low,
    Extra,
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
}

/// When a fault is injected.
#[derive(Debug, Clone)]
pub enum Trigger {
    /// Before the target starts.
    Start,
    /// When the target announces this step or a later one.
    Step(u64),
    /// When a line of the target's output matches.
    Output(Regex),
    /// This long after the target has started.
    After(Duration),
    /// At a file system call.
    Call(CallTrigger),
}

/// Which file system call.
#[derive(Debug, Clone)]
pub struct CallTrigger {
    /// Kinds of call. Never empty.
    pub kinds: Vec<FileCallKind>,
    /// Glob on paths below the root. `None`: all paths.
    pub paths: Option<globset::GlobMatcher>,
    /// Only during one occurrence of this phase.
    pub phase: Option<String>,
    /// Which of the matching calls.
    pub occurrence: Occurrence,
}

/// Which of several matching calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    /// Each in turn, one trial for each call that was counted in the baseline.
    Every,
    /// The call with this number, 1-based.
    Nth(u32),
}

/// How often a fault is injected in one trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Once.
    Transient,
    /// Each time that its trigger matches, from the first time on.
    Persistent,
}

/// When a fault is reverted.
#[derive(Debug, Clone)]
pub enum Until {
    /// At the end of the trial.
    Never,
    /// This long after the injection.
    After(Duration),
    /// When a line of the target's output matches.
    Output(Regex),
}

/// What a fault does.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Kills every process of the target at once with SIGKILL, then resumes the target.
    Crash { point: Option<KillPoint> },
    /// Sends a signal, one trial for each. Never empty. If it asks the target to exit, resumes the target.
    Signal { signals: Vec<SentSignal> },
    /// Shrinks the place's tmpfs until only `leave` bytes are free. `None`: each number of pages from 0 to
    /// the size of one save, one trial each.
    FillDisk { place: String, leave: Option<ByteSize> },
    /// Leaves the place's tmpfs without a free inode.
    ExhaustInodes { place: String },
    /// Makes the place read-only.
    ReadOnly { place: String },
    /// Limits the memory of all processes of the target together, so that the target is OOM-killed.
    MemoryLimit { limit: MemoryCap },
    /// Puts hostile files into a place, each by rename.
    Plant { place: String, files: Vec<PlantedFile> },
    /// Puts `files` files into the place, and removes them after the target has listed them and before it
    /// opens them.
    Vanish { place: String, files: u32, kind: DataKind },
    /// Gives one sample of each submitted file this weight, so that its loss overflows.
    PoisonSample { sample: u32, weight: f64 },
    /// Makes a call fail, one trial per errno. `performed`: the call is done before it returns the error.
    FailCall { errnos: Vec<Errno>, performed: bool },
    /// Makes a read or a write transfer only this many bytes.
    ShortCall { bytes: u32 },
    /// Delays a call.
    DelayCall { delay: Duration },
    /// Replaces the file at the call's path just before the call.
    SwapFile { replacement: Replacement },
    /// Makes each call fail with each plausible errno, transient and persistent, one trial each.
    SweepErrno,
    /// Rebuilds each file tree that a crash may leave of a recorded run, and resumes the target from it.
    CrashStates(CrashStates),
    /// Makes a call of the GPU driver fail, one trial per code and reporting. `sticky`: `None` as a real
    /// error of that code.
    GpuError {
        codes: Vec<CudaError>,
        reported: Vec<ErrorReporting>,
        sticky: Option<bool>,
        calls: GpuCallTrigger,
    },
    /// Makes a kernel run forever.
    GpuHang { calls: GpuCallTrigger },
    /// Overwrites a value in the output of a kernel.
    GpuOverwrite { with: WrongValue, calls: GpuCallTrigger },
    /// Flips one bit in the largest allocation.
    GpuFlipBit { calls: GpuCallTrigger },
    /// Fragments free device memory into pieces of at most `holes`.
    GpuFragment { holes: ByteSize, calls: GpuCallTrigger },
    /// Changes what the GPU reports about itself while the fault lasts.
    GpuState(GpuState),
}

impl Effect {
    /// The driver calls at which the fault is injected. `None` for faults that are not injected at driver
    /// calls.
    pub fn gpu_calls(&self) -> Option<&GpuCallTrigger> {
        match self {
            Effect::GpuError { calls, .. }
            | Effect::GpuHang { calls }
            | Effect::GpuOverwrite { calls, .. }
            | Effect::GpuFlipBit { calls }
            | Effect::GpuFragment { calls, .. } => Some(calls),
            _ => None,
        }
    }
}

/// Which crash states are tried.
#[derive(Debug, Clone)]
pub struct CrashStates {
    /// Kinds of crash. Never empty.
    pub models: Vec<CrashModel>,
    /// Only crashes from the start of one occurrence of this phase to the start of the next.
    pub phase: Option<String>,
    /// Only crashes at changes of these paths, relative to the root.
    pub paths: Option<globset::GlobMatcher>,
    /// The states are those of a second crash, during the recovery from a first one.
    pub in_recovery: bool,
}

/// Where in a call a kill happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillPoint {
    /// Before the kernel does the call.
    Before,
    /// Half of the bytes of a write have been written.
    Inside,
    /// After the kernel has done the call.
    After,
}

/// What a path refers to after the swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacement {
    /// The file is removed.
    Nothing,
    /// An empty file.
    EmptyFile,
    /// A symbolic link to a name that does not exist.
    DanglingLink,
}

/// How much memory a target may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryCap {
    /// This many bytes.
    Bytes(ByteSize),
    /// Percentage of the baseline's peak memory, 1 to 99.
    PercentOfBaselinePeak(u8),
}

/// A file to be planted.
#[derive(Debug, Clone, PartialEq)]
pub struct PlantedFile {
    /// File name, without separators.
    pub name: String,
    /// What it contains.
    pub kind: DataKind,
}

/// What a file contains: valid or hostile data, which the harness generates as a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum DataKind {
    /// Well-formed samples that differ from those of every other planted file.
    Sound { samples: u32 },
    /// Arrays nested to this depth.
    NestedJson { depth: u32 },
    /// An object that doubles at each level, written out: 2^levels leaves, at most 2^22.
    ExponentialJson { levels: u32 },
    /// One number of this many digits.
    LongNumber { digits: u32 },
    /// One object that has the same key `keys` times.
    DuplicateKeys { keys: u32 },
    /// One line of this size, sparse on disk.
    LongLine { size: ByteSize },
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
    /// The target's `verify` command exits with 0 at the end.
    Verifies,
    /// The target's `verify` command exits with 0 on the files that the method left, before the target is
    /// resumed.
    VerifiesBeforeResume,
    /// After a signal of the method, the main process exits with one of these codes.
    EndsWith(Vec<i32>),
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
        /// Counted before the target is resumed, not at the end.
        before_resume: bool,
    },
}
