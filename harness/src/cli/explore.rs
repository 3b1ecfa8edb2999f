//! `explore`: every crash state of anybody's trainer, from the command line alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use crate::cli::args::{CrashArg, ExploreArgs, ModelArg};
use crate::cli::exit::Exit;
use crate::cli::progress::Bar;
use crate::cli::{explore_target, explored, print, written};
use crate::explore::{Candidate, Ear, ExploreError, Model, Orders, Scope, explore, second};
use crate::sandbox::{self, Launch, RunDir};

/// Does it, and says what was found.
pub(super) fn run(args: &ExploreArgs) -> Exit {
    let rooms = match rooms() {
        Ok(rooms) => rooms,
        Err(error) => {
            print::error(&error);
            return Exit::HarnessFailed;
        }
    };
    let prepared = match &args.target {
        Some(name) => explore_target::prepared(args, name, &rooms.path().join("target")),
        None => Prepared::new(args),
    };
    match prepared.map(|prepared| perform(args, prepared, rooms)) {
        Ok(Ok(exit)) => exit,
        Ok(Err(error)) => {
            print::error(&error);
            Exit::HarnessFailed
        }
        Err(error) => {
            print::error(&error);
            Exit::Invalid
        }
    }
}

/// A folder for the rooms; what earlier runs left is swept first.
fn rooms() -> Result<RunDir, String> {
    for swept in sandbox::recover().map_err(|error| format!("sweeping what an earlier run left: {error}"))? {
        print::line(&format!("swept {swept}"));
    }
    RunDir::create().map_err(|error| format!("making a folder for the rooms: {error}"))
}

/// What the command line asks for, checked.
pub(super) struct Prepared {
    pub(super) watch: Vec<PathBuf>,
    /// Those of them that were made for this run.
    pub(super) made: Vec<PathBuf>,
    pub(super) ear: Ear,
    pub(super) scope: Scope,
    pub(super) only: Option<Candidate>,
    pub(super) command: Launch,
    pub(super) resume: Launch,
    pub(super) check: Option<Launch>,
    pub(super) timeout: Duration,
}

impl Prepared {
    fn new(args: &ExploreArgs) -> Result<Prepared, String> {
        let ear = Ear {
            saved: pattern("--saved", args.saved.as_deref(), Some("step"))?,
            resumed: pattern("--resumed", args.resumed.as_deref(), Some("step"))?,
            step: pattern("--step", args.step.as_deref(), Some("step"))?,
            consumed: consumed(args.consumed.as_deref())?,
            same: pattern("--same", args.same.as_deref(), None)?,
            refused_exits: args.refused_exit.clone(),
        };
        let scope = scope(args);
        let only = state(args)?;
        let command = launch(&args.command)?;
        let shell = |text: &String| launch(&["/bin/sh".into(), "-c".into(), text.into()]);
        let resume = args.resume.as_ref().map(shell).transpose()?.unwrap_or_else(|| command.clone());
        let check = args.check.as_ref().map(shell).transpose()?;
        let (watch, made) = folders(&args.watch)?;
        let timeout = args.timeout;
        Ok(Prepared { watch, made, ear, scope, only, command, resume, check, timeout })
    }
}

/// The one state that is asked for.
pub(super) fn state(args: &ExploreArgs) -> Result<Option<Candidate>, String> {
    let unknown =
        |name: &str| format!("--state: `{name}` is not the name of a state; a finding's command has one");
    let parsed = |name: &String| Candidate::parse(name).ok_or_else(|| unknown(name));
    args.state.as_ref().map(parsed).transpose()
}

pub(super) fn scope(args: &ExploreArgs) -> Scope {
    let process = args.crash != CrashArg::Power;
    let power = args.crash != CrashArg::Process;
    let chosen: Vec<Model> = args.model.iter().map(|model| model.model()).collect();
    let models = match (power, chosen.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => Model::ALL.to_vec(),
        (true, false) => chosen,
    };
    Scope { process, models, max_states: args.max_states, moments: None }
}

