//! A checked scenario: whoever holds one need not ask whether it is right.

use std::collections::BTreeMap;
use std::time::Duration;

use regex::Regex;

use crate::calls::{CrashModel, Errno, FileCallKind};
use crate::gpu::{CudaError, ErrorReporting, GpuCallTrigger, GpuState, TargetGpu, WrongValue};
use crate::problem::{InvalidFile, Problem, suggestion};
use crate::spanned::Placed;
use crate::target::TargetFile;
use crate::units::ByteSize;
use crate::verdict::Outcome;

/// A checked scenario file, language version 1.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) severity: Severity,
    /// Name of a target file, or a path to one, relative to the scenario's file.
    pub(crate) target: String,
    pub(crate) gpu: Option<TargetGpu>,
    /// Settings of the target beside its defaults, such as `train.micro_batch` -> `8`.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) submit: Vec<SubmittedFile>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) method: Vec<Fault>,
    pub(crate) expect: Vec<Expectation>,
    pub(crate) guards: Vec<String>,
    /// Words that only the target file can tell right from wrong.
    pub(crate) target_names: Vec<(NameKind, Placed<String>)>,
    pub(crate) file: String,
    pub(crate) text: String,
}

/// What a name in a scenario is a name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameKind {
    Place,
    Phase,
    Guard,
    DataKind,
}

impl Scenario {
    /// Reads a scenario file's text; `file` is only named in errors.
    pub fn parse(text: &str, file: &str) -> Result<Scenario, InvalidFile> {
        crate::check::check_scenario(text, file)
    }

    /// Whether the target knows every place, phase, guard and kind of data that the scenario speaks of.
    pub fn check_against(&self, target: &TargetFile) -> Result<(), InvalidFile> {
        let problems: Vec<Problem> =
            self.target_names.iter().filter_map(|(of, name)| unknown_name(*of, name, target)).collect();
        if problems.is_empty() { Ok(()) } else { Err(InvalidFile::new(&self.file, &self.text, problems)) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn title(&self) -> &str {
        &self.title
    }

    pub fn severity(&self) -> Severity {
        self.severity
    }

    pub fn target(&self) -> &str {
        &self.target
    }

    /// The GPU that the target sees, if it gets one.
    pub fn gpu(&self) -> Option<&TargetGpu> {
        self.gpu.as_ref()
    }

    pub fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    pub fn submit(&self) -> &[SubmittedFile] {
        &self.submit
    }

    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Never empty.
    pub fn method(&self) -> &[Fault] {
        &self.method
    }

    /// Never empty.
    pub fn expect(&self) -> &[Expectation] {
        &self.expect
    }

    pub fn guards(&self) -> &[String] {
        &self.guards
    }
}

fn unknown_name(of: NameKind, name: &Placed<String>, target: &TargetFile) -> Option<Problem> {
    let (what, known): (&str, Vec<&str>) = match of {
        NameKind::Place => ("place", target.places.keys().map(String::as_str).collect()),
        NameKind::Phase => ("phase", target.phases.keys().map(String::as_str).collect()),
        NameKind::Guard => ("guard", target.guards.keys().map(String::as_str).collect()),
        NameKind::DataKind => ("kind of data", target.generate.keys().map(String::as_str).collect()),
    };
    if known.contains(&name.value.as_str()) {
        return None;
    }
    let message = format!("target `{}` has no {what} `{}`", target.id, name.value);
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Critical,
    Medium,
    Low,
    Extra,
}

/// A data file handed in before the start.
#[derive(Debug, Clone, PartialEq)]
pub enum SubmittedFile {
    /// Lies beside the scenario's file.
    File(String),
    /// Made by the target's `generate` command of that kind.
    Generated { kind: String, samples: u32, length: Option<u32> },
}

/// A place of the target that is a tmpfs of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub place: String,
    pub size: ByteSize,
    pub inodes: Option<u64>,
}

/// Something done to the target.
#[derive(Debug, Clone)]
pub struct Fault {
    pub effect: Effect,
    pub when: Trigger,
    pub persistence: Persistence,
    /// When it is taken back. Faults that leave nothing to take back have `Never`.
    pub until: Until,
    /// Overrides what counts as landed: a line of the target's that matches.
    pub effective_if_output: Option<Regex>,
    /// Trials at most; the rest are left out evenly, by seed, and counted.
    pub max_trials: u32,
}

/// When a fault strikes.
#[derive(Debug, Clone)]
pub enum Trigger {
    /// Before the target is started.
    Start,
    /// The target announces this step or a later one.
    Step(u64),
    /// A line of the target's output matches.
    Output(Regex),
    /// This long after the target's start.
    After(Duration),
    /// A file system call.
    Call(CallTrigger),
}

/// Which file system call.
#[derive(Debug, Clone)]
pub struct CallTrigger {
    /// Never empty.
    pub kinds: Vec<FileCallKind>,
    /// On paths below the root; none: all of them.
    pub paths: Option<globset::GlobMatcher>,
    /// Only within this phase, in one of its turns.
    pub phase: Option<String>,
    pub occurrence: Occurrence,
}

/// Which of several like moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occurrence {
    /// Each in turn: one trial for each that the steady state counted.
    Every,
    /// That one, 1-based.
    Nth(u32),
}

/// How often a fault strikes in one trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    Transient,
    /// Each time its trigger comes, from the first on.
    Persistent,
}

/// When a fault is taken back.
#[derive(Debug, Clone)]
pub enum Until {
    Never,
    After(Duration),
    Output(Regex),
}

