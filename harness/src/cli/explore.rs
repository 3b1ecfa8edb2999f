//! `explore`: every crash state of anybody's trainer, from the command line alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use crate::cli::args::{CrashArg, ExploreArgs, FsModelArg};
use crate::cli::exit::CommandExit;
use crate::cli::explore_display::ExploreDisplay;
use crate::cli::{exploration_output, explore_target, print, report_files};
use crate::explore::{
    CrashCandidate, ExploreConfig, ExploreError, ExploreScope, FsModel, OutputOracle, explore,
    explore_second_crashes,
};
use crate::sandbox::{self, LaunchSpec, RunDir};

/// Does it, and says what was found.
pub(super) fn run(args: &ExploreArgs) -> CommandExit {
    let rooms = match create_run_dir() {
        Ok(rooms) => rooms,
        Err(error) => {
            print::error(&error);
            return CommandExit::HarnessFailed;
        }
    };
    let prepared = match &args.target {
        Some(name) => explore_target::prepare_target(args, name, &rooms.path().join("target")),
        None => PreparedExploration::from_args(args),
    };
    match prepared.map(|prepared| run_prepared(args, prepared, rooms)) {
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

/// A folder for the rooms; what earlier runs left is swept first.
fn create_run_dir() -> Result<RunDir, String> {
    for swept in
        sandbox::remove_leftovers().map_err(|error| format!("sweeping what an earlier run left: {error}"))?
    {
        print::line(&format!("swept {swept}"));
    }
    RunDir::create().map_err(|error| format!("making a folder for the rooms: {error}"))
}

/// What the command line asks for, checked.
pub(super) struct PreparedExploration {
    pub(super) watched_dirs: Vec<PathBuf>,
    /// Those of them that were made for this run.
    pub(super) created_dirs: Vec<PathBuf>,
    pub(super) oracle: OutputOracle,
    pub(super) scope: ExploreScope,
    pub(super) only_state: Option<CrashCandidate>,
    pub(super) command: LaunchSpec,
    pub(super) resume: LaunchSpec,
    pub(super) check: Option<LaunchSpec>,
    pub(super) timeout: Duration,
}

impl PreparedExploration {
    fn from_args(args: &ExploreArgs) -> Result<PreparedExploration, String> {
        let ear = OutputOracle {
            saved: parse_pattern("--saved", args.saved.as_deref(), Some("step"))?,
            resumed: parse_pattern("--resumed", args.resumed.as_deref(), Some("step"))?,
            step: parse_pattern("--step", args.step.as_deref(), Some("step"))?,
            consumed: parse_consumed(args.consumed.as_deref())?,
            same: parse_pattern("--same", args.same.as_deref(), None)?,
            refused_exits: args.refused_exit.clone(),
        };
        let scope = scope(args);
        let only = parse_state(args)?;
        let command = launch_here(&args.command)?;
        let shell = |text: &String| launch_here(&["/bin/sh".into(), "-c".into(), text.into()]);
        let resume = args.resume.as_ref().map(shell).transpose()?.unwrap_or_else(|| command.clone());
        let check = args.check.as_ref().map(shell).transpose()?;
        let (watch, made) = resolve_watched_dirs(&args.watch)?;
        let timeout = args.timeout;
        Ok(PreparedExploration {
            watched_dirs: watch,
            created_dirs: made,
            oracle: ear,
            scope,
            only_state: only,
            command,
            resume,
            check,
            timeout,
        })
    }
}

/// The one state that is asked for.
pub(super) fn parse_state(args: &ExploreArgs) -> Result<Option<CrashCandidate>, String> {
    let unknown =
        |name: &str| format!("--state: `{name}` is not the name of a state; a finding's command has one");
    let parsed = |name: &String| CrashCandidate::parse(name).ok_or_else(|| unknown(name));
    args.state.as_ref().map(parsed).transpose()
}

pub(super) fn scope(args: &ExploreArgs) -> ExploreScope {
    let process = args.crash != CrashArg::Power;
    let power = args.crash != CrashArg::Process;
    let chosen: Vec<FsModel> = args.model.iter().map(|model| model.fs_model()).collect();
    let models = match (power, chosen.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => FsModel::ALL.to_vec(),
        (true, false) => chosen,
    };
    ExploreScope { process_crashes: process, models, max_states: args.max_states, crash_points: None }
}

fn parse_pattern(option: &str, text: Option<&str>, group: Option<&str>) -> Result<Option<Regex>, String> {
    let Some(text) = text else { return Ok(None) };
    let found = Regex::new(text).map_err(|error| format!("{option}: {error}"))?;
    let missing = group.filter(|group| !found.capture_names().flatten().any(|name| name == *group));
    if let Some(group) = missing {
        return Err(format!(
            "{option} `{text}`: has no group `{group}`; write the number as `(?<{group}>\\d+)`"
        ));
    }
    if group.is_none() && found.captures_len() != 2 {
        return Err(format!(
            "{option} `{text}`: needs exactly one group, around the value that must be the same"
        ));
    }
    Ok(Some(found))
}

fn parse_consumed(text: Option<&str>) -> Result<Option<Regex>, String> {
    let found = parse_pattern("--consumed", text, Some("step"))?;
    match &found {
        Some(found) if !found.capture_names().flatten().any(|name| name == "value") => Err(format!(
            "--consumed `{found}`: has no group `value`; write what the step consumed as `(?<value>\\S+)`"
        )),
        _ => Ok(found),
    }
}

fn launch_here(words: &[OsString]) -> Result<LaunchSpec, String> {
    let cwd = std::env::current_dir().map_err(|error| format!("the working folder: {error}"))?;
    Ok(LaunchSpec { argv: words.to_vec(), env: std::env::vars_os().collect(), cwd: Some(cwd) })
}

/// The folders without links in their paths; those that were not there are made, and named.
fn resolve_watched_dirs(watch: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<PathBuf>), String> {
    let (mut found, mut made): (Vec<PathBuf>, Vec<PathBuf>) = (Vec::new(), Vec::new());
    for folder in watch {
        let failed = |error| format!("--watch `{}`: {error}", folder.display());
        if !folder.exists() {
            std::fs::create_dir_all(folder).map_err(failed)?;
            made.push(folder.clone());
        }
        if !folder.is_dir() {
            return Err(format!(
                "--watch `{}`: not a folder; name the folder that it lies in",
                folder.display()
            ));
        }
        let real = folder.canonicalize().map_err(failed)?;
        if real == Path::new("/") {
            return Err("--watch `/`: name the folder that the trainer saves in".into());
        }
        found.push(real);
    }
    found.sort();
    found.dedup();
    let all = found.clone();
    found.retain(|one| !all.iter().any(|other| one != other && one.starts_with(other)));
    Ok((found, made))
}

fn run_prepared(
    args: &ExploreArgs,
    prepared: PreparedExploration,
    rooms: RunDir,
) -> Result<CommandExit, String> {
    let PreparedExploration {
        watched_dirs: watch,
        created_dirs: made,
        oracle: ear,
        scope,
        only_state: only,
        command,
        resume,
        check,
        timeout,
    } = prepared;
    let began = jiff::Timestamp::now();
    let orders = ExploreConfig {
        watched_dirs: watch,
        after_crash: None,
        command,
        resume,
        check,
        oracle: ear,
        scope,
        timeout,
        jobs: args.jobs.map_or_else(core_count, usize::from),
        work_dir: rooms.path().to_path_buf(),
        warm_modules: args.warm.clone(),
        only_state: only,
        began_unix_s: began.as_second(),
        cancelled: || false,
    };
    let bar = ExploreDisplay::new();
    let explored = explore(&orders, &|progress| bar.on_progress(&progress)).and_then(|first| {
        let again = match args.depth {
            2 if orders.only_state.is_none() => {
                explore_second_crashes(&orders, &first, &|progress| bar.on_progress(&progress))?
            }
            _ => Vec::new(),
        };
        Ok((first, again))
    });
    drop(bar);
    // Only folders that were made for this run, and only if they are still empty.
    made.iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
    let cleaned = rooms.close();
    let exit = match explored {
        Ok((explored, again)) => {
            let repeat = repeat_command();
            exploration_output::print_exploration(&explored, &orders, &repeat);
            if args.depth == 2 && orders.only_state.is_none() {
                exploration_output::print_second_crashes(&explored, &again);
            }
            let value = exploration_output::exploration_json(&explored, &again, &orders, &repeat);
            if let Some(file) = &args.json {
                std::fs::write(file, &value)
                    .map_err(|error| format!("writing `{}`: {error}", file.display()))?;
            }
            if let Some(out) = &args.out {
                let out = report_files::create_out_dir(Some(out), "explore")?;
                exploration_output::write_report_files(&value, &out)?;
            }
            let all = [&explored].into_iter().chain(again.iter().map(|(_, explored)| explored));
            if all.flat_map(|one| &one.findings).next().is_none() {
                CommandExit::Success
            } else {
                CommandExit::Violation
            }
        }
        Err(error @ (ExploreError::BaselineFailed(_) | ExploreError::NothingRecorded)) => {
            print::error(&error);
            CommandExit::Inconclusive
        }
        Err(error @ ExploreError::NotPython) => {
            print::error(&error);
            CommandExit::InvalidInput
        }
        Err(error) => return Err(error.to_string()),
    };
    match cleaned {
        Ok(()) => Ok(exit),
        Err(error) => {
            print::error(&error);
            Ok(CommandExit::CleanUpFailed)
        }
    }
}

fn core_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)
}

/// This command with a place for the name of a state.
fn repeat_command() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    words[0] = "trainwreck".into();
    let dropped: BTreeMap<&str, usize> = [("--state", 2), ("--json", 2), ("--out", 2)].into();
    let at = words.iter().position(|word| word == "--").unwrap_or(words.len());
    let mut kept = Vec::new();
    let mut index = 0;
    while index < words.len() {
        match dropped.get(words[index].as_str()).filter(|_| index < at) {
            Some(skip) => index += skip,
            None => {
                kept.push(shell_quote(&words[index]));
                index += 1;
            }
        }
    }
    let at = kept.iter().position(|word| word == "explore").map_or(1, |at| at + 1);
    kept.insert(at.min(kept.len()), "--state STATE".into());
    kept.join(" ")
}

fn shell_quote(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=,:@%+".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
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

/// `10s`, `500ms`, `2m`; a bare number is seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 =
        text[..digits].parse().map_err(|_| format!("`{text}`: write it as `10s`, `500ms` or `2m`"))?;
    match text[digits..].trim() {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" | "min" => Ok(Duration::from_secs(number * 60)),
        _ => Err(format!("`{text}`: write it as `10s`, `500ms` or `2m`")),
    }
}
