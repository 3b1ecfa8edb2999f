//! The words of Trainwreck, and nothing that acts on them.
//!
//! A scenario file goes `text -> Draft -> Scenario`; a `Scenario` cannot be wrong. What a run did is a `Record`
//! of `Event`s; what that means is a `Verdict`. This crate starts no process, and reads no clock and no environment.

mod record;
mod scenario;
mod target;
mod units;
mod verdict;

pub use record::{
    Ending, Entry, Event, Machine, Mechanism, Probed, RECORD_FORMAT, Record, RunEnded, RunStarted, ScenarioStarted,
    SteadyFacts, Stream, TargetStarted, TrialFacts,
};
pub use scenario::{
    Aim, DataKind, Effect, Expectation, Fact, Fault, Limit, Modality, Mount, Planted, Scenario, Severity, Strike,
    SubmittedFile, Trigger, Until,
};
pub use target::{Announces, Phase, TargetFile};
pub use units::{ByteSize, parse_bytes, parse_duration};
pub use verdict::{Outcome, Reason, Verdict};
