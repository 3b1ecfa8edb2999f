//! The options of `explore`: checks them, and turns them into what an exploration needs to know. Runs nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use crate::args::{CrashArg, ExploreArgs, FsModelArg};
use crate::error::CliError;
use crate::host_access_options::{check_apart, host_access};
use crate::option_error::OptionError;
use engine::explore::{ExploreScope, FsModel, JudgeSpec, StateName};
use engine::file_error::file_error;
use engine::sandbox::{HostAccess, LaunchSpec, runs_path};
use engine::target::{ExecutableError, ProgramError, UNBUFFERED_PYTHON, find_executable};

/// The checked options that describe the trainer, from the command line or from a target file.
pub(crate) struct PreparedExploration {
    pub(crate) watched_dirs: Vec<PathBuf>,
    /// Where their files are. `None`: in the watched directories themselves.
    pub(crate) originals: Option<Vec<PathBuf>>,
    pub(crate) host_access: HostAccess,
    pub(crate) saved_pattern: Option<Regex>,
    pub(crate) judge: JudgeSpec,
    pub(crate) scope: ExploreScope,
    pub(crate) only_state: Option<StateName>,
    pub(crate) command: LaunchSpec,
    pub(crate) resume: LaunchSpec,
    pub(crate) check: Option<LaunchSpec>,
    pub(crate) timeout: Duration,
    /// Paths in watched directories of which changes that could not be followed are accepted.
    pub(crate) unfollowed: Vec<PathBuf>,
    /// The time limit of the recorded run.
    pub(crate) record_timeout: Option<Duration>,
}

/// The time limit of the recorded run, if none is given.
const DEFAULT_RECORD_TIMEOUT: Duration = Duration::from_secs(3600);

impl PreparedExploration {
    /// Reads the options.
    ///
    /// # Errors
    /// If the value of an option cannot be used.
    pub(crate) fn from_args(args: &ExploreArgs) -> Result<PreparedExploration, CliError> {
        let saved_pattern = parse_pattern("--saved", args.saved.as_deref(), PatternGroup::Step)?;
        let judge = JudgeSpec {
            saved: saved_pattern.clone(),
            resumed: parse_pattern("--resumed", args.resumed.as_deref(), PatternGroup::Step)?,
            step: parse_pattern("--step", args.step.as_deref(), PatternGroup::Step)?,
            consumed: parse_consumed(args.consumed.as_deref())?,
            same: parse_pattern("--same", args.same.as_deref(), PatternGroup::Only)?,
            refused_exits: args.refused_exit.clone(),
            has_several_jobs: false,
        };
        let scope = scope(args);
        let only_state = parse_state(args)?;
        let command = launch_here(&args.command)?;
        check_program(&command).map_err(ProgramError::from)?;
        let shell = |text: &String| launch_here(&["/bin/sh".into(), "-c".into(), text.into()]);
        let resume = args.resume.as_ref().map(shell).transpose()?.unwrap_or_else(|| command.clone());
        let check = args.check.as_ref().map(shell).transpose()?;
        let watched_dirs = resolve_watched_dirs(&args.watch)?;
        let unfollowed = resolve_unfollowed(&args.unfollowed, &watched_dirs)?;
        let host_access = host_access(&args.host_access, None)?;
        check_apart(&host_access, &[&watched_dirs[..], &[runs_path()]].concat())?;
        let timeout = args.timeout;
        Ok(PreparedExploration {
            watched_dirs,
            originals: None,
            host_access,
            saved_pattern,
            judge,
            scope,
            only_state,
            command,
            resume,
            check,
            timeout,
            unfollowed,
            record_timeout: Some(args.record_timeout.unwrap_or(DEFAULT_RECORD_TIMEOUT)),
        })
    }
}

/// The state that `--state` names.
///
/// # Errors
/// If it names none.
pub(crate) fn parse_state(args: &ExploreArgs) -> Result<Option<StateName>, OptionError> {
    parse_name("--state", args.state.as_ref())
}

