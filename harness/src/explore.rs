//! `explore`: runs the exploration, and prints and writes its result. Knows no scenario.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use scenarios::{Exploration, RecoveryCheck};

use crate::args::ExploreArgs;
use crate::error::CliError;
use crate::exit::CommandExit;
use crate::exploration_output::RECORDING_DIR;
use crate::explore_display::ExploreDisplay;
use crate::explore_options::{PreparedExploration, parse_second_state};
use crate::output_file::OutputFile;
use crate::report_paths::ReportDir;
use crate::session::{Session, core_count};
use crate::shell_quote::{own_program, shell_quote};
use crate::{diagnostics, exploration_output, explore_target, interrupt, print, report_paths};
use engine::explore::{
    EnumerateSpec, ExploreConfig, ExploreError, ExploreProgress, ExploreResult, KeepRecordingSpec,
    MAX_COPIED_BYTES, RecordSpec, ReplaySpec, ReportSpec, SecondCrashes, WarmStart, explore,
    explore_second_crashes, recovered_kills,
};
use engine::sandbox::{self, HostAccess};

/// Explores the crash states of the given command or target.
///
/// # Errors
/// If an option or a target cannot be used, the command gives no crash states to judge, or the harness cannot
/// do its work.
pub(crate) fn run(args: &ExploreArgs) -> Result<CommandExit, CliError> {
    // Before anything is built or run, which may take minutes.
    if let Some(file) = &args.json {
        report_paths::check_apart("--json", file, &args.watch)?;
    }
    if let Some(out) = &args.out {
        report_paths::check_apart("--out", out, &args.watch)?;
    }
    if let (Some(file), Some(out)) = (&args.json, &args.out) {
        report_paths::check_json_apart(file, out, &exploration_output::REPORT_NAMES)?;
    }
    if let Some(recording) = &args.recording {
        for (option, path) in [("--json", &args.json), ("--out", &args.out)] {
            path.iter().try_for_each(|path| report_paths::check_apart_from(option, path, recording))?;
        }
    }
    if let Some(keep) = &args.keep {
        report_paths::check_apart("--keep", keep, &args.watch)?;
        let others = args.out.iter().chain(&args.json).chain(&args.recording);
        others.into_iter().try_for_each(|other| report_paths::check_apart_from("--keep", keep, other))?;
    }
    let out_dir = args.out.as_ref().map(|out| ReportDir::create(Some(out), "explore")).transpose()?;
    let exit = run_with_outputs(args, out_dir.as_ref());
    out_dir.iter().for_each(exploration_output::remove_recording_without_report);
    if exit.is_err() {
        out_dir.iter().for_each(ReportDir::remove_if_empty);
    }
    exit
}

/// Creates the other outputs. A directory for files of failing states stays only if it holds some.
fn run_with_outputs(args: &ExploreArgs, dir: Option<&ReportDir>) -> Result<CommandExit, CliError> {
    let keep_dir = args.keep.as_ref().map(|keep| ReportDir::create_for("--keep", keep)).transpose()?;
    // The file may be in the new directory.
    let json = args.json.as_ref().map(|file| OutputFile::check("--json", file)).transpose();
    let keep = keep_dir.as_ref();
    let exit = json.and_then(|json| run_in_session(args, ExploreOutputs { json, dir, keep }));
    keep_dir.iter().for_each(ReportDir::remove_if_empty);
    exit
}

/// Where the result goes.
struct ExploreOutputs<'a> {
    json: Option<OutputFile>,
    dir: Option<&'a ReportDir>,
    /// For the files of failing states.
    keep: Option<&'a ReportDir>,
}

impl ExploreOutputs<'_> {
    /// Writes the result to each of them. Returns what could not be written.
    fn write(self, exploration: &Exploration) -> Vec<CliError> {
        let json = self.json.and_then(|file| file.write(&exploration.to_json()).err());
        let dir = self.dir.map(|dir| exploration_output::write_report_files(exploration, dir.path()));
        json.into_iter().chain(dir.unwrap_or_default()).collect()
    }
}

fn run_in_session(args: &ExploreArgs, outputs: ExploreOutputs<'_>) -> Result<CommandExit, CliError> {
    let session = Session::open(args.jobs, core_count())?;
    let prepared = match &args.target {
        Some(name) => explore_target::prepare_target(args, name, &session.dir().join("target"))?,
        None => PreparedExploration::from_args(args)?,
    };
    let earlier = args.recording.as_deref().and_then(report_paths::report_of_recording);
    let own = outputs.dir.into_iter().chain(outputs.keep).map(ReportDir::real_path);
    let hidden = own.chain(earlier).collect();
    let host_access = HostAccess { hidden, ..prepared.host_access };
    let exit = run_prepared(args, PreparedExploration { host_access, ..prepared }, &session, outputs);
    let cleaned_up = session.close();
    // An error that is returned is printed by the caller.
    match (exit, cleaned_up) {
        (exit, Ok(())) => exit,
        (Ok(exit), Err(error)) => Ok(diagnostics::exit_despite(exit, &[error])),
        (Err(failure), Err(error)) => Ok(diagnostics::exit_despite(CommandExit::Success, &[failure, error])),
    }
}

