//! Runs scenarios: the baseline run, then one trial for each planned fault, then the verdict.
//!
//! The entry is [`run_suite`], with a [`Suite`] and a [`Reporter`](crate::observe::Reporter). Results are
//! emitted as events; this module prints nothing and knows no command-line arguments. Not done: repeating a
//! trial until its outcome is stable. A trial is repeated only if it did not reach the call of its fault.

mod active_fault;
mod answer_probe;
mod armed_call_fault;
mod baseline;
mod call_counter;
mod call_evidence;
mod call_injector;
mod crash_state_trials;
mod error;
mod fault_phase;
mod fault_schedule;
mod file_modes;
mod forked_envs;
mod gated_process;
mod gpu_call_counters;
mod injector_exchange;
mod line_waits;
mod missing_effect;
mod moment;
mod output_lines;
mod peak_memory;
mod phase_tracker;
mod printed_lines;
mod probe;
mod resource_watch;
mod resume_check;
mod save_control;
mod save_snapshots;
mod suite;
mod target_output;
mod target_run;
mod termination;
mod trial;
mod trial_comparison;
mod trial_env;
mod trial_runs;

pub use baseline::BaselineCache;
pub use error::RunError;
pub use suite::{
    PreparedScenario, ScenarioResult, Suite, SuiteResult, missing_file, needed_mechanisms, run_suite,
};
pub use trial_env::prepared_root;
