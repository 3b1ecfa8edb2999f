//! `explore`: runs the exploration, and prints and writes its result. Knows no scenario.

use std::collections::BTreeMap;

use scenarios::{Exploration, RecoveryCheck};

use crate::args::ExploreArgs;
use crate::error::CliError;
use crate::exit::CommandExit;
use crate::explore_display::ExploreDisplay;
use crate::explore_options::PreparedExploration;
use crate::session::Session;
use crate::shell_quote::shell_quote;
use crate::{diagnostics, exploration_output, explore_target, interrupt, print, report_files};
use engine::explore::{
    EnumerateSpec, ExploreConfig, ExploreError, ExploreProgress, ExploreResult, RecordSpec, ReplaySpec,
    ReportSpec, SecondCrash, explore, explore_second_crashes,
};
use engine::file_error::file_error;

/// Explores the crash states of the given command or target.
///
/// # Errors
/// If an option or a target cannot be used, the command gives no crash states to judge, or the harness cannot
/// do its work.
pub(crate) fn run(args: &ExploreArgs) -> Result<CommandExit, CliError> {
    let session = Session::open(args.jobs)?;
    let prepared = match &args.target {
        Some(name) => explore_target::prepare_target(args, name, &session.dir().join("target"))?,
        None => PreparedExploration::from_args(args)?,
    };
    let exit = run_prepared(args, prepared, &session);
    let cleaned_up = session.close();
    // An error that is returned is printed by the caller.
    match (exit, cleaned_up) {
        (Ok(exit), Ok(())) => Ok(exit),
        (Ok(exit), Err(error)) => {
            diagnostics::print_failure(&error);
            Ok(CommandExit::worst([exit, error.exit()]))
        }
        (Err(failure), Ok(())) => Err(failure),
        (Err(failure), Err(error)) => {
            diagnostics::print_failure(&failure);
            diagnostics::print_failure(&error);
            Ok(CommandExit::worst([failure.exit(), error.exit()]))
        }
    }
}

fn run_prepared(
    args: &ExploreArgs,
    prepared: PreparedExploration,
    session: &Session,
) -> Result<CommandExit, CliError> {
    let config = explore_config(args, prepared, session);
    print::line(&RecoveryCheck::describe(&config.checks()));
    let display = ExploreDisplay::new();
    let explored = explore_to_depth(args, &config, &|progress| display.on_progress(&progress));
    drop(display);
    let explored = match explored {
        // The output of a run that was stopped halfway says nothing about the trainer.
        Err(error) if error.is_interruption() && interrupt::requested() => {
            print::line("interrupted before a state was tried");
            return Ok(CommandExit::Interrupted);
        }
        explored => explored?,
    };
    let exploration = explored.exploration();
    let selected = config.enumerate.only_state.is_some();
    exploration_output::print_exploration(&explored.first, &exploration, selected);
    if args.depth == 2 && !selected {
        exploration_output::print_second_crashes(&exploration, interrupt::requested());
    }
    if let Some(file) = &args.json {
        std::fs::write(file, exploration.to_json()).map_err(file_error::<CliError>("write", file))?;
    }
    if let Some(out) = &args.out {
        let out_dir = report_files::create_out_dir(Some(out), "explore")?;
        exploration_output::write_report_files(&exploration, &out_dir)?;
    }
    let found = match exploration.has_no_findings() {
        true if exploration.tried == 0 || exploration.has_unjudged() => CommandExit::Inconclusive,
        true => CommandExit::Success,
        false => CommandExit::Violation,
    };
    let interrupted = interrupt::requested().then_some(CommandExit::Interrupted);
    Ok(CommandExit::worst([found].into_iter().chain(interrupted)))
}

/// The explorations that one command asks for.
struct ExploredCommand {
    first: ExploreResult,
    second_crashes: Vec<SecondCrash>,
}

impl ExploredCommand {
    fn exploration(&self) -> Exploration {
        let second = self
            .second_crashes
            .iter()
            .map(|second| Exploration { after: Some(second.after.clone()), ..second.result.exploration() });
        Exploration { second: second.collect(), ..self.first.exploration() }
    }
}

fn explore_to_depth(
    args: &ExploreArgs,
    config: &ExploreConfig,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<ExploredCommand, ExploreError> {
    let first = explore(config, report)?;
    let second_crashes = match args.depth {
        2 if config.enumerate.only_state.is_none() => explore_second_crashes(config, &first, report)?,
        _ => Vec::new(),
    };
    Ok(ExploredCommand { first, second_crashes })
}

/// What each stage of the exploration needs.
fn explore_config(args: &ExploreArgs, prepared: PreparedExploration, session: &Session) -> ExploreConfig {
    let work_dir = session.dir();
    ExploreConfig {
        record: RecordSpec {
            watched_dirs: prepared.watched_dirs.clone(),
            command: prepared.command,
            host_access: prepared.host_access.clone(),
            saved_pattern: prepared.saved_pattern,
            first_crash: None,
            work_dir: work_dir.into(),
            cancelled: interrupt::requested,
        },
        enumerate: EnumerateSpec { scope: prepared.scope, only_state: prepared.only_state },
        replay: ReplaySpec {
            watched_dirs: prepared.watched_dirs,
            resume: prepared.resume,
            check: prepared.check,
            host_access: prepared.host_access,
            timeout: prepared.timeout,
            jobs: session.jobs(),
            warm_modules: args.warm.clone(),
            work_dir: work_dir.into(),
            began_unix_s: jiff::Timestamp::now().as_second(),
            cancelled: interrupt::requested,
        },
        judge: prepared.judge,
        report: ReportSpec { repeat_command: repeat_command() },
    }
}

/// This command line with a placeholder for the name of a state. Options that write files are left out.
fn repeat_command() -> String {
    let mut args: Vec<String> = std::env::args().collect();
    args[0] = "trainwreck".into();
    let dropped_options: BTreeMap<&str, usize> = [("--state", 2), ("--json", 2), ("--out", 2)].into();
    // After `--` comes the trainer's command, which may have options of the same names.
    let options_end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let mut kept_args = Vec::new();
    let mut index = 0;
    while index < args.len() {
        match dropped_options.get(args[index].as_str()).filter(|_| index < options_end) {
            Some(count) => index += count,
            None => {
                kept_args.push(shell_quote(&args[index]));
                index += 1;
            }
        }
    }
    let after_command = kept_args.iter().position(|arg| arg == "explore").map_or(1, |index| index + 1);
    kept_args.insert(after_command.min(kept_args.len()), "--state STATE".into());
    kept_args.join(" ")
}