fn run_prepared(
    args: &ExploreArgs,
    prepared: PreparedExploration,
    session: &Session,
    outputs: ExploreOutputs<'_>,
) -> Result<CommandExit, CliError> {
    let second_state = parse_second_state(args)?;
    let config = ExploreConfig { second_state, ..explore_config(args, prepared, session, &outputs) };
    print::line(&RecoveryCheck::describe(&config.checks()));
    let display = ExploreDisplay::new();
    let explored = explore_to_depth(args, &config, &|progress| display.on_progress(&progress));
    drop(display);
    let explored = match explored {
        // With its sandbox gone, the recording fails in some way, which says nothing about the trainer.
        Err(_) if interrupt::requested() => {
            print::line("interrupted before the states were known: 0 states");
            return Ok(CommandExit::Interrupted);
        }
        Err(error) => match missing_mechanism(&error) {
            Some(missing) => {
                print::line(&format!("skipped: {missing}"));
                return Ok(CommandExit::Inconclusive);
            }
            None => return Err(error.into()),
        },
        Ok(explored) => explored,
    };
    let exploration = explored.exploration();
    let selected = config.enumerate.only_state.is_some();
    exploration_output::print_exploration(&explored.first, &exploration, selected);
    let not_kept = exploration_output::print_kept_recording(explored.first.kept);
    let no_trees = exploration_output::print_failing_trees(explored.first.failing_trees);
    if tries_second_crashes(args, &config) {
        exploration_output::print_second_crashes(&exploration);
    }
    let failures: Vec<CliError> =
        outputs.write(&exploration).into_iter().chain(not_kept).chain(no_trees).collect();
    let found = match exploration.has_no_findings() {
        true if exploration.tried == 0
            || exploration.has_unjudged()
            || exploration.is_weakened()
            || exploration.unrecorded_recoveries > 0 =>
        {
            CommandExit::Inconclusive
        }
        true => CommandExit::Success,
        false if exploration.has_confirmed_findings() => CommandExit::Violation,
        false => CommandExit::Inconclusive,
    };
    let interrupted = interrupt::requested().then_some(CommandExit::Interrupted);
    let exit = CommandExit::worst([found].into_iter().chain(interrupted));
    Ok(diagnostics::exit_despite(exit, &failures))
}

/// What this machine does not support, if the exploration failed for that reason.
fn missing_mechanism(error: &ExploreError) -> Option<String> {
    let needed = ["user-namespace", "syscall-gate"];
    let ExploreError::Sandbox(_) = error else { return None };
    let missing = sandbox::doctor().into_iter();
    let missing = missing.filter(|found| !found.granted && needed.contains(&found.name.as_str()));
    missing.map(|found| format!("{}: {}", found.name, found.detail)).next()
}

/// Whether recoveries are recorded, and their crash states tried.
fn tries_second_crashes(args: &ExploreArgs, config: &ExploreConfig) -> bool {
    config.second_state.is_some() || (args.depth == 2 && config.enumerate.only_state.is_none())
}

/// The explorations that one command asks for.
struct ExploredCommand {
    first: ExploreResult,
    /// How many recoveries could crash too, if second crashes were asked for.
    recovered_kills: u64,
    second_crashes: SecondCrashes,
    /// How long it may take.
    max_time_s: Option<f64>,
}

impl ExploredCommand {
    fn exploration(&self) -> Exploration {
        let second = self.second_crashes.explored.iter().map(|second| Exploration {
            after: Some(second.after.clone()),
            max_time_s: self.max_time_s.filter(|_| second.result.is_late),
            ..second.result.exploration()
        });
        let is_late = self.first.is_late || self.second_crashes.is_late;
        Exploration {
            max_time_s: self.max_time_s.filter(|_| is_late),
            untried_recoveries: self.second_crashes.untried as u64,
            unrecorded_recoveries: self.second_crashes.unrecorded as u64,
            recovered_kills: self.recovered_kills,
            second: second.collect(),
            ..self.first.exploration()
        }
    }
}

