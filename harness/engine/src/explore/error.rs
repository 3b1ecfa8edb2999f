//! Why an exploration gave no result. The ground of the four stages: knows none of them.

use std::io::Error;
use std::path::PathBuf;

use scenarios::{Ending, FailedRun, Outcome, SandboxHint};

use crate::explore::tree_difference::TreeDifference;
use crate::file_error::FileError;
use crate::gate::GateFailure;
use crate::sandbox::SandboxError;

/// Why an exploration gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ExploreError {
    /// The sandbox could not be built or used.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A file operation of the harness failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A system call of the harness failed.
    #[error("could not {doing}")]
    System {
        /// What the call was for.
        doing: &'static str,
        /// Why it failed.
        source: Error,
    },
    /// `--warm` is given, but the recovery is not a Python command.
    #[error(
        "`--warm` needs a recovery that is a Python command: `python script.py`, `python -m module`, or a \
         script whose `#!` line names a Python interpreter"
    )]
    NotPython,
    /// The modules of `--warm` cannot be imported.
    #[error("`--warm`: the modules could not be imported ({detail}); check their names")]
    WarmNotStarted {
        /// What the server wrote last.
        detail: String,
    },
    /// `--state` names no state of this recording, or `--second-state` none of the recovery's.
    #[error("{option}: this run has no state `{name}`{}", nearest_hint(.nearest.as_deref()))]
    UnknownState {
        /// The option.
        option: &'static str,
        /// The name that was given.
        name: String,
        /// A state that exists and has the most similar name.
        nearest: Option<String>,
    },
    /// `--state` names a state of another recording, and this one has none with the same files. The command line exits
    /// with 3.
    #[error(
        "{option}: this recording differs from the one in which `{name}` was found, and no state of it has the same \
         files, so nothing can be concluded; repeat the finding from the kept recording (`--recording`), or make \
         what the trainer writes the same in each run"
    )]
    RecordingDiffers {
        /// The option.
        option: &'static str,
        /// The name that was given.
        name: String,
    },
    /// The kept recording cannot be used. The command line exits with 2.
    #[error("--recording")]
    KeptRecording(#[from] KeptRecordingError),
    /// A call of the target could not be followed, so that the recording is not complete.
    #[error("the recording is not complete{}", unfollowed_hint(.0))]
    NotFollowed(#[source] GateFailure),
    /// The recording does not yield the files that are really there.
    #[error(
        "the recording is not complete: these files changed without a call that could be followed{}\n{}",
        .differences.iter().map(|difference| format!("\n  {difference}")).collect::<String>(),
        UNFOLLOWED_REMEDY
    )]
    TreeDiffers {
        /// The files.
        differences: Vec<TreeDifference>,
    },
    /// A recovery worker has no sandbox any more.
    #[error("a recovery worker was used after it had been closed")]
    WorkerClosed,
    /// The command of `--resume` ends at once, whatever the files are. The command line exits with 2.
    #[error(
        "the command of `--resume` does not work: from every save, and also without any file, it \
         {ending}{}; correct it: it must be a shell command that resumes the trainer from the watched directories \
         (in a target file it is `resume`)",
        message_hint(.message)
    )]
    ResumeCommandFails {
        /// How it ends.
        ending: Ending,
        /// The line that explains it; it may be empty.
        message: String,
    },
    /// The command changed no watched file. The command line exits with 3.
    #[error(
        "nothing was recorded: the command changed no file below the watched directories; {}{}",
        nothing_recorded_remedy(.found.as_ref()),
        .hints.iter().map(|hint| format!("\n  {hint}")).collect::<String>()
    )]
    NothingRecorded {
        /// What it did elsewhere.
        hints: Vec<SandboxHint>,
        /// What was in the watched directories. `None`: nothing.
        found: Option<FoundFiles>,
    },
    /// The baseline run, or the recovery of undamaged files, did not succeed. The command line exits with 3.
    #[error(transparent)]
    BaselineFailed(#[from] ExploreBaselineError),
}

impl ExploreError {
    /// Whether the exploration was stopped before there was anything to judge.
    pub fn is_interruption(&self) -> bool {
        matches!(
            self,
            ExploreError::BaselineFailed(ExploreBaselineError::Stopped)
                | ExploreError::Sandbox(SandboxError::Interrupted)
        )
    }

    /// The error of a fork server that did not start.
    pub(super) fn of_fork_server(error: SandboxError) -> ExploreError {
        match error {
            SandboxError::Init { detail, .. } => ExploreError::WarmNotStarted { detail },
            other => other.into(),
        }
    }

    /// Adds to the error of a system call what the call was for.
    pub(super) fn system<E: Into<Error>>(doing: &'static str) -> impl FnOnce(E) -> ExploreError {
        move |error| ExploreError::System { doing, source: error.into() }
    }
}

