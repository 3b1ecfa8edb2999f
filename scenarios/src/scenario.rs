//! A checked scenario: whoever holds one need not ask whether it is right.

use std::collections::BTreeMap;
use std::time::Duration;

use regex::Regex;

use crate::calls::{CrashOf, Errno, Operation};
use crate::gpu::{CudaError, Gpu, GpuCalls, GpuState, Told, WrongValue};
use crate::placed::Placed;
use crate::problem::{InvalidFile, Problem, nearest};
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
    pub(crate) gpu: Option<Gpu>,
    /// Settings of the target beside its defaults, such as `train.micro_batch` -> `8`.
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) submit: Vec<SubmittedFile>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) method: Vec<Fault>,
    pub(crate) expect: Vec<Expectation>,
    pub(crate) guards: Vec<String>,
    /// Words that only the target file can tell right from wrong.
    pub(crate) names: Vec<(NameOf, Placed<String>)>,
    pub(crate) file: String,
    pub(crate) text: String,
}

/// What a name in a scenario is a name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameOf {
    Place,
    Phase,
    Guard,
    DataKind,
}

impl Scenario {
    /// Reads a scenario file's text; `file` is only named in errors.
    pub fn parse(text: &str, file: &str) -> Result<Scenario, InvalidFile> {
        crate::check::scenario(text, file)
    }

    /// Whether the target knows every place, phase, guard and kind of data that the scenario speaks of.
    pub fn check_against(&self, target: &TargetFile) -> Result<(), InvalidFile> {
        let problems: Vec<Problem> =
            self.names.iter().filter_map(|(of, name)| unknown(*of, name, target)).collect();
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
    pub fn gpu(&self) -> Option<&Gpu> {
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

fn unknown(of: NameOf, name: &Placed<String>, target: &TargetFile) -> Option<Problem> {
    let (what, known): (&str, Vec<&str>) = match of {
        NameOf::Place => ("place", target.places.keys().map(String::as_str).collect()),
        NameOf::Phase => ("phase", target.phases.keys().map(String::as_str).collect()),
        NameOf::Guard => ("guard", target.guards.keys().map(String::as_str).collect()),
        NameOf::DataKind => ("kind of data", target.generate.keys().map(String::as_str).collect()),
    };
    if known.contains(&name.value.as_str()) {
        return None;
    }
    let message = format!("target `{}` has no {what} `{}`", target.id, name.value);
    Some(name.problem(message).help(nearest(&name.value, known)))
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
    pub strike: Strike,
    /// When it is taken back. Faults that leave nothing to take back have `Never`.
    pub until: Until,
    /// Overrides what counts as landed: a line of the target's that matches.
    pub landed_if_said: Option<Regex>,
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
    Said(Regex),
    /// This long after the target's start.
    After(Duration),
    /// A file system call.
    Call(CallTrigger),
}

/// Which file system call.
#[derive(Debug, Clone)]
pub struct CallTrigger {
    /// Never empty.
    pub to: Vec<Operation>,
    /// On paths below the root; none: all of them.
    pub on: Option<globset::GlobMatcher>,
    /// Only within this phase, in one of its turns.
    pub during: Option<String>,
    pub at: Aim,
}

/// Which of several like moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Each in turn: one trial for each that the steady state counted.
    Every,
    /// That one, 1-based.
    Nth(u32),
}

/// How often a fault strikes in one trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    Once,
    /// Each time its trigger comes, from the first on.
    FromThenOn,
}

/// When a fault is taken back.
#[derive(Debug, Clone)]
pub enum Until {
    Never,
    After(Duration),
    Said(Regex),
}

/// What a fault does.
#[derive(Debug, Clone)]
pub enum Effect {
    /// SIGKILL of every process of the target at once; then it is resumed.
    Crash { point: Option<Point> },
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
    MemoryLimit { limit: Limit },
    /// Hostile files are put into a place, each by rename.
    Plant { place: String, files: Vec<Planted> },
    /// `files` files are put into the place, and removed once the target has listed it, before it opens them.
    Vanish { place: String, files: u32, kind: DataKind },
    /// One sample of each submitted file gets this weight, so that its loss overflows.
    PoisonSample { sample: u32, weight: f64 },
    /// A call fails; a trial for each errno. `performed`: it is done all the same.
    FailCall { errnos: Vec<Errno>, performed: bool },
    /// A read or write moves only so many bytes.
    ShortCall { bytes: u32 },
    /// A call takes this long.
    DelayCall { time: Duration },
    /// What the call's path stands for is replaced just before.
    SwapFile { by: Swapped },
    /// Every call, every plausible errno, once and from then on.
    SweepErrno,
    /// Every set of files that a crash may leave of a recorded run.
    CrashStates(CrashStates),
    /// A call of the GPU's driver fails; a trial for each code and each way to tell it. `sticky`: none is as the code has it.
    GpuError { codes: Vec<CudaError>, told: Vec<Told>, sticky: Option<bool>, calls: GpuCalls },
    /// A kernel never ends.
    GpuHang { calls: GpuCalls },
    /// A kernel leaves a wrong value in what it wrote.
    GpuOverwrite { with: WrongValue, calls: GpuCalls },
    /// A bit of the largest allocation flips.
    GpuFlipBit { calls: GpuCalls },
    /// Free device memory is in holes of at most so much.
    GpuFragment { holes: ByteSize, calls: GpuCalls },
    /// What the GPU tells of itself, while the fault lasts.
    GpuState(GpuState),
}

impl Effect {
    /// The calls of the driver at which it is made.
    pub fn gpu_calls(&self) -> Option<&GpuCalls> {
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
    pub of: Vec<CrashOf>,
    /// Only in one turn of this phase, up to the next one.
    pub during: Option<String>,
    /// Only at changes of these paths, relative to the root.
    pub on: Option<globset::GlobMatcher>,
    /// Of the recovery from a first crash.
    pub again: bool,
}

/// Where in a call a crash falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Before,
    Inside,
    After,
}

/// What a path stands for after somebody came between check and use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swapped {
    Nothing,
    EmptyFile,
    DanglingLink,
}

/// How much memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    Bytes(ByteSize),
    /// Percent of the peak memory of the steady state, 1 to 99.
    PercentOfSteadyPeak(u8),
}

/// A file with its content's kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Planted {
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
    SameAsSteadyState,
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
    Says(Regex),
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