/// The state that `--second-state` names.
///
/// # Errors
/// If it names none.
pub(crate) fn parse_second_state(args: &ExploreArgs) -> Result<Option<StateName>, OptionError> {
    parse_name("--second-state", args.second_state.as_ref())
}

fn parse_name(option: &'static str, name: Option<&String>) -> Result<Option<StateName>, OptionError> {
    let unknown = |name: &String| OptionError::UnknownState { option, name: name.clone() };
    name.map(|name| StateName::parse(name).ok_or_else(|| unknown(name))).transpose()
}

/// The crashes and file systems that `--crash`, `--model` and `--max-states` select.
pub(crate) fn scope(args: &ExploreArgs) -> ExploreScope {
    let process_crashes = args.crash != CrashArg::Power;
    let power_losses = args.crash != CrashArg::Process;
    let chosen: Vec<FsModel> = args.model.iter().copied().map(fs_model).collect();
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
    /// Exactly one group, or a group `value`. A group `job` may be there too.
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
        PatternGroup::Only if !has_one_value(&pattern) => {
            Err(OptionError::NotOneGroup { option, text: text.into() })
        }
        PatternGroup::Step | PatternGroup::Only => Ok(Some(pattern)),
    }
}

/// Whether it is clear which group has the value.
fn has_one_value(pattern: &Regex) -> bool {
    let groups = pattern.capture_names().skip(1).filter(|name| *name != Some("job")).count();
    groups == 1 && (!has_group(pattern, "job") || has_group(pattern, "value"))
}

fn has_group(pattern: &Regex, name: &str) -> bool {
    pattern.capture_names().flatten().any(|group| group == name)
}

pub(crate) fn parse_consumed(text: Option<&str>) -> Result<Option<Regex>, OptionError> {
    let pattern = parse_pattern("--consumed", text, PatternGroup::Step)?;
    match &pattern {
        Some(pattern) if !has_group(pattern, "value") => {
            Err(OptionError::NoValueGroup { pattern: pattern.to_string() })
        }
        _ => Ok(pattern),
    }
}

/// How to start a command: in the current directory.
fn launch_here(argv: &[OsString]) -> Result<LaunchSpec, CliError> {
    let cwd = std::env::current_dir()
        .map_err(file_error::<CliError>("find the current directory", Path::new(".")))?;
    Ok(LaunchSpec { argv: argv.to_vec(), env: trainer_environment(std::env::vars_os()), cwd: Some(cwd) })
}

/// The environment of this process, in which Python does not buffer its output, unless the user says so.
fn trainer_environment(own: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let [name, value] = UNBUFFERED_PYTHON;
    let mut environment: Vec<(OsString, OsString)> = own.collect();
    if environment.iter().all(|(known, _)| known != name) {
        environment.push((name.into(), value.into()));
    }
    environment
}

/// Checks that the program of a command exists. It is started in the same directory, with the same PATH.
fn check_program(launch: &LaunchSpec) -> Result<(), ExecutableError> {
    let cwd = launch.cwd.clone().unwrap_or_default();
    launch.argv.first().map_or(Ok(()), |program| find_executable(program, &cwd).map(drop))
}

/// The directories of `--watch`: without links in their paths, and without directories inside other ones. One
/// that does not exist begins empty in the sandbox; on the host nothing is created.
fn resolve_watched_dirs(dirs: &[PathBuf]) -> Result<Vec<PathBuf>, OptionError> {
    let mut resolved = Vec::new();
    for dir in dirs {
        if dir.exists() && !dir.is_dir() {
            return Err(OptionError::WatchNotDirectory { path: dir.clone() });
        }
        let failed = |source| OptionError::Watch { path: dir.clone(), source };
        let real = resolve_missing(dir).map_err(failed)?;
        check_watched(&real)?;
        resolved.push(real);
    }
    resolved.sort();
    resolved.dedup();
    let all = resolved.clone();
    resolved.retain(|dir| !all.iter().any(|other| dir != other && dir.starts_with(other)));
    Ok(resolved)
}

