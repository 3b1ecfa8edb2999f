//! Entry point of the `trainwreck` command: it reads the command line, calls the engine and the reports, and
//! prints. Only this package prints and picks the exit code; the engine does not know it. See
//! `trainwreck --help`.
//!
//! The same binary also runs as the init process of sandboxes and as a GPU probe, so these checks come first.

#![forbid(unsafe_code)]

mod analyze;
mod args;
mod build_display;
mod check;
mod cli;
mod diagnostics;
mod error;
mod exit;
mod exploration_output;
mod explore;
mod explore_display;
mod explore_options;
mod explore_target;
mod host_access_options;
mod interrupt;
mod option_error;
mod output_file;
mod plain_progress;
mod print;
mod record_writer;
mod report_files;
mod report_paths;
mod run;
mod run_display;
mod scenario_library;
mod session;
mod shell_quote;
mod sweep;
mod verdict_lines;

use std::process::ExitCode;

fn main() -> ExitCode {
    engine::sandbox::run_init_if_requested();
    if let Some(exit_code) = engine::gpu::run_probe_if_requested() {
        return exit_code;
    }
    cli::main().into()
}
