//! `explore`: checks the options, runs the exploration, and prints and writes its result. Knows no scenario.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use scenarios::Exploration;

use crate::args::{CrashArg, ExploreArgs, FsModelArg};
use crate::error::CliError;
use crate::exit::CommandExit;
use crate::explore_display::ExploreDisplay;
use crate::option_error::OptionError;
use crate::session::Session;
use crate::{diagnostics, exploration_output, explore_target, interrupt, report_files};
use engine::explore::{
    CrashCandidate, EnumerateSpec, ExploreConfig, ExploreError, ExploreProgress, ExploreResult, ExploreScope,
    FsModel, JudgeSpec, RecordSpec, ReplaySpec, ReportSpec, SecondCrash, explore, explore_second_crashes,
};
use engine::file_error::file_error;
use engine::sandbox::LaunchSpec;

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
    run_prepared(args, prepared, session)
}

/// The checked options that describe the trainer, from the command line or from a target file.
pub(crate) struct PreparedExploration {
    pub(crate) watched_dirs: Vec<PathBuf>,
    /// The watched directories that did not exist and were created for this run.
    pub(crate) created_dirs: Vec<PathBuf>,
    pub(crate) saved_pattern: Option<Regex>,
    pub(crate) judge: JudgeSpec,
    pub(crate) scope: ExploreScope,
    pub(crate) only_state: Option<CrashCandidate>,
    pub(crate) command: LaunchSpec,
    pub(crate) resume: LaunchSpec,
    pub(crate) check: Option<LaunchSpec>,
    pub(crate) timeout: Duration,
}

impl PreparedExploration {
    /// Reads the options.
    fn from_args(args: &ExploreArgs) -> Result<PreparedExploration, CliError> {
        let saved_pattern = parse_pattern("--saved", args.saved.as_deref(), PatternGroup::Step)?;
        let judge = JudgeSpec {
            resumed: parse_pattern("--resumed", args.resumed.as_deref(), PatternGroup::Step)?,
            step: parse_pattern("--step", args.step.as_deref(), PatternGroup::Step)?,
            consumed: parse_consumed(args.consumed.as_deref())?,
            same: parse_pattern("--same", args.same.as_deref(), PatternGroup::Only)?,
            refused_exits: args.refused_exit.clone(),
        };
        let scope = scope(args);
        let only_state = parse_state(args)?;
        let command = launch_here(&args.command)?;
        let shell = |text: &String| launch_here(&["/bin/sh".into(), "-c".into(), text.into()]);
        let resume = args.resume.as_ref().map(shell).transpose()?.unwrap_or_else(|| command.clone());
        let check = args.check.as_ref().map(shell).transpose()?;
        let WatchedDirs { resolved: watched_dirs, created: created_dirs } =
            WatchedDirs::resolve(&args.watch)?;
        let timeout = args.timeout;
        Ok(PreparedExploration {
            watched_dirs,
            created_dirs,
            saved_pattern,
            judge,
            scope,
            only_state,
            command,
            resume,
            check,
            timeout,
        })
    }
}

/// The state that `--state` names.
///
/// # Errors
/// If it names none.
pub(crate) fn parse_state(args: &ExploreArgs) -> Result<Option<CrashCandidate>, OptionError> {
    let unknown = |name: &String| OptionError::UnknownState { name: name.clone() };
    let parsed = |name: &String| CrashCandidate::parse(name).ok_or_else(|| unknown(name));
    args.state.as_ref().map(parsed).transpose()
}

/// The crashes and file systems that `--crash`, `--model` and `--max-states` select.
pub(crate) fn scope(args: &ExploreArgs) -> ExploreScope {
    let process_crashes = args.crash != CrashArg::Power;
    let power_losses = args.crash != CrashArg::Process;
    let chosen: Vec<FsModel> = args.model.iter().map(|model| model.fs_model()).collect();
    let models = match (power_losses, chosen.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => FsModel::ALL.to_vec(),
        (true, false) => chosen,
    };
    ExploreScope { process_crashes, models, max_states: args.max_states, crash_points: None }
}

/// The group that an option's pattern must have.
enum PatternGroup {
    /// The group `step`.
    Step,
    /// Exactly one group.
    Only,
}

/// Compiles an option's pattern.
fn parse_pattern(
    option: &'static str,
    text: Option<&str>,
    group: PatternGroup,
) -> Result<Option<Regex>, OptionError> {
    let Some(text) = text else { return Ok(None) };
    let pattern = Regex::new(text).map_err(|source| OptionError::Pattern { option, source })?;
    match group {
        PatternGroup::Step if !has_group(&pattern, "step") => {
            Err(OptionError::NoStepGroup { option, text: text.into(), group: "step" })
        }
        PatternGroup::Only if pattern.captures_len() != 2 => {
            Err(OptionError::NotOneGroup { option, text: text.into() })
        }
        PatternGroup::Step | PatternGroup::Only => Ok(Some(pattern)),
    }
}