fn explore_to_depth(
    args: &ExploreArgs,
    config: &ExploreConfig,
    report: &(dyn Fn(ExploreProgress) + Sync),
) -> Result<ExploredCommand, ExploreError> {
    let first = explore(config, report)?;
    let (recovered_kills, second_crashes) = match tries_second_crashes(args, config) {
        true if config.second_state.is_some() => (0, explore_second_crashes(config, &first, report)?),
        true => (recovered_kills(&first), explore_second_crashes(config, &first, report)?),
        false => (0, SecondCrashes::default()),
    };
    let max_time_s = args.max_time.map(|time| time.as_secs_f64());
    Ok(ExploredCommand { first, recovered_kills, second_crashes, max_time_s })
}

/// What each stage of the exploration needs.
fn explore_config(
    args: &ExploreArgs,
    prepared: PreparedExploration,
    session: &Session,
    outputs: &ExploreOutputs<'_>,
) -> ExploreConfig {
    // One that is used already is not kept again: the commands that repeat findings name it as this one does.
    let kept_in = outputs.dir.filter(|_| args.recording.is_none());
    let recording_dir = kept_in.map(|dir| dir.path().join(RECORDING_DIR));
    let work_dir = session.dir();
    ExploreConfig {
        record: RecordSpec {
            watched_dirs: prepared.watched_dirs.clone(),
            originals: prepared.originals,
            command: prepared.command,
            host_access: prepared.host_access.clone(),
            saved_pattern: prepared.saved_pattern,
            announced: prepared.judge.patterns(),
            unfollowed: prepared.unfollowed,
            first_crash: None,
            max_copied_bytes: MAX_COPIED_BYTES,
            work_dir: work_dir.into(),
            time_limit: prepared.record_timeout,
            cancelled: interrupt::requested,
        },
        kept_recording: args.recording.clone(),
        keep_recording: recording_dir
            .clone()
            .map(|dir| KeepRecordingSpec { dir, max_bytes: args.keep_recording }),
        keep_files: outputs.keep.as_ref().map(|keep| keep.path().into()),
        enumerate: EnumerateSpec { scope: prepared.scope, only_state: prepared.only_state },
        second_state: None,
        replay: ReplaySpec {
            watched_dirs: prepared.watched_dirs,
            resume: prepared.resume,
            check: prepared.check,
            host_access: prepared.host_access,
            timeout: prepared.timeout,
            jobs: session.jobs(),
            warm: WarmStart::of_options(&args.warm, args.no_warm),
            work_dir: work_dir.into(),
            began_unix_s: jiff::Timestamp::now().as_second(),
            cancelled: interrupt::requested,
            deadline: args.max_time.and_then(|time| std::time::Instant::now().checked_add(time)),
        },
        judge: prepared.judge,
        report: ReportSpec {
            repeat_command: repeat_command(),
            recording_option: recording_dir
                .map_or_else(String::new, |dir| format!("--recording {}", shell_quote(dir.as_os_str()))),
        },
    }
}

/// This command line with a placeholder for the name of a state. Options that write files are left out.
fn repeat_command() -> String {
    repeat_command_of(&own_program(), std::env::args_os().skip(1).collect())
}

/// The options that a repetition does not have: those that write files, and the name of another state.
const DROPPED: [&str; 6] = ["--state", "--second-state", "--json", "--out", "--keep", "--keep-recording"];

/// `program`: as it was called, quoted.
fn repeat_command_of(program: &str, args: Vec<OsString>) -> String {
    let is_value_form = |arg: &OsStr| {
        let arg = arg.as_bytes();
        DROPPED
            .iter()
            .any(|option| arg.strip_prefix(option.as_bytes()).is_some_and(|rest| rest.starts_with(b"=")))
    };
    let mut args = args.into_iter();
    let mut kept_args = vec![program.to_owned()];
    while let Some(arg) = args.next() {
        // After `--` comes the trainer's command, which may have options of the same names.
        if arg == "--" {
            kept_args.push("--".into());
            kept_args.extend(args.by_ref().map(|arg| shell_quote(&arg)));
        } else if DROPPED.iter().any(|option| arg == *option) {
            args.next();
        } else if !is_value_form(&arg) {
            kept_args.push(shell_quote(&arg));
        }
    }
    // The name of the command comes first.
    kept_args.insert(kept_args.len().min(2), "--state STATE".into());
    kept_args.join(" ")
}

#[cfg(test)]
mod tests {
    use super::repeat_command_of;

    #[test]
    fn the_repeat_command_leaves_out_what_writes_files_in_every_form() {
        let args = ["explore", "--out", "o", "--json=j", "--watch", "my runs", "--state=1-2"];
        let args = args.iter().chain(&["--out=o", "--", "train", "--out", "o", "--json=j"]);
        let expected = "./bin/trainwreck explore --state STATE --watch 'my runs' -- train --out o --json=j";
        assert_eq!(repeat_command_of("./bin/trainwreck", args.map(Into::into).collect()), expected);
    }
}