/// What a fault does.
#[derive(Debug, Clone)]
pub enum Effect {
    /// SIGKILL of every process of the target at once; then it is resumed.
    Crash { point: Option<KillPoint> },
    /// SIGTERM to the main process, which must end by itself within the grace; then it is resumed.
    Terminate { grace: Duration },
    /// The place's tmpfs is shrunk until only `leave` bytes are free. `None`: every page count from 0 to the size of
    /// one save, one trial each.
    FillDisk { place: String, leave: Option<ByteSize> },
    /// The place's tmpfs is left without a free inode.
    ExhaustInodes { place: String },
    /// The place becomes read-only.
    ReadOnly { place: String },
    /// Memory of the whole target is limited to this part of the steady state's peak; a real OOM kill follows.
    MemoryLimit { limit: MemoryCap },
    /// Hostile files are put into a place, each by rename.
    Plant { place: String, files: Vec<PlantedFile> },
    /// `files` files are put into the place, and removed once the target has listed it, before it opens them.
    Vanish { place: String, files: u32, kind: DataKind },
    /// One sample of each submitted file gets this weight, so that its loss overflows.
    PoisonSample { sample: u32, weight: f64 },
    /// A call fails; a trial for each errno. `performed`: it is done all the same.
    FailCall { errnos: Vec<Errno>, performed: bool },
    /// A read or write moves only so many bytes.
    ShortCall { bytes: u32 },
    /// A call takes this long.
    DelayCall { delay: Duration },
    /// What the call's path stands for is replaced just before.
    SwapFile { replacement: Replacement },
    /// Every call, every plausible errno, once and from then on.
    SweepErrno,
    /// Every set of files that a crash may leave of a recorded run.
    CrashStates(CrashStates),
    /// A call of the GPU's driver fails; a trial for each code and each way to tell it. `sticky`: none is as the code has it.
    GpuError {
        codes: Vec<CudaError>,
        reported: Vec<ErrorReporting>,
        sticky: Option<bool>,
        calls: GpuCallTrigger,
    },
    /// A kernel never ends.
    GpuHang { calls: GpuCallTrigger },
    /// A kernel leaves a wrong value in what it wrote.
    GpuOverwrite { with: WrongValue, calls: GpuCallTrigger },
    /// A bit of the largest allocation flips.
    GpuFlipBit { calls: GpuCallTrigger },
    /// Free device memory is in holes of at most so much.
    GpuFragment { holes: ByteSize, calls: GpuCallTrigger },
    /// What the GPU tells of itself, while the fault lasts.
    GpuState(GpuState),
}

impl Effect {
    /// The calls of the driver at which it is made.
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

/// Which crash states.
#[derive(Debug, Clone)]
pub struct CrashStates {
    /// Never empty.
    pub models: Vec<CrashModel>,
    /// Only in one turn of this phase, up to the next one.
    pub phase: Option<String>,
    /// Only at changes of these paths, relative to the root.
    pub paths: Option<globset::GlobMatcher>,
    /// Of the recovery from a first crash.
    pub in_recovery: bool,
}

/// Where in a call a crash falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillPoint {
    Before,
    Inside,
    After,
}

/// What a path stands for after somebody came between check and use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacement {
    Nothing,
    EmptyFile,
    DanglingLink,
}

/// How much memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MemoryCap {
    Bytes(ByteSize),
    /// Percent of the peak memory of the steady state, 1 to 99.
    PercentOfBaselinePeak(u8),
}

/// A file with its content's kind.
#[derive(Debug, Clone, PartialEq)]
pub struct PlantedFile {
    /// File name, no separators.
    pub name: String,
    pub kind: DataKind,
}

/// Data, sound or hostile, made by the harness as a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum DataKind {
    /// `n` well-formed samples, all different from any other planted file's.
    Sound { samples: u32 },
    /// Arrays nested this deep.
    NestedJson { depth: u32 },
    /// Objects that double at each of `levels`, written out: 2^levels leaves at most 2^22.
    ExponentialJson { levels: u32 },
    /// One number of this many digits.
    LongNumber { digits: u32 },
    /// One object in which the same key stands `keys` times.
    DuplicateKeys { keys: u32 },
    /// One line of this many bytes, sparse on disk.
    LongLine { size: ByteSize },
}

/// What a scenario expects.
#[derive(Debug, Clone)]
pub struct Expectation {
    pub modality: Modality,
    pub fact: Fact,
    /// As written in the file, flow style, one line: `always: {restarts: {max: 0}}`.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// In every trial.
    Always,
    /// In at least one trial.
    Sometimes,
    /// At least once in the whole scenario: shows that the run went where it was meant to.
    Reached,
}

/// Something that holds in a trial or does not.
#[derive(Debug, Clone)]
pub enum Fact {
    Outcome(Vec<Outcome>),
    LostSteps {
        max: u64,
    },
    /// Values found by the target's `same` pattern equal the steady state's.
    SameAsBaseline,
    /// The loss of the last step differs from the steady state's by at most so much of it.
    FinalLoss {
        within_percent: f64,
    },
    /// Restarts that the method itself did not cause.
    Restarts {
        max: u32,
    },
    RecoveryTime {
        max: Duration,
    },
    PeakMemory {
        max: ByteSize,
    },
    /// The target's `verify` command exits with 0 at the end.
    Verifies,
    /// It does so before the target is resumed on files that the method left.
    VerifiesBeforeResume,
    /// Asked to end by a signal of the method, it ends with one of these exit codes.
    EndsWith(Vec<i32>),
    /// When the main process has ended by itself, no other process of the target is left.
    LeavesNoProcess,
    /// A line of the target's output matches.
    Output(Regex),
    /// At the end: files below the root that match the glob and contain the pattern, counted.
    Files {
        matching: globset::GlobMatcher,
        containing: Option<Regex>,
        min: u64,
        max: Option<u64>,
        /// Asked before the target is resumed, not at the end.
        before_resume: bool,
    },
}
