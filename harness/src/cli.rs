//! Reads the command line and calls what it asks for: one file per command. The short commands are here.

use std::path::Path;

use clap::Parser;

use crate::args::{CliCommand, CommandLine, SchemaKind};
use crate::exit::CommandExit;
use crate::{analyze, check, diagnostics, explore, print, run, scenario_library};
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
    match &command_line.command {
        None => run::run(&command_line.run, run::RunMode::Run),
        Some(CliCommand::Run(args)) => run::run(args, run::RunMode::Run),
        Some(CliCommand::Explore(args)) => explore::run(args),
        Some(CliCommand::Ablate(args)) => run::run(args, run::RunMode::Ablate),
        Some(CliCommand::List) => list(),
        Some(CliCommand::Check { files }) => check::check(files),
        Some(CliCommand::Analyze { record, out }) => analyze::analyze(record, out.as_deref()),
        Some(CliCommand::Doctor) => doctor(),
        Some(CliCommand::Recover) => recover(),
        Some(CliCommand::Schema { kind, write }) => print_schema(*kind, write.as_deref()),
    }
}

fn list() -> CommandExit {
    match scenario_library::shipped_scenarios() {
        Ok(all) => {
            for scenario_library::LoadedScenario { scenario, .. } in &all {
                let (id, severity, guards) =
                    (scenario.id(), scenario.severity().to_string(), scenario.guards().join(", "));
                print::line(&format!("{id:<9} {severity:<9} {:<52} {guards}", scenario.title()));
            }
            CommandExit::Success
        }
        Err(error) => diagnostics::print_library_error(&error),
    }
}

fn doctor() -> CommandExit {
    for mechanism in sandbox::doctor().into_iter().chain(gpu::doctor()) {
        let mark = if mechanism.granted { "✓" } else { "-" };
        print::line(&format!("{mark} {:<22} {}", mechanism.name, mechanism.detail));
    }
    CommandExit::Success
}

fn recover() -> CommandExit {
    match sandbox::remove_leftovers() {
        Ok(removed) if removed.is_empty() => print::line("there was nothing to remove"),
        Ok(removed) => removed.iter().for_each(|leftover| print::line(&format!("removed {leftover}"))),
        Err(error) => {
            print::error(&error);
            return CommandExit::CleanUpFailed;
        }
    }
    CommandExit::Success
}

fn print_schema(kind: SchemaKind, write_to: Option<&Path>) -> CommandExit {
    let Some(dir) = write_to else {
        print::line(
            match kind {
                SchemaKind::Scenario => scenarios::schema::scenario(),
                SchemaKind::Target => scenarios::schema::target(),
            }
            .trim_end(),
        );
        return CommandExit::Success;
    };
    let files = [
        ("scenario-v1.json", scenarios::schema::scenario()),
        ("target-v1.json", scenarios::schema::target()),
    ];
    for (name, text) in files {
        let path = dir.join(name);
        if let Err(error) = std::fs::write(&path, text) {
            print::error(&format!("could not write `{}`: {error}", path.display()));
            return CommandExit::HarnessFailed;
        }
        print::line(&format!("wrote {}", path.display()));
    }
    CommandExit::Success
}