/// Why a kept recording cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeptRecordingError {
    /// A file of it cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no recording, or another version has written it.
    #[error(
        "`{path}` is not a recording of this version; explore the command again with `--out`",
        path = .path.display()
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
    },
    /// A file of it has changed since.
    #[error("the recording is damaged: `{path}` has changed since it was written", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It is of other directories.
    #[error(
        "the recording is of {}, and not of {}; give the same `--watch` as then",
        quoted(.recorded),
        quoted(.watched)
    )]
    OtherDirectories {
        /// Those of the recording.
        recorded: Vec<PathBuf>,
        /// Those that are watched now.
        watched: Vec<PathBuf>,
    },
    /// It was made with another pattern.
    #[error("the recording was made with another `--saved`; give the same one as then")]
    OtherSavedPattern,
}

fn quoted(paths: &[PathBuf]) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    quoted.join(", ")
}

/// What to do about changes that cannot be followed.
const UNFOLLOWED_REMEDY: &str = "change them with ordinary calls; or, if no recovery needs these files, explore \
     with `--unfollowed PATH` for each of them or for their directory: the exit code is then 3 at best";

/// What to do if the target forbids to follow it.
fn unfollowed_hint(failure: &GateFailure) -> &'static str {
    match failure.is_forbidden() {
        true => {
            "; start this program outside of the trainer, or, if no recovery needs the files that it changes, \
             explore with `--unfollowed PATH` for each of them"
        }
        false => "",
    }
}

fn nothing_recorded_remedy(found: Option<&FoundFiles>) -> String {
    let Some(FoundFiles { count, resumed }) = found else {
        return "check the paths after `--watch`".into();
    };
    let resumed = match resumed {
        Some(line) => format!(", and it printed `{line}`"),
        None => String::new(),
    };
    format!(
        "they already have {count} files and directories{resumed}. If these are of a finished run, nothing was left \
         to do: use an empty directory, in `--watch` and in the command. Else check the paths after `--watch`"
    )
}

fn message_hint(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" (`{message}`)") }
}

fn nearest_hint(nearest: Option<&str>) -> String {
    let nearest = nearest.map(|nearest| format!(" (nearest: `{nearest}`)")).unwrap_or_default();
    format!("{nearest}; run without `--state` to see which states fail")
}

/// What was in the watched directories before a run that changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFiles {
    /// How many files and directories.
    pub count: usize,
    /// The line with which the run reported that it resumed.
    pub resumed: Option<String>,
}

/// Why the crash states of a command cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum ExploreBaselineError {
    /// The command fails without any fault.
    #[error("{0} without any fault")]
    CommandFailed(Box<FailedRun>),
    /// The run was cancelled.
    #[error("stopped before the command had ended")]
    Stopped,
    /// The command acknowledged no save.
    #[error("no line of the command's output matches `--saved`, so no crash state falls inside a save")]
    NothingSaved,
    /// The command did not print the value with which recoveries are compared.
    #[error("no line of the command's output matches `{option}`, so there is nothing to compare with")]
    NothingToCompare {
        /// The option with the pattern.
        option: &'static str,
    },
    /// The recoveries do not report from which step they resume.
    #[error(
        "no line of the recoveries' output matches `--resumed`, so nothing tells whether they resume or start \
         over; correct the pattern, or give `--step`: the first step of a recovery then tells it"
    )]
    ResumeNotReported,
    /// The recovery of undamaged files does not succeed.
    #[error(
        "the recovery from {files} {ending} without any fault, so its outcome is already `{outcome}`\
         {difference}",
        ending = .run.ending,
        difference = .difference.as_ref().map_or_else(String::new, |difference| format!("; {difference}"))
    )]
    RecoveryFailed {
        /// Which files: those before the run.
        files: &'static str,
        /// What the recovery did.
        outcome: Outcome,
        /// How it ended, or its check if the recovery ended well, with the last lines of the output.
        run: Box<FailedRun>,
        /// The final value, if it is not that of the baseline run.
        difference: Option<ValueDifference>,
    },
}

impl ExploreBaselineError {
    /// The run that did not end well, if there was one.
    pub fn failed_run(&self) -> Option<&FailedRun> {
        match self {
            ExploreBaselineError::CommandFailed(run) | ExploreBaselineError::RecoveryFailed { run, .. } => {
                Some(run)
            }
            ExploreBaselineError::Stopped
            | ExploreBaselineError::NothingSaved
            | ExploreBaselineError::ResumeNotReported
            | ExploreBaselineError::NothingToCompare { .. } => None,
        }
    }
}

/// Two final values that should be the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`--same` found {}, but {} in the baseline run",
    .recovery.as_deref().unwrap_or("nothing"),
    .baseline.as_deref().unwrap_or("nothing")
)]
pub struct ValueDifference {
    /// What the recovery printed last.
    pub recovery: Option<String>,
    /// What the baseline run printed last.
    pub baseline: Option<String>,
}
