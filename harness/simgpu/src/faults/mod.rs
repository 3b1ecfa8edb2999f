//! What the plan injects, and which errors are in force in this process. It is the ground of the crate: entry
//! points fetch the [`FaultState`] once and hand it down. Must not know what a function of the driver does,
//! who executes it, or who calls.

mod active_rules;
mod compiled_plan;
mod corruption;
mod fault_state;
mod no_return;
mod standing_error;

pub(crate) use compiled_plan::DriverCall;
pub(crate) use corruption::{Corruption, set_pending_corruptions, take_pending_corruptions};
pub(crate) use fault_state::{CallOutcome, FaultState, chain_to, fault_state};
pub(crate) use no_return::{abort_with, hang};
