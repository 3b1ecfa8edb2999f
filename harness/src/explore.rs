//! `explore`: checks the options, runs the exploration, and prints and writes its result. Knows no scenario.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use scenarios::Exploration;

use crate::args::{CrashArg, ExploreArgs, FsModelArg};
use crate::exit::CommandExit;
use crate::explore_display::ExploreDisplay;
use crate::{exploration_output, explore_target, print, report_files};
use engine::explore::{
    CrashCandidate, EnumerateSpec, ExploreConfig, ExploreError, ExploreProgress, ExploreResult, ExploreScope,
    FsModel, JudgeSpec, RecordSpec, ReplaySpec, ReportSpec, SecondCrash, explore, explore_second_crashes,
};
use engine::file_error::chain;
use engine::sandbox::{self, LaunchSpec, RunDir};

/// Explores the crash states of the given command or target.
pub(crate) fn run(args: &ExploreArgs) -> CommandExit {
    let run_dir = match create_run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => {
            print::error(&error);
            return CommandExit::HarnessFailed;
        }
    };
    let prepared = match &args.target {
        Some(name) => explore_target::prepare_target(args, name, &run_dir.path().join("target")),
        None => PreparedExploration::from_args(args),
    };
    match prepared.map(|prepared| run_prepared(args, prepared, run_dir)) {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => {
            print::error(&error);
            CommandExit::HarnessFailed
        }
        Err(error) => {
            print::error(&error);
            CommandExit::InvalidInput
        }
    }
}