/// The paths of `--unfollowed`, as the trainer names them: each is, or lies in, a watched directory. It need not
/// exist yet.
fn resolve_unfollowed(paths: &[PathBuf], watched_dirs: &[PathBuf]) -> Result<Vec<PathBuf>, OptionError> {
    let mut resolved = Vec::new();
    for path in paths {
        let failed = |source| OptionError::Unfollowed { path: path.clone(), source };
        // A link is meant itself, and not what it leads to.
        let real = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if path.is_symlink() => {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                resolve_missing(parent).map_err(failed)?.join(name)
            }
            _ => resolve_missing(path).map_err(failed)?,
        };
        if !watched_dirs.iter().any(|dir| real.starts_with(dir)) {
            return Err(OptionError::UnfollowedOutside { path: path.clone() });
        }
        resolved.push(real);
    }
    resolved.sort();
    resolved.dedup();
    Ok(resolved)
}

/// Checks that a watched directory can be copied.
fn check_watched(dir: &Path) -> Result<(), OptionError> {
    let path = || dir.to_path_buf();
    if dir == Path::new("/") {
        return Err(OptionError::WatchRoot);
    }
    let is_kernel = ["/proc", "/sys", "/dev"].iter().any(|kernel| dir.starts_with(kernel));
    if is_kernel && !dir.starts_with("/dev/shm/") {
        return Err(OptionError::WatchKernel { path: path() });
    }
    let runs = runs_path();
    if runs.starts_with(dir) || dir.starts_with(&runs) {
        return Err(OptionError::WatchesSandboxes { path: path(), runs });
    }
    Ok(())
}

/// The absolute path without links. What of it does not exist is appended as it is.
fn resolve_missing(path: &Path) -> Result<PathBuf, std::io::Error> {
    match path.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = resolve_missing(parent.unwrap_or(Path::new(".")))?;
            let name = path.file_name().ok_or(error)?;
            Ok(parent.join(name))
        }
        resolved => resolved,
    }
}

/// The model that an option's value selects.
fn fs_model(model: FsModelArg) -> FsModel {
    match model {
        FsModelArg::Posix => FsModel::Posix,
        FsModelArg::Ext4 => FsModel::Ext4,
        FsModelArg::Xfs => FsModel::Xfs,
        FsModelArg::Btrfs => FsModel::Btrfs,
        FsModelArg::Lying => FsModel::Lying,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment_of(own: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        trainer_environment(own.iter().map(|(name, value)| (OsString::from(*name), OsString::from(*value))))
    }

    #[test]
    fn python_does_not_buffer_unless_the_user_says_so() {
        let variable = |value: &str| (OsString::from("PYTHONUNBUFFERED"), OsString::from(value));
        assert_eq!(environment_of(&[("A", "b")]), [("A".into(), "b".into()), variable("1")]);
        assert_eq!(environment_of(&[("PYTHONUNBUFFERED", "")]), [variable("")]);
    }

    #[test]
    fn an_accepted_path_lies_in_a_watched_directory_and_need_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("runs")).unwrap();
        std::os::unix::fs::symlink("/nowhere", top.join("runs/link")).unwrap();
        let watched = [top.join("runs")];
        let resolved = |name: &str| resolve_unfollowed(&[top.join(name)], &watched);
        for name in ["runs", "runs/new", "runs/new/deep", "runs/link"] {
            assert_eq!(resolved(name).unwrap(), [top.join(name)], "{name}");
        }
        for outside in ["other", "", "runs/../other", "runs2"] {
            let refused = resolved(outside);
            assert!(matches!(refused, Err(OptionError::UnfollowedOutside { .. })), "{outside}: {refused:?}");
        }
    }
}
