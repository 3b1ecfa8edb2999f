//! The language of Trainwreck: scenario files, target files, records of runs, and verdicts.
//!
//! A scenario file is parsed and checked: `text -> Draft -> Scenario`. A `Scenario` is always valid. A
//! `Record` of `Event`s describes what a run did, and a `Verdict` is the result of judging it. An
//! `Exploration` is the result of trying crash states. This crate starts no process, and reads no clock, no
//! files and no environment variables.

#![forbid(unsafe_code)]

mod calls;
mod check;
mod check_target;
mod draft;
mod expect_draft;
mod exploration;
mod gpu;
mod gpu_draft;
mod leaf;
mod problem;
mod read;
mod record;
mod scenario;
pub mod schema;
mod signal;
mod spanned;
mod target;
mod target_draft;
mod tree;
mod units;
mod verdict;

pub use calls::{CrashModel, Errno, FileCallKind};
pub use exploration::{
    Cause, CrashCategory, EXPLORATION_FORMAT, Exploration, ExplorationError, Fate, Finding, OperationLine,
};
pub use gpu::{
    CudaError, CudaVersion, ErrorReporting, GpuCallKind, GpuCallTrigger, GpuState, SimulatedGpu, TargetGpu,
    ThrottleReason, WrongValue,
};
pub use problem::{InvalidFile, Problem};
pub use record::{
    BaselineFacts, Ending, Event, MachineFacts, Mechanism, OutputStream, ProbeKind, Probed, RECORD_FORMAT,
    Record, RecordEntry, RecordError, RunEnded, RunStarted, ScenarioStarted, TargetStarted, TrialFacts,
};
pub use scenario::{
    CallTrigger, CrashStates, DataKind, Effect, Expectation, Fact, Fault, KillPoint, MemoryCap, Modality,
    Mount, Occurrence, Persistence, PlantedFile, Replacement, Scenario, Severity, SubmittedFile, Trigger,
    Until,
};
pub use signal::{SentSignal, SignalName, SignalRecipient};
pub use target::{Announces, Phase, TargetFile};
pub use units::{ByteSize, parse_bytes, parse_duration};
pub use verdict::{Outcome, Reason, Verdict};
