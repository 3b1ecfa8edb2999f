//! The `target-trainer` binary: runs the command line and returns its exit code.
//! `target-trainer --help` lists the commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    target_trainer::cli::main().into()
}