fn pattern(option: &str, text: Option<&str>, group: Option<&str>) -> Result<Option<Regex>, String> {
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

fn consumed(text: Option<&str>) -> Result<Option<Regex>, String> {
    let found = pattern("--consumed", text, Some("step"))?;
    match &found {
        Some(found) if !found.capture_names().flatten().any(|name| name == "value") => Err(format!(
            "--consumed `{found}`: has no group `value`; write what the step consumed as `(?<value>\\S+)`"
        )),
        _ => Ok(found),
    }
}

fn launch(words: &[OsString]) -> Result<Launch, String> {
    let cwd = std::env::current_dir().map_err(|error| format!("the working folder: {error}"))?;
    Ok(Launch { argv: words.to_vec(), env: std::env::vars_os().collect(), cwd: Some(cwd) })
}

/// The folders without links in their paths; those that were not there are made, and named.
fn folders(watch: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<PathBuf>), String> {
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

fn perform(args: &ExploreArgs, prepared: Prepared, rooms: RunDir) -> Result<Exit, String> {
    let Prepared { watch, made, ear, scope, only, command, resume, check, timeout } = prepared;
    let began = jiff::Timestamp::now();
    let orders = Orders {
        watch,
        after: None,
        command,
        resume,
        check,
        ear,
        scope,
        timeout,
        jobs: args.jobs.map_or_else(cores, usize::from),
        dir: rooms.path().to_path_buf(),
        warm: args.warm.clone(),
        only,
        began: began.as_second(),
        cancelled: || false,
    };
    let bar = Bar::new();
    let explored = explore(&orders, &|progress| bar.show(&progress)).and_then(|first| {
        let again = match args.depth {
            2 if orders.only.is_none() => second(&orders, &first, &|progress| bar.show(&progress))?,
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
            explored::print(&explored, &orders, &repeat);
            if args.depth == 2 && orders.only.is_none() {
                explored::print_again(&explored, &again);
            }
            let value = explored::json(&explored, &again, &orders, &repeat);
            if let Some(file) = &args.json {
                std::fs::write(file, &value)
                    .map_err(|error| format!("writing `{}`: {error}", file.display()))?;
            }
            if let Some(out) = &args.out {
                let out = written::folder(Some(out), "explore")?;
                explored::pages(&value, &out)?;
            }
            let all = [&explored].into_iter().chain(again.iter().map(|(_, explored)| explored));
            if all.flat_map(|one| &one.findings).next().is_none() { Exit::Survived } else { Exit::Violated }
        }
        Err(error @ (ExploreError::Undisturbed(_) | ExploreError::NothingRecorded)) => {
            print::error(&error);
            Exit::Inconclusive
        }
        Err(error @ ExploreError::NotPython) => {
            print::error(&error);
            Exit::Invalid
        }
        Err(error) => return Err(error.to_string()),
    };
    match cleaned {
        Ok(()) => Ok(exit),
        Err(error) => {
            print::error(&error);
            Ok(Exit::CleanUpFailed)
        }
    }
}

fn cores() -> usize {
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
                kept.push(quoted(&words[index]));
                index += 1;
            }
        }
    }
    let at = kept.iter().position(|word| word == "explore").map_or(1, |at| at + 1);
    kept.insert(at.min(kept.len()), "--state STATE".into());
    kept.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=,:@%+".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

impl ModelArg {
    fn model(self) -> Model {
        match self {
            ModelArg::Posix => Model::Posix,
            ModelArg::Ext4 => Model::Ext4,
            ModelArg::Xfs => Model::Xfs,
            ModelArg::Btrfs => Model::Btrfs,
            ModelArg::Lying => Model::Lying,
        }
    }
}

/// `10s`, `500ms`, `2m`; a bare number is seconds.
pub(super) fn time(text: &str) -> Result<Duration, String> {
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
