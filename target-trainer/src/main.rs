//! Parses, runs, and turns the ending into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    target_trainer::cli::main().into()
}
