//! Why a command could not do what it was asked for, and the exit code of each reason. Prints nothing.

use std::path::PathBuf;

use engine::explore::ExploreError;
use engine::file_error::FileError;
use engine::run::RunError;
use engine::sandbox::{KeptLeftover, SandboxError};
use engine::target::ProgramError;
use reports::ReportError;
use scenarios::{FailedRun, InvalidFile, RecordError};

use crate::exit::CommandExit;
use crate::host_access_options::HostAccessError;
use crate::option_error::OptionError;
use crate::scenario_library::LibraryError;

/// Why a command failed. The printed text is the error followed by its sources.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A scenario or target cannot be used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The value of an option cannot be used.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A directory cannot be made writable for the target.
    #[error(transparent)]
    HostAccess(#[from] HostAccessError),
    /// A program was not found or could not be built.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The directory for the report cannot be created or read.
    #[error(
        "{option}: could not {doing} `{path}`: {cause}; name another directory with {option}",
        path = .path.display()
    )]
    OutDirUnusable { option: &'static str, doing: &'static str, path: PathBuf, cause: std::io::Error },
    /// The directory for the report is a file.
    #[error("{option}: `{path}` is a file; name a new or empty directory with {option}", path = .path.display())]
    OutDirIsFile { option: &'static str, path: PathBuf },
    /// Without `--out` there is no place for the report.
    #[error(
        "there is no place for the report: neither XDG_STATE_HOME nor HOME is an absolute path; name a \
         directory with --out"
    )]
    NoStateDir,
    /// A file that an option names cannot be written.
    #[error(
        "{option}: could not write `{path}`: {cause}; name another place with {option}",
        path = .path.display()
    )]
    OutputUnusable { option: &'static str, path: PathBuf, cause: std::io::Error },
    /// Two options name the same place.
    #[error(
        "--json `{json}` and --out `{out}` would write to the same place; name another file with --json",
        json = .json.display(),
        out = .out.display()
    )]
    SameOutput { json: PathBuf, out: PathBuf },
    /// Two options name places of which one contains the other.
    #[error(
        "{option}: `{path}` and `{other}` are the same, or one is inside the other; name another path with {option}",
        path = .path.display(),
        other = .other.display()
    )]
    NestedOutput { option: &'static str, path: PathBuf, other: PathBuf },
    /// The report would be among the files that the trainer saves.
    #[error(
        "{option}: `{path}` and the watched directory `{watched}` contain one another; name a path \
         outside of the watched directories",
        path = .path.display(),
        watched = .watched.display()
    )]
    ReportInWatched { option: &'static str, path: PathBuf, watched: PathBuf },
    /// The directory for the report has files that a report might overwrite.
    #[error(
        "{option}: `{path}` is not empty; name a new or empty directory with {option}",
        path = .path.display()
    )]
    OutDirNotEmpty { option: &'static str, path: PathBuf },
    /// A record cannot be judged.
    #[error("`{path}`", path = .path.display())]
    UnusableRecord { path: PathBuf, source: UnusableRecord },
    /// The directory in which runs leave something could not be read.
    #[error("could not look for what earlier runs left behind")]
    Leftovers(#[source] SandboxError),
    /// The directory of this run could not be removed.
    #[error(transparent)]
    CleanUp(KeptLeftover),
    /// The directory of this run could not be created.
    #[error(
        "could not create a directory for the sandboxes; set TMPDIR to a directory in which you may write"
    )]
    RunDir(#[source] SandboxError),
    /// Too few files may be open at the same time.
    #[error(
        "{jobs} jobs need up to {needed} open files, and the limit is {limit}; run `ulimit -n {needed}` first, or \
         choose fewer jobs with --jobs"
    )]
    OpenFileLimit { limit: u64, jobs: usize, needed: u64 },
    /// The working directory has been removed, or is not accessible.
    #[error("the working directory cannot be used; change to a directory that exists")]
    NoCurrentDir(#[source] SandboxError),
    /// The handlers for SIGINT and SIGTERM could not be installed.
    #[error("could not handle signals")]
    Signals(#[source] std::io::Error),
    /// The exploration gave no result.
    #[error(transparent)]
    Explore(#[from] ExploreError),
    /// The run gave no result.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file could not be created or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A report could not be written.
    #[error("could not write `{path}`", path = .path.display())]
    Report { path: PathBuf, source: ReportError },
}

/// Why a record cannot be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnusableRecord {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// A line is not a record's.
    #[error(transparent)]
    Line(#[from] RecordError),
    /// A scenario in it has no beginning.
    #[error("the record has a scenario without its `scenario-started` event")]
    NotStarted,
    /// The text of a scenario or target in it is invalid.
    #[error(transparent)]
    File(#[from] InvalidFile),
}

impl CliError {
    /// The run without any fault that did not end well, if that is the reason.
    pub(crate) fn failed_run(&self) -> Option<&FailedRun> {
        match self {
            CliError::Run(RunError::TargetFailed(run)) => Some(run),
            CliError::Explore(ExploreError::BaselineFailed(error))
            | CliError::Run(RunError::Explore(ExploreError::BaselineFailed(error))) => error.failed_run(),
            _ => None,
        }
    }

    /// The exit that the error leads to.
    pub(crate) fn exit(&self) -> CommandExit {
        match self {
            CliError::Library(error) => exit_of_library_error(error),
            CliError::Program(error) => exit_of_program_error(error),
            CliError::Explore(error) => exit_of_explore_error(error),
            CliError::Run(error) => exit_of_run_error(error),
            CliError::Option(_)
            | CliError::HostAccess(_)
            | CliError::OutDirUnusable { .. }
            | CliError::OutDirIsFile { .. }
            | CliError::OutDirNotEmpty { .. }
            | CliError::NoStateDir
            | CliError::OutputUnusable { .. }
            | CliError::SameOutput { .. }
            | CliError::NestedOutput { .. }
            | CliError::ReportInWatched { .. }
            | CliError::UnusableRecord { .. } => CommandExit::InvalidInput,
            CliError::NoCurrentDir(_) => CommandExit::InvalidInput,
            CliError::RunDir(error) | CliError::Leftovers(error) if is_wrong_directory(error) => {
                CommandExit::InvalidInput
            }
            CliError::Leftovers(_) | CliError::CleanUp(_) => CommandExit::CleanUpFailed,
            CliError::RunDir(_)
            | CliError::OpenFileLimit { .. }
            | CliError::Signals(_)
            | CliError::File(_)
            | CliError::Report { .. } => CommandExit::HarnessFailed,
        }
    }
}

/// Whether the directory for runs is one that this user cannot use, rather than one that fails.
fn is_wrong_directory(error: &SandboxError) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    match error {
        SandboxError::NotOwned { .. } => true,
        SandboxError::File(error) => {
            [NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem].contains(&error.source.kind())
        }
        _ => false,
    }
}

fn exit_of_library_error(error: &LibraryError) -> CommandExit {
    match error {
        LibraryError::Program(error) => exit_of_program_error(error),
        LibraryError::UnknownId { .. }
        | LibraryError::NoFile { .. }
        | LibraryError::NotAFile { .. }
        | LibraryError::SameId { .. }
        | LibraryError::Empty { .. }
        | LibraryError::Read(_)
        | LibraryError::Invalid(_)
        | LibraryError::HostAccess(_)
        | LibraryError::UnknownTarget { .. } => CommandExit::InvalidInput,
    }
}

fn exit_of_program_error(error: &ProgramError) -> CommandExit {
    match error {
        ProgramError::NotFound { .. } | ProgramError::NoLibrary { .. } | ProgramError::Executable(_) => {
            CommandExit::InvalidInput
        }
        ProgramError::Interrupted { .. } => CommandExit::Interrupted,
        ProgramError::CargoNotStarted { .. } | ProgramError::NotBuilt { .. } => CommandExit::HarnessFailed,
    }
}

fn exit_of_explore_error(error: &ExploreError) -> CommandExit {
    match error {
        ExploreError::NotPython
        | ExploreError::KeptRecording(_)
        | ExploreError::WarmNotStarted { .. }
        | ExploreError::ResumeCommandFails { .. }
        | ExploreError::UnknownState { .. } => CommandExit::InvalidInput,
        ExploreError::NothingRecorded { .. }
        | ExploreError::BaselineFailed(_)
        | ExploreError::RecordingDiffers { .. } => CommandExit::Inconclusive,
        ExploreError::Sandbox(error) => exit_of_sandbox_error(error),
        ExploreError::File(_)
        | ExploreError::System { .. }
        | ExploreError::NotFollowed(_)
        | ExploreError::TreeDiffers { .. }
        | ExploreError::WorkerClosed => CommandExit::HarnessFailed,
    }
}

/// A command that cannot be started as it was given is invalid input, such as a missing program.
fn exit_of_sandbox_error(error: &SandboxError) -> CommandExit {
    match error {
        SandboxError::Interrupted => CommandExit::Interrupted,
        error if error.is_unusable_command() => CommandExit::InvalidInput,
        _ => CommandExit::HarnessFailed,
    }
}

/// A target whose preparation fails gives no baseline.
fn exit_of_run_error(error: &RunError) -> CommandExit {
    match error {
        RunError::Explore(error) => exit_of_explore_error(error),
        RunError::Program(error) => exit_of_program_error(error),
        RunError::TargetFailed(_) => CommandExit::Inconclusive,
        RunError::Sandbox(error) => exit_of_sandbox_error(error),
        RunError::Fault(_)
        | RunError::NotFollowed(_)
        | RunError::File { .. }
        | RunError::Output(_)
        | RunError::SharedBaseline { .. } => CommandExit::HarnessFailed,
    }
}

#[cfg(test)]
mod tests {
    use engine::target::ExecutableError;

    use super::*;

    #[test]
    fn invalid_input_nothing_to_rely_on_and_a_failed_harness_have_different_exits() {
        let path = PathBuf::from("out");
        let missing = ExecutableError::NotExecutable { path: path.clone() };
        let missing = ProgramError::Executable(missing);
        let no_space = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        // ENOENT and EPERM.
        let not_started = |errno| SandboxError::NotStarted {
            program: "trainer".into(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        let too_long = SandboxError::ArgumentsTooLong { program: "trainer".into() };
        let file = FileError { doing: "write", path: path.clone(), source: no_space() };
        let full = FileError { doing: "create", path: path.clone(), source: no_space() };
        let cases = [
            (CliError::OutDirNotEmpty { option: "--out", path: path.clone() }, CommandExit::InvalidInput),
            (LibraryError::Program(missing).into(), CommandExit::InvalidInput),
            (ExploreError::NotPython.into(), CommandExit::InvalidInput),
            (
                ExploreError::NothingRecorded { hints: Vec::new(), found: None }.into(),
                CommandExit::Inconclusive,
            ),
            (RunError::Explore(ExploreError::WorkerClosed).into(), CommandExit::HarnessFailed),
            (ExploreError::from(not_started(2)).into(), CommandExit::InvalidInput),
            (RunError::Sandbox(not_started(2)).into(), CommandExit::InvalidInput),
            (ExploreError::from(not_started(1)).into(), CommandExit::HarnessFailed),
            (ExploreError::from(too_long).into(), CommandExit::InvalidInput),
            (file.into(), CommandExit::HarnessFailed),
            (CliError::Leftovers(SandboxError::InitGone), CommandExit::CleanUpFailed),
            (CliError::RunDir(SandboxError::NotOwned { path: path.clone() }), CommandExit::InvalidInput),
            (CliError::RunDir(full.into()), CommandExit::HarnessFailed),
            (ExploreError::Sandbox(SandboxError::Interrupted).into(), CommandExit::Interrupted),
        ];
        for (error, exit) in cases {
            assert_eq!(error.exit(), exit, "{error}");
        }
    }
}
