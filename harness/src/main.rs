//! Parses, runs, and turns the ending into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainwreck::sandbox::run_init_if_requested();
    if let Some(answered) = trainwreck::gpu::run_probe_if_requested() {
        return answered;
    }
    trainwreck::cli::main().into()
}
