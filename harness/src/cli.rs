//! Reads the command line and calls what it asks for: one file per command. The short commands are here.

use std::path::Path;

use clap::Parser;

use crate::args::{CliCommand, CommandLine, SchemaKind};
use crate::error::CliError;
use crate::exit::CommandExit;
use crate::{analyze, check, diagnostics, explore, print, run, scenario_library};
use engine::file_error::file_error;
use engine::{gpu, sandbox};

/// Runs the command that this process was started as.
pub(crate) fn main() -> CommandExit {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            // Clap returns help and version as errors too, and prints each to the right stream.
            let _ = error.print();
            return if error.use_stderr() { CommandExit::InvalidInput } else { CommandExit::Success };
        }
    };
    match run_command(&command_line) {
        Ok(exit) => exit,
        Err(error) => {
            diagnostics::print_failure(&error);
            error.exit()
        }
    }
}

fn run_command(command_line: &CommandLine) -> Result<CommandExit, CliError> {
    match &command_line.command {
        None => run::run(&command_line.run, run::RunMode::Run),
        Some(CliCommand::Run(args)) => run::run(args, run::RunMode::Run),
        Some(CliCommand::Explore(args)) => explore::run(args),
        Some(CliCommand::Ablate(args)) => run::run(args, run::RunMode::Ablate),
        Some(CliCommand::List) => list(),
        Some(CliCommand::Check { files }) => Ok(check::check(files)),
        Some(CliCommand::Analyze { record, out }) => analyze::analyze(record, out.as_deref()),
        Some(CliCommand::Doctor) => Ok(doctor()),
        Some(CliCommand::Recover) => recover(),
        Some(CliCommand::Schema { kind, write }) => print_schema(*kind, write.as_deref()),
    }
}

fn list() -> Result<CommandExit, CliError> {
    for scenario_library::LoadedScenario { scenario, .. } in scenario_library::shipped_scenarios()? {
        let (id, severity, guards) =
            (scenario.id(), scenario.severity().to_string(), scenario.guards().join(", "));
        print::line(&format!("{id:<9} {severity:<9} {:<52} {guards}", scenario.title()));
    }
    Ok(CommandExit::Success)
}

fn doctor() -> CommandExit {
    for mechanism in sandbox::doctor().into_iter().chain(gpu::doctor()) {
        let mark = if mechanism.granted { "✓" } else { "-" };
        print::line(&format!("{mark} {:<22} {}", mechanism.name, mechanism.detail));
    }
    CommandExit::Success
}

fn recover() -> Result<CommandExit, CliError> {
    let removed = sandbox::remove_leftovers().map_err(CliError::CleanUp)?;
    if removed.is_empty() {
        print::line("there was nothing to remove");
    }
    removed.iter().for_each(|leftover| print::line(&format!("removed {leftover}")));
    Ok(CommandExit::Success)
}

fn print_schema(kind: SchemaKind, write_to: Option<&Path>) -> Result<CommandExit, CliError> {
    let Some(dir) = write_to else {
        print::line(
            match kind {
                SchemaKind::Scenario => scenarios::schema::scenario(),
                SchemaKind::Target => scenarios::schema::target(),
            }
            .trim_end(),
        );
        return Ok(CommandExit::Success);
    };
    let files = [
        ("scenario-v1.json", scenarios::schema::scenario()),
        ("target-v1.json", scenarios::schema::target()),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(file_error::<CliError>("write", &path))?;
        print::line(&format!("wrote {}", path.display()));
    }
    Ok(CommandExit::Success)
}
