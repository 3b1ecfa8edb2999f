//! Entry point of the `trainwreck` command. The command line is in `cli`; see `trainwreck --help`.
//!
//! The same binary also runs as the init process of sandboxes and as a GPU probe, so these checks come first.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainwreck::sandbox::run_init_if_requested();
    if let Some(exit_code) = trainwreck::gpu::run_probe_if_requested() {
        return exit_code;
    }
    trainwreck::cli::main().into()
}
