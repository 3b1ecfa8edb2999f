//! The words of Trainwreck, and nothing that acts on them.
//!
//! A scenario file goes `text -> Draft -> Scenario`; a `Scenario` cannot be wrong. What a run did is a `Record`
//! of `Event`s; what that means is a `Verdict`. This crate starts no process, and reads no clock and no environment.

#![forbid(unsafe_code)]

mod calls;
mod check;
mod check_target;
mod draft;
mod expect_draft;
mod gpu;
mod gpu_draft;
mod leaf;
mod placed;
mod problem;
mod read;
mod record;
mod scenario;
pub mod schema;
mod target;
mod target_draft;
mod tree;
mod units;
mod verdict;

pub use calls::{CrashOf, Errno, Operation};
pub use gpu::{
    CudaError, CudaVersion, Gpu, GpuCallKind, GpuCalls, GpuState, SimulatedGpu, Throttle, Told, WrongValue,
};
pub use problem::{InvalidFile, Problem};
pub use record::{
    Ending, Entry, Event, Machine, Mechanism, Probed, RECORD_FORMAT, Record, RecordError, RunEnded,
    RunStarted, ScenarioStarted, SteadyFacts, Stream, TargetStarted, TrialFacts,
};
pub use scenario::{
    Aim, CallTrigger, CrashStates, DataKind, Effect, Expectation, Fact, Fault, Limit, Modality, Mount,
    Planted, Point, Scenario, Severity, Strike, SubmittedFile, Swapped, Trigger, Until,
};
pub use target::{Announces, Phase, TargetFile};
pub use units::{ByteSize, parse_bytes, parse_duration};
pub use verdict::{Outcome, Reason, Verdict};
