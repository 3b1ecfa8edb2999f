//! The language of Trainwreck: scenario files, target files, records of runs, and verdicts.
//!
//! A scenario file is parsed and checked: `text -> Draft -> Scenario`. A `Scenario` is always valid. A
//! `Record` of `Event`s describes what a run did, and a `Verdict` is the result of judging it. An
//! `Exploration` is the result of trying crash states. This crate starts no process, and reads no clock, no
//! files and no environment variables.

#![forbid(unsafe_code)]

mod baseline_progress;
mod cause;
mod check;
mod control;
mod effect;
mod ending;
mod exploration;
mod exploration_note;
mod failed_run;
mod fault_id;
mod finding;
mod forked_recoveries;
mod gpu;
mod not_enumerated;
mod operation;
mod reason_group;
mod record;
mod record_lines;
mod recovery_check;
mod resource_use;
mod sandbox_hint;
mod scenario;
pub mod schema;
mod speed;
mod target;
mod template;
mod trial_counts;
mod trial_starts;
mod trials_planned;
mod trigger;
mod units;
mod verdict;
mod yaml;

pub use baseline_progress::{
    AnnouncedSave, BaselineJob, BaselineProgress, EndResume, ResumedJob, SaveControl,
};
pub use cause::{Cause, FailureSubject};
pub use control::{Control, ControlFiles};
pub use effect::*;
pub use ending::Ending;
pub use exploration::{CrashCategory, EXPLORATION_FORMAT, Exploration, ExplorationError};
pub use exploration_note::ExplorationNote;
pub use failed_run::{FailedRun, OutputLine, OutputStream, UndisturbedCommand};
pub use fault_id::{FaultId, NotEffective};
pub use finding::{Confirmation, FailingControls, Fate, Finding, MessageCount, OperationLine, OutcomeCount};
pub use forked_recoveries::ForkedRecoveries;
pub use gpu::{CudaError, CudaVersion, SimulatedGpu, TargetGpu};
pub use gpu_words::{ClockThrottleReason, DriverCallKind, ErrorTiming, OverwriteValue, Persistence};
pub use not_enumerated::{EnumerationRule, MAX_COUNTED_CANDIDATES, NotEnumerated, counted};
pub use operation::{CallKind, Errno};
pub use reason_group::ReasonGroup;
pub use record::{
    BaselineFacts, Event, MachineFacts, Mechanism, ProbeKind, Probed, RECORD_FORMAT, Record, RecordEntry,
    RecordError, RunEnded, RunStarted, ScenarioStarted, TargetStarted, TrialFacts, last_attempt,
};
pub use record_lines::{RecordLineFault, RecordLines};
pub use recovery_check::RecoveryCheck;
pub use resource_use::ResourceUse;
pub use sandbox_hint::{RefusedPeer, SandboxHint};
pub use scenario::{Expectation, Fact, Fault, Modality, Mount, Scenario, Severity, SubmittedFile};
pub use speed::{speed_text, time_text};
pub use target::{Announces, Phase, TargetFile, TargetNetwork};
pub use template::{CommandArgument, Placeholder, Template};
pub use trial_counts::{TrialCounts, TrialTotals};
pub use trial_starts::TrialStarts;
pub use trials_planned::{TrialBound, TrialUnit, TrialsPlanned, grouped};
pub use trigger::{CallTrigger, Occurrence, Trigger, Until};
pub use units::{ByteSize, UnitError, parse_bytes, parse_duration};
pub use verdict::{Outcome, Reason, Verdict, ViolationKind};
pub use yaml::problem::{InvalidFile, Problem};
