//! The last stage: why states fail, one finding for each cause, and all text about crash states for people.
//! Does not know how states are tried: `StateAttempts` tries them.

mod blame;
mod cause;
mod control_findings;
mod failing_state;
mod failure_kind;
mod failure_message;
mod findings;
mod first_met;
mod leftover_names;
mod removed_newest;
mod report_spec;
mod save_window;
mod shrink;
mod state_attempts;
mod state_names;
mod state_text;
mod unsynced;

pub(super) use control_findings::is_newest_pruned;
pub(super) use failure_message::failure_message;
pub(crate) use failure_message::kind_of_message;
pub(super) use findings::{FindingsSource, group_findings};
pub(super) use first_met::FirstMet;
pub(super) use leftover_names::without_leftover_names;
pub use report_spec::ReportSpec;
pub(super) use state_attempts::{KnownFailure, StateAttempts};
pub(super) use state_names::name_of_state;
pub use state_text::{describe_evidence, describe_state};
pub(super) use unsynced::never_synced;
