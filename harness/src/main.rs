//! Parses, runs, and turns the ending into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainwreck::sandbox::become_warden_if_asked();
    trainwreck::cli::main().into()
}