/// Removes what earlier runs left behind, then creates a directory for the sandboxes.
fn create_run_dir() -> Result<RunDir, String> {
    for leftover in sandbox::remove_leftovers()
        .map_err(|error| format!("could not remove what an earlier run left behind: {error}"))?
    {
        print::line(&format!("removed {leftover}"));
    }
    RunDir::create().map_err(|error| format!("could not create a directory for the sandboxes: {error}"))
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
    /// Reads the options. The error is a message for the user.
    fn from_args(args: &ExploreArgs) -> Result<PreparedExploration, String> {
        let saved_pattern = parse_pattern("--saved", args.saved.as_deref(), Some("step"))?;
        let judge = JudgeSpec {
            resumed: parse_pattern("--resumed", args.resumed.as_deref(), Some("step"))?,
            step: parse_pattern("--step", args.step.as_deref(), Some("step"))?,
            consumed: parse_consumed(args.consumed.as_deref())?,
            same: parse_pattern("--same", args.same.as_deref(), None)?,
            refused_exits: args.refused_exit.clone(),
        };
        let scope = scope(args);
        let only_state = parse_state(args)?;
        let command = launch_here(&args.command)?;
        let shell = |text: &String| launch_here(&["/bin/sh".into(), "-c".into(), text.into()]);
        let resume = args.resume.as_ref().map(shell).transpose()?.unwrap_or_else(|| command.clone());
        let check = args.check.as_ref().map(shell).transpose()?;
        let (watched_dirs, created_dirs) = resolve_watched_dirs(&args.watch)?;
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
pub(crate) fn parse_state(args: &ExploreArgs) -> Result<Option<CrashCandidate>, String> {
    let unknown = |name: &str| {
        format!("--state: `{name}` is not the name of a state; copy it from a finding's `repeat` line")
    };
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

/// Compiles an option's pattern. It must have the named group, or exactly one group if no name is given.
fn parse_pattern(option: &str, text: Option<&str>, group: Option<&str>) -> Result<Option<Regex>, String> {
    let Some(text) = text else { return Ok(None) };
    let pattern = Regex::new(text).map_err(|error| format!("{option}: {error}"))?;
    let missing = group.filter(|group| !pattern.capture_names().flatten().any(|name| name == *group));
    if let Some(group) = missing {
        return Err(format!(
            "{option} `{text}`: has no group `{group}`; write the step number as `(?<{group}>\\d+)`"
        ));
    }
    if group.is_none() && pattern.captures_len() != 2 {
        return Err(format!(
            "{option} `{text}`: needs exactly one group, around the value that must be the same"
        ));
    }
    Ok(Some(pattern))
}

fn parse_consumed(text: Option<&str>) -> Result<Option<Regex>, String> {
    let pattern = parse_pattern("--consumed", text, Some("step"))?;
    match &pattern {
        Some(pattern) if !pattern.capture_names().flatten().any(|name| name == "value") => Err(format!(
            "--consumed `{pattern}`: has no group `value`; write what the step consumed as `(?<value>\\S+)`"
        )),
        _ => Ok(pattern),
    }
}

/// How to start a command: in the current directory, with the environment of this process.
fn launch_here(argv: &[OsString]) -> Result<LaunchSpec, String> {
    let cwd =
        std::env::current_dir().map_err(|error| format!("could not find the current directory: {error}"))?;
    Ok(LaunchSpec { argv: argv.to_vec(), env: std::env::vars_os().collect(), cwd: Some(cwd) })
}

/// Resolves links in the paths of the watched directories, and drops directories inside other ones. Creates
/// missing directories, and returns those as the second list.
fn resolve_watched_dirs(dirs: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<PathBuf>), String> {
    let (mut resolved, mut created): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for dir in dirs {
        let failed = |error| format!("--watch `{}`: {error}", dir.display());
        if !dir.exists() {
            std::fs::create_dir_all(dir).map_err(failed)?;
            created.push(dir.clone());
        }
        if !dir.is_dir() {
            return Err(format!(
                "--watch `{}`: not a directory; give the directory that contains it",
                dir.display()
            ));
        }
        let real = dir.canonicalize().map_err(failed)?;
        if real == Path::new("/") {
            return Err("--watch `/`: give the directory in which the trainer saves".into());
        }
        resolved.push(real);
    }
    resolved.sort();
    resolved.dedup();
    let all = resolved.clone();
    resolved.retain(|dir| !all.iter().any(|other| dir != other && dir.starts_with(other)));
    Ok((resolved, created))
}

fn run_prepared(
    args: &ExploreArgs,
    prepared: PreparedExploration,
    run_dir: RunDir,
) -> Result<CommandExit, String> {
    let created_dirs = prepared.created_dirs.clone();
    let config = explore_config(args, prepared, run_dir.path());
    let display = ExploreDisplay::new();
    let explored = explore_to_depth(args, &config, &|progress| display.on_progress(&progress));
    drop(display);
    // The trainer saved in copies, so a created directory is still empty. If it is not, it stays.
    created_dirs.iter().for_each(|dir| drop(std::fs::remove_dir(dir)));
    let cleaned_up = run_dir.close();
    let exit = match explored {
        Ok(explored) => {
            let exploration = explored.exploration();
            let selected = config.enumerate.only_state.is_some();
            exploration_output::print_exploration(&explored.first, &exploration, selected);
            if args.depth == 2 && !selected {
                exploration_output::print_second_crashes(&exploration);
            }
            if let Some(file) = &args.json {
                std::fs::write(file, exploration.to_json())
                    .map_err(|error| format!("could not write `{}`: {error}", file.display()))?;
            }
            if let Some(out) = &args.out {
                let out_dir = report_files::create_out_dir(Some(out), "explore")
                    .map_err(|error| print::error_chain(&error))?;
                exploration_output::write_report_files(&exploration, &out_dir)?;
            }
            if exploration.has_no_findings() { CommandExit::Success } else { CommandExit::Violation }
        }
        Err(error @ (ExploreError::BaselineFailed(_) | ExploreError::NothingRecorded)) => {
            print::error(&chain(&error));
            CommandExit::Inconclusive
        }
        Err(error @ ExploreError::NotPython) => {
            print::error(&error);
            CommandExit::InvalidInput
        }
        Err(error) => return Err(chain(&error)),
    };
    match cleaned_up {
        Ok(()) => Ok(exit),
        Err(error) => {
            print::error(&error);
            Ok(CommandExit::CleanUpFailed)
        }
    }
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
fn explore_config(args: &ExploreArgs, prepared: PreparedExploration, work_dir: &Path) -> ExploreConfig {
    let never = || false;
    ExploreConfig {
        record: RecordSpec {
            watched_dirs: prepared.watched_dirs.clone(),
            command: prepared.command,
            saved_pattern: prepared.saved_pattern,
            first_crash: None,
            work_dir: work_dir.into(),
            cancelled: never,
        },
        enumerate: EnumerateSpec { scope: prepared.scope, only_state: prepared.only_state },
        replay: ReplaySpec {
            watched_dirs: prepared.watched_dirs,
            resume: prepared.resume,
            check: prepared.check,
            timeout: prepared.timeout,
            jobs: args.jobs.map_or_else(core_count, usize::from),
            warm_modules: args.warm.clone(),
            work_dir: work_dir.into(),
            began_unix_s: jiff::Timestamp::now().as_second(),
            cancelled: never,
        },
        judge: prepared.judge,
        report: ReportSpec { repeat_command: repeat_command() },
    }
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
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
