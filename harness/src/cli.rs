//! Reads the command line and calls what it asks for: one file per command. The short commands are here.

use std::path::Path;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};

use crate::args::{CliCommand, CommandLine, SchemaKind};
use crate::build_display::on_build;
use crate::error::CliError;
use crate::exit::CommandExit;
use crate::output_file::OutputFile;
use crate::sweep::{Sweep, SweepWait};
use crate::{analyze, check, diagnostics, explore, interrupt, print, run, scenario_library};
use engine::sandbox::SweptLeftovers;
use engine::{gpu, sandbox};

/// Runs the command that this process was started as.
pub(crate) fn main() -> CommandExit {
    interrupt::survive_file_size_limit();
    let exit = run_command_line();
    match print::lost_output() {
        None => exit,
        // Who reads the output would take what is missing for nothing.
        Some(cause) => {
            print::error(&format!(
                "could not write to standard output: {cause}; free some space there, or name another file"
            ));
            CommandExit::worst([exit, CommandExit::HarnessFailed])
        }
    }
}

fn run_command_line() -> CommandExit {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            let error = with_nearest_command(error);
            // Clap returns help and version as errors too, and prints each to the right stream.
            print::note_result(error.print());
            return if error.use_stderr() { CommandExit::InvalidInput } else { CommandExit::Success };
        }
    };
    exit_of_command(&command_line.command)
}

fn exit_of_command(command: &CliCommand) -> CommandExit {
    match run_command(command) {
        Ok(exit) => exit,
        // With its sandbox gone, whatever was going on fails in some way.
        Err(error) if interrupt::requested() && error.exit() != CommandExit::InvalidInput => {
            print::line("interrupted before anything was judged");
            CommandExit::Interrupted
        }
        Err(error) => {
            diagnostics::print_failure(&error);
            error.exit()
        }
    }
}

/// Adds the most similar command to the error of an unknown one. Clap's own measure does not see letters that
/// have changed places.
fn with_nearest_command(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else { return error };
    let commands = CommandLine::command();
    let names = commands.get_subcommands().map(|command| command.get_name().to_owned());
    let nearest = names.map(|known| (strsim::damerau_levenshtein(&known, name), known)).min();
    if let Some((1 | 2, nearest)) = nearest {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![nearest]));
    }
    error
}

fn run_command(command: &CliCommand) -> Result<CommandExit, CliError> {
    if matches!(
        command,
        CliCommand::Run(_) | CliCommand::Ablate(_) | CliCommand::Explore(_) | CliCommand::Recover
    ) {
        interrupt::install()?;
    }
    if matches!(command, CliCommand::Run(_) | CliCommand::Ablate(_) | CliCommand::Explore(_)) {
        sandbox::current_dir().map_err(CliError::NoCurrentDir)?;
    }
    match command {
        CliCommand::Run(args) => run::run(args, run::RunMode::Run),
        CliCommand::Explore(args) => explore::run(args),
        CliCommand::Ablate(args) => run::run(
            &args.run,
            run::RunMode::Ablate { keep_going: args.keep_going, with_guards: args.with_guards },
        ),
        CliCommand::List => list(),
        CliCommand::Check { files } => Ok(check::check(files)),
        CliCommand::Analyze { record, out, require } => {
            analyze::analyze(record, out.as_deref(), require.is_some())
        }
        CliCommand::Doctor => Ok(doctor()),
        CliCommand::Recover => recover(),
        CliCommand::Schema { kind, write } => print_schema(*kind, write.as_deref()),
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
    for mechanism in sandbox::doctor().into_iter().chain(gpu::doctor(&on_build)) {
        let mark = if mechanism.granted { "✓" } else { "-" };
        print::line(&format!("{mark} {:<22} {}", mechanism.name, mechanism.detail));
    }
    CommandExit::Success
}

fn recover() -> Result<CommandExit, CliError> {
    let swept = Sweep::start().finish(SweepWait::ToTheEnd).map_err(CliError::Leftovers)?;
    let swept = swept.unwrap_or(SweptLeftovers { is_unfinished: true, ..SweptLeftovers::default() });
    if swept.removed.is_empty() && swept.kept.is_empty() && !swept.is_unfinished {
        print::line("there was nothing to remove");
    }
    swept.removed.iter().for_each(|leftover| print::line(&format!("removed {leftover}")));
    swept.kept.iter().for_each(|leftover| print::error_with_sources(leftover));
    if swept.is_unfinished {
        print::line("interrupted: not everything is removed");
    }
    let exits = [
        (!swept.kept.is_empty()).then_some(CommandExit::CleanUpFailed),
        swept.is_unfinished.then_some(CommandExit::Interrupted),
        Some(CommandExit::Success),
    ];
    Ok(CommandExit::worst(exits.into_iter().flatten()))
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
    let checked = files.map(|(name, text)| (dir.join(name), text));
    let checked: Result<Vec<_>, CliError> = checked
        .into_iter()
        .map(|(path, text)| Ok((OutputFile::check("--write", &path)?, path, text)))
        .collect();
    for (file, path, text) in checked? {
        file.write(&text)?;
        print::line(&format!("wrote {}", path.display()));
    }
    Ok(CommandExit::Success)
}
