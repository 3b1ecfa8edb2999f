//! The last stage: why states fail, one finding for each cause, and all text about crash states for people.
//! Does not know how states are tried: `StateAttempts` tries them.

mod cause;
mod findings;
mod save_window;
mod shrink;
mod state_attempts;
mod state_text;
mod unsynced;

pub use findings::ReportSpec;
pub(super) use findings::group_findings;
pub(super) use state_attempts::StateAttempts;
pub use state_text::{describe_evidence, describe_state};
pub(super) use unsynced::never_synced;
