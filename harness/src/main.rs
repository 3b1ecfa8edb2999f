//! Parses, runs, and turns the ending into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainwreck::sandbox::become_warden_if_asked();
    if let Some(answered) = trainwreck::gpu::probe_if_asked() {
        return answered;
    }
    trainwreck::cli::main().into()
}
