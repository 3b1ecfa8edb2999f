//! What is wrong with the value of an option, and what to write instead. Knows no option's effect.

use std::path::PathBuf;

/// Why the value of an option cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionError {
    /// `--state` or `--second-state` is not the name of a crash state.
    #[error(
        "{option}: `{name}` is not the name of a state, such as `process:12` or `ext4:12-3`; copy it from a finding's \
         `repeat` line"
    )]
    UnknownState { option: &'static str, name: String },
    /// No scenario has the trial that `--trial` names.
    #[error("--trial: there is no trial {trial}; {}", trial_counts(*.most, *.scenarios))]
    UnknownTrial { trial: u32, most: u32, scenarios: usize },
    /// `--warm` is given, and no scenario tries crash states.
    #[error(
        "--warm: none of these scenarios has the fault `crash-states`, whose trials it is for; leave it out"
    )]
    WarmWithoutCrashStates,
    /// A pattern is not a regular expression.
    #[error("{option}")]
    Pattern { option: &'static str, source: regex::Error },
    /// A pattern does not say where the step number is.
    #[error("{option} `{text}`: has no group `{group}`; write the step number as `(?<{group}>\\d+)`")]
    NoStepGroup { option: &'static str, text: String, group: &'static str },
    /// `--consumed` does not say where the consumed value is.
    #[error("--consumed `{pattern}`: has no group `value`; write what the step consumed as `(?<value>\\S+)`")]
    NoValueGroup { pattern: String },
    /// A pattern for a value has no group, or several.
    #[error(
        "{option} `{text}`: needs exactly one group, around the value that must be the same; with a group `job`, name it `value`"
    )]
    NotOneGroup { option: &'static str, text: String },
    /// A watched directory cannot be created or resolved.
    #[error("--watch `{path}`", path = .path.display())]
    Watch { path: PathBuf, source: std::io::Error },
    /// A watched path is a file.
    #[error("--watch `{path}`: not a directory; give the directory that contains it", path = .path.display())]
    WatchNotDirectory { path: PathBuf },
    /// An accepted path cannot be resolved.
    #[error("--unfollowed `{path}`", path = .path.display())]
    Unfollowed { path: PathBuf, source: std::io::Error },
    /// An accepted path is in no watched directory.
    #[error(
        "--unfollowed `{path}`: in no directory of --watch; give a path in one of them, or leave the option out: \
         what changes elsewhere is not compared",
        path = .path.display()
    )]
    UnfollowedOutside { path: PathBuf },
    /// The root directory is watched.
    #[error("--watch `/`: give the directory in which the trainer saves")]
    WatchRoot,
    /// A watched directory is not on a disk.
    #[error("--watch `{path}`: the kernel makes what is there; give a directory of files", path = .path.display())]
    WatchKernel { path: PathBuf },
    /// A watched directory contains the directory of the sandboxes, or lies in it.
    #[error(
        "--watch `{path}`: the sandboxes with the copies of it are built in `{runs}`; give a directory that \
         neither contains that one nor lies in it, or set TMPDIR to another directory",
        path = .path.display(),
        runs = .runs.display()
    )]
    WatchesSandboxes { path: PathBuf, runs: PathBuf },
    /// `--without` names a guard that the target does not have.
    #[error(
        "--without `{guard}`: target `{target}` has no such guard; its guards are: {}",
        .known.join(", ")
    )]
    UnknownGuard { guard: String, target: String, known: Vec<String> },
}

/// How many trials there are.
fn trial_counts(most: u32, scenarios: usize) -> String {
    let trials = if most == 1 { "1 trial".into() } else { format!("{most} trials") };
    match scenarios {
        1 => format!("this scenario has {trials}"),
        _ => format!("none of these scenarios has more than {trials}"),
    }
}