fn has_group(pattern: &Regex, name: &str) -> bool {
    pattern.capture_names().flatten().any(|group| group == name)
}

fn parse_consumed(text: Option<&str>) -> Result<Option<Regex>, OptionError> {
    let pattern = parse_pattern("--consumed", text, PatternGroup::Step)?;
    match &pattern {
        Some(pattern) if !has_group(pattern, "value") => {
            Err(OptionError::NoValueGroup { pattern: pattern.to_string() })
        }
        _ => Ok(pattern),
    }
}

/// How to start a command: in the current directory, with the environment of this process.
fn launch_here(argv: &[OsString]) -> Result<LaunchSpec, CliError> {
    let cwd = std::env::current_dir()
        .map_err(file_error::<CliError>("find the current directory", Path::new(".")))?;
    Ok(LaunchSpec { argv: argv.to_vec(), env: std::env::vars_os().collect(), cwd: Some(cwd) })
}

/// The directories of `--watch`.
struct WatchedDirs {
    /// Without links in their paths, and without directories inside other ones.
    resolved: Vec<PathBuf>,
    /// Those that were missing, and have been created.
    created: Vec<PathBuf>,
}

impl WatchedDirs {
    fn resolve(dirs: &[PathBuf]) -> Result<WatchedDirs, OptionError> {
        let (mut resolved, mut created): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
        for dir in dirs {
            let failed = |source| OptionError::Watch { path: dir.clone(), source };
            if !dir.exists() {
                std::fs::create_dir_all(dir).map_err(failed)?;
                created.push(dir.clone());
            }
            if !dir.is_dir() {
                return Err(OptionError::WatchNotDirectory { path: dir.clone() });
            }
            let real = dir.canonicalize().map_err(failed)?;
            if real == Path::new("/") {
                return Err(OptionError::WatchRoot);
            }
            resolved.push(real);
        }
        resolved.sort();
        resolved.dedup();
        let all = resolved.clone();
        resolved.retain(|dir| !all.iter().any(|other| dir != other && dir.starts_with(other)));
        Ok(WatchedDirs { resolved, created })
    }
}

fn run_prepared(
    args: &ExploreArgs,
    prepared: PreparedExploration,
    session: Session,
) -> Result<CommandExit, CliError> {
    let created_dirs = prepared.created_dirs.clone();
    let config = explore_config(args, prepared, &session);
    let display = ExploreDisplay::new();
    let explored = explore_to_depth(args, &config, &|progress| display.on_progress(&progress));
    drop(display);
    // The trainer saved in copies, so a created directory is still empty. If it is not, it stays.
    created_dirs.iter().for_each(|dir| drop(std::fs::remove_dir(dir)));
    let explored = match explored {
        // The output of a run that was stopped halfway says nothing about the trainer.
        Err(_) if interrupt::requested() => return Ok(CommandExit::Interrupted),
        explored => explored?,
    };
    let exploration = explored.exploration();
    let selected = config.enumerate.only_state.is_some();
    exploration_output::print_exploration(&explored.first, &exploration, selected);
    if args.depth == 2 && !selected {
        exploration_output::print_second_crashes(&exploration);
    }
    if let Some(file) = &args.json {
        std::fs::write(file, exploration.to_json()).map_err(file_error::<CliError>("write", file))?;
    }
    if let Some(out) = &args.out {
        let out_dir = report_files::create_out_dir(Some(out), "explore")?;
        exploration_output::write_report_files(&exploration, &out_dir)?;
    }
    let found = if exploration.has_no_findings() { CommandExit::Success } else { CommandExit::Violation };
    let interrupted = interrupt::requested().then_some(CommandExit::Interrupted);
    let cleaned_up = session.close().map_err(|error| {
        diagnostics::print_failure(&error);
        error.exit()
    });
    Ok(CommandExit::worst([found].into_iter().chain(interrupted).chain(cleaned_up.err())))
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

/// Quotes an argument for a POSIX shell, if it needs quotes.
fn shell_quote(argument: &str) -> String {
    let needs_no_quotes = |letter: char| letter.is_ascii_alphanumeric() || "-_./=,:@%+".contains(letter);
    if !argument.is_empty() && argument.chars().all(needs_no_quotes) {
        argument.into()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

impl FsModelArg {
    fn fs_model(self) -> FsModel {
        match self {
            FsModelArg::Posix => FsModel::Posix,
            FsModelArg::Ext4 => FsModel::Ext4,
            FsModelArg::Xfs => FsModel::Xfs,
            FsModelArg::Btrfs => FsModel::Btrfs,
            FsModelArg::Lying => FsModel::Lying,
        }
    }
}
