//! Runs the built command as users do: one program, so that tests that wait for programs run side by side. Each module
//! is about one promise of the command, and may use `support` only.
//!
//! `cargo test --test end_to_end -- exit_codes::` runs the tests of one module.

#![expect(clippy::unwrap_used, reason = "a test stops at the first failure")]

#[expect(dead_code, reason = "each test program uses a part of it")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod attributes;
mod bad_targets;
mod causes;
mod command;
mod denied;
mod destructive_targets;
mod engine_cases;
mod exit_codes;
mod exit_tables;
mod explore;
mod fault_evidence;
mod gpu;
mod interruptions;
mod large_trees;
mod limits;
mod policies;
mod promises;
mod repeats;
mod savers;
mod small_trainers;
mod starting_places;
mod target_files;
mod undisturbed;
mod user_files;
mod warm_start;

use std::process::ExitCode;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    // Modules whose tests last longest come first.
    let trials = [
        warm_start::trials(),
        interruptions::trials(),
        repeats::trials(),
        causes::trials(),
        engine_cases::trials(),
        attributes::trials(),
        user_files::trials(),
        promises::trials(),
        large_trees::trials(),
        savers::trials(),
        explore::trials(),
        undisturbed::trials(),
        fault_evidence::trials(),
        command::trials(),
        exit_tables::trials(),
        exit_codes::trials(),
        small_trainers::trials(),
        limits::trials(),
        gpu::trials(),
        policies::trials(),
        bad_targets::trials(),
        denied::trials(),
        destructive_targets::trials(),
        starting_places::trials(),
        target_files::trials(),
    ];
    support::trial::run_mostly_waiting(trials.into_iter().flatten().collect())
}
