//! The command line: commands, options and their help texts. Knows nothing of what the commands do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use engine::plan::{MAX_TRIALS_OF_SCENARIO, MaxTrials};

/// Inject faults into a machine-learning trainer and report which ones it does not recover from
///
/// `trainwreck run` runs all shipped scenarios. Without a command this help is printed, with exit code 2.
#[derive(Debug, Parser)]
#[command(name = "trainwreck", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: CliCommand,
}

const EXIT_CODES: &str = "\
Exit codes:
    0  at least one trial or crash state was judged, and nothing is wrong
    1  a scenario was violated, `explore` has a finding, or `ablate` missed a guard
    2  invalid scenario, target file or arguments, or a missing program
    3  nothing to rely on: inconclusive, everything skipped, or a scenario that must not be skipped was
    4  the harness failed
    5  clean-up failed
  130  interrupted by SIGINT or SIGTERM; what was known by then is reported

Several at once: the first of 2, 4, 130, 1, 5, 3.";

#[derive(Debug, Subcommand)]
pub(crate) enum CliCommand {
    /// Run scenarios and write a report
    ///
    /// Each scenario first runs the trainer without a fault (the baseline). It then injects its faults in one
    /// or more trials, resumes the trainer, and checks what the scenario expects. A scenario that needs
    /// something this machine does not support is reported as skipped, with the reason.
    Run(RunArgs),
    /// Run each scenario with one of the trainer's guards removed, and check that it fails
    ///
    /// A guard is one protection of the trainer, such as an atomic save. A scenario lists the guards that it
    /// relies on, and is run once for each of them. Without the guard the scenario must be violated: this
    /// proves that it can detect the fault. Each guard is reported as `caught by harm` (what the trainer did or
    /// left was wrong), `caught by words only` (only lines of output were missing) or `MISSED` (it survived
    /// anyway). If the trainer does not work without the guard, even without a fault, nothing is shown.
    Ablate(AblateArgs),
    /// Record one run of any trainer and test its recovery from crash states
    ///
    /// Records the file operations of the command, builds file trees that a kill or a power loss could have
    /// left, runs only the recovery on each, and groups the failures by cause. The output counts the states
    /// that were not tried. The command needs no changes.
    #[command(after_help = "\
Example:
  trainwreck explore --watch runs --saved '^saved step (?<step>\\d+)' \\
      --resumed '^resumed from step (?<step>\\d+)' --out report -- python train.py runs")]
    Explore(Box<ExploreArgs>),
    /// List the shipped scenarios, with their severity and the guards that they rely on
    List,
    /// Check scenario and target files, and report all errors of each file
    Check {
        /// Scenario or target files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Judge a recorded run again, without running anything
    ///
    /// Computes each verdict from the recorded events and compares it with the recorded verdict.
    Analyze {
        /// The directory of a report, or the `record.jsonl` in it
        #[arg(value_name = "RECORD")]
        record: PathBuf,
        /// Directory in which to write the reports again [default: no reports]
        ///
        /// It is created if necessary, and must be empty.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Which scenarios must not have been skipped [default: none]
        ///
        /// With `all`, each skipped scenario makes the exit code 3.
        #[arg(long, value_name = "WHICH")]
        require: Option<RequireArg>,
    },
    /// Show which mechanisms this machine supports, and how to enable the others
    ///
    /// Scenarios that need an unsupported mechanism are skipped.
    Doctor,
    /// Remove what a killed run left behind
    ///
    /// `run`, `ablate` and `explore` do this by themselves when they start.
    Recover,
    /// Print the JSON Schema of scenario or target files, for editors
    Schema {
        /// Kind of file
        #[arg(value_enum, default_value_t = SchemaKind::Scenario)]
        kind: SchemaKind,
        /// Write both schemas to this existing directory, instead of printing one
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
}

/// The values of `--require`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RequireArg {
    /// Nothing may be skipped
    All,
}

/// The kinds of file that have a JSON Schema.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum SchemaKind {
    /// A file that describes faults and expectations
    Scenario,
    /// A file that describes how to start, watch, resume and verify a trainer
    Target,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct AblateArgs {
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// Run every trial without the guard [default: start no more of them once the guard is caught]
    ///
    /// One trial with harm proves that the scenario detects the fault. If only words are missing, 32 trials are tried
    /// in search of harm. Use it to see everything that the guard prevents. Trials that were not started are counted
    /// next to the verdict.
    #[arg(long)]
    pub(crate) keep_going: bool,
    /// Run each scenario also as it is, with all guards
    ///
    /// One command then shows that the trainer survives with the guards and what each of them prevents. It needs less
    /// time than `run` and `ablate`, because the undisturbed runs are shared.
    #[arg(long)]
    pub(crate) with_guards: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Scenarios to run: IDs of shipped ones (such as `fs-01`), files, or directories [default: all shipped]
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenarios: Vec<String>,
    /// Directory for the report [default: $XDG_STATE_HOME/trainwreck/<time>-seed-<seed>]
    ///
    /// It is created if necessary, and must be empty. By default the report goes below `~/.local/state` if
    /// XDG_STATE_HOME is not set, and `latest` beside it points to the newest report.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Seed for the random choices of data and faults
    ///
    /// The same scenario and seed give the same plan. Use another seed to try other choices.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Number of trials to run at the same time [default: number of cores, and two more]
    ///
    /// Use a smaller number if the machine runs out of memory, or if the trainer uses all cores by itself.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: Option<u16>,
    #[command(flatten)]
    pub(crate) host_access: HostAccessArgs,
    /// Largest number of trials of each scenario, or `all` [default: `max-trials` in the scenario]
    ///
    /// If there are more, a selection is tried that depends on the seed, and the others are counted next to
    /// the verdict. Use `all` for nightly runs. A scenario has at most 100,000 trials in any case.
    #[arg(long, value_name = "N|all", value_parser = parse_max_trials)]
    pub(crate) max_trials: Option<MaxTrials>,
    /// Run only this trial of each scenario, by its number in the report [default: all trials]
    ///
    /// Use it to repeat one failure. A trial has the same number with any `--max-trials`. An expectation about
    /// all trials together, such as `sometimes`, is not judged by one trial in which it does not hold.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) trial: Option<u32>,
    /// Python modules to import only once in trials of crash states, separated by commas [default: chosen by a first
    /// resume]
    ///
    /// Each resume of such a trial is then forked from an interpreter that has imported them. By default, if the trials
    /// of a Python trainer would take long, it is one that has imported the libraries that a first resume imports. Use
    /// this option to import other modules, such as large ones of your own.
    #[arg(long, value_name = "MODULE", value_delimiter = ',')]
    pub(crate) warm: Vec<String>,
    /// Resume the trainer as a new process in each trial
    ///
    /// By default slow trials of crash states of a Python trainer are forked from an interpreter that has imported the
    /// libraries, if they do then what trials with new processes do. Use it if you doubt that.
    #[arg(long, conflicts_with = "warm")]
    pub(crate) no_warm: bool,
    /// Which scenarios must not be skipped [default: those given by ID or file]
    ///
    /// With `all`, each skipped scenario makes the exit code 3. Use it in CI, where a machine that supports
    /// less than expected must not look like a success.
    #[arg(long, value_name = "WHICH")]
    pub(crate) require: Option<RequireArg>,
}

/// What of the host the trainer may touch.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HostAccessArgs {
    /// Directory of the host in which the trainer may write [default: none]
    ///
    /// The trainer sees the real directory. What it writes or deletes there stays, also if the run is a trial
    /// or a recovery from a crash state. Every other directory is a private view: what the trainer writes
    /// there is thrown away. Repeat the option for more directories. They are added to the target file's
    /// `writable`.
    #[arg(long, value_name = "DIR", help_heading = SANDBOX)]
    pub(crate) writable: Vec<PathBuf>,
    /// Network that the trainer sees [default: the target file's `network`, else private]
    ///
    /// Use `host` if the trainer must reach a server. What it sends there is real, in each trial and in each
    /// recovery.
    #[arg(long, value_enum, value_name = "NETWORK", help_heading = SANDBOX)]
    pub(crate) network: Option<NetworkArg>,
}

/// The values of `--network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NetworkArg {
    /// A network of the sandbox's own, with a loopback device only
    Private,
    /// The host's network
    Host,
}

/// The values of `--crash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum CrashArg {
    /// The process is killed; everything that it wrote is kept
    Process,
    /// The machine loses power; data and file names that were not synced may be lost
    Power,
    /// Both
    All,
}

/// The values of `--model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FsModelArg {
    /// Everything that POSIX allows
    Posix,
    /// ext4 with `data=ordered`
    Ext4,
    /// XFS
    Xfs,
    /// Btrfs
    Btrfs,
    /// A disk that acknowledges a sync without performing it; not among the defaults
    Lying,
}

const TRAINER: &str = "Trainer";
const CRASH_STATES: &str = "Crash states";
const SANDBOX: &str = "Sandbox";
const OUTPUT: &str = "Output";

#[derive(Debug, Clone, Args)]
pub(crate) struct ExploreArgs {
    /// Directories in which the trainer saves
    ///
    /// The trainer works on copies at the same paths, so that the directories themselves stay unchanged. A
    /// directory that does not exist begins empty. On the host nothing is created.
    #[arg(
        long,
        required_unless_present = "target",
        num_args = 1..,
        value_name = "DIR",
        help_heading = TRAINER
    )]
    pub(crate) watch: Vec<PathBuf>,
    /// Target file, or name of a shipped target such as `reference`
    ///
    /// Use it instead of the options that describe the trainer: the target file has the command, the patterns
    /// and the check.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "watch", "saved", "resumed", "step", "resume", "check", "same", "refused_exit", "timeout",
            "unfollowed", "command",
        ],
        help_heading = TRAINER
    )]
    pub(crate) target: Option<String>,
    /// Remove this guard of the target [default: all guards are on]
    ///
    /// Use it with `--target` to see which crash states a guard protects from.
    #[arg(long, value_name = "GUARD", requires = "target", help_heading = TRAINER)]
    pub(crate) without: Option<String>,
    /// Number of crashes in a row: 1 or 2
    ///
    /// With 2, some recoveries are recorded in turn, and their own crash states are tried too. Use it if the
    /// trainer changes files while it recovers.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=2),
        help_heading = CRASH_STATES
    )]
    pub(crate) depth: u8,
    /// Kinds of crash to try
    #[arg(long, value_enum, default_value_t = CrashArg::All, help_heading = CRASH_STATES)]
    pub(crate) crash: CrashArg,
    /// File systems whose power losses are tried, separated by commas [default: posix,ext4,xfs,btrfs]
    ///
    /// Use it to try only the file system that the trainer saves on.
    #[arg(long, value_enum, value_delimiter = ',', help_heading = CRASH_STATES)]
    pub(crate) model: Vec<FsModelArg>,
    /// Pattern of the output line that acknowledges a durable save, with a group `step`
    ///
    /// A recovery that resumes before the newest acknowledged step is a finding (`lost-work` or `restarted`),
    /// if `--resumed` is given too. By default no save is acknowledged, and lost work is not detected.
    #[arg(long, value_name = "REGEX", help_heading = TRAINER)]
    pub(crate) saved: Option<String>,
    /// Pattern of the output line that announces the step from which the trainer resumes, with a group `step`
    ///
    /// By default the resumed step is unknown, and lost work is not detected.
    #[arg(long, value_name = "REGEX", help_heading = TRAINER)]
    pub(crate) resumed: Option<String>,
    /// Pattern of the output line that reports a trained step, with a group `step`
    ///
    /// Lets the judge distinguish a silent restart at step 0 from a run that had already finished. By default
    /// a recovery without a `--resumed` line counts as restarted.
    #[arg(long, value_name = "REGEX", help_heading = TRAINER)]
    pub(crate) step: Option<String>,
    /// Shell command that resumes the trainer [default: the trainer's command]
    ///
    /// Use it if the trainer needs other arguments to resume than to start.
    #[arg(long, value_name = "CMD", help_heading = TRAINER)]
    pub(crate) resume: Option<String>,
    /// Shell command that checks the files after each recovery [default: no check]
    ///
    /// If it exits with another code than 0, the state is a finding (`corrupt`).
    #[arg(long, value_name = "CMD", help_heading = TRAINER)]
    pub(crate) check: Option<String>,
    /// Pattern whose one group is a value that recovery must reproduce, such as a hash of the weights
    ///
    /// The last match of a recovery is compared with the last match of the baseline, the recorded run.
    /// Another value is a finding (`corrupt`). With groups `job` and `value` it is the last line of a job, and each
    /// job of a daemon is held to its own promises. By default no value is compared.
    #[arg(long, value_name = "REGEX", help_heading = TRAINER)]
    pub(crate) same: Option<String>,
    /// Pattern of the output line that reports what a step consumed, with groups `step` and `value`
    ///
    /// The value may be a digest of the step's batch, or its loss. If a step of a recovery consumes another
    /// value than in the baseline, samples were repeated or skipped, which is a finding (`corrupt`). By
    /// default consumed samples are not compared.
    #[arg(long, value_name = "REGEX", help_heading = TRAINER)]
    pub(crate) consumed: Option<String>,
    /// Exit codes with which the trainer refuses to resume, separated by commas [default: none]
    ///
    /// Such a recovery counts as `refused`, which is not a finding. Use it for codes that come with a clear
    /// error. Every other exit code but 0 counts as a crash.
    #[arg(long, value_name = "N", value_delimiter = ',', help_heading = TRAINER)]
    pub(crate) refused_exit: Vec<i32>,
    /// Python modules to import only once, separated by commas [default: chosen by the first recovery]
    ///
    /// Each recovery is then forked from an interpreter that has imported them. By default, if the recoveries of a
    /// Python trainer would take long, it is one that has imported the libraries that the first recovery imports.
    /// Use this option to import other modules, such as large ones of your own.
    #[arg(long, value_name = "MODULE", value_delimiter = ',', help_heading = TRAINER)]
    pub(crate) warm: Vec<String>,
    /// Start each recovery as a new process
    ///
    /// By default slow recoveries of a Python trainer are forked from an interpreter that has imported the
    /// libraries, if they do then what new processes do. Use it if you doubt that.
    #[arg(long, conflicts_with = "warm", help_heading = TRAINER)]
    pub(crate) no_warm: bool,
    /// Time limit of a recovery, such as `10s`, `500ms`, `2m` or `1h`
    ///
    /// A recovery that takes longer counts as hung. One state of each such finding is then repeated alone, with
    /// three times the limit. If it ends, the finding is not confirmed. Use a limit that a recovery keeps on a
    /// busy machine.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "60s",
        value_parser = parse_duration,
        help_heading = TRAINER
    )]
    pub(crate) timeout: std::time::Duration,
    /// Time limit of the recorded run, such as `30m` [default: 1 hour; with `--target`, from the target file]
    ///
    /// A run that takes longer is stopped, and nothing can be concluded (exit code 3). Use it in CI, where a
    /// trainer that hangs without any fault must not wait for ever. The recorded run is slower than others.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = TRAINER)]
    pub(crate) record_timeout: Option<std::time::Duration>,
    /// File or directory in a watched directory whose changes need not be followed [default: none]
    ///
    /// After the recording, the recorded files are compared with the real ones. A difference ends the exploration
    /// with exit code 4. This option accepts the differences at this path and below it, and the calls of programs
    /// that forbid to be followed; the exit code is then 3 at best. Use it for files that no recovery needs. Repeat
    /// it for more paths.
    #[arg(long, value_name = "PATH", help_heading = TRAINER)]
    pub(crate) unfollowed: Vec<PathBuf>,
    /// Number of crash states to try at the same time [default: number of cores]
    ///
    /// Use a smaller number if the machine runs out of memory.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) jobs: Option<u16>,
    #[command(flatten)]
    pub(crate) host_access: HostAccessArgs,
    /// Largest number of distinct crash states to try, or `all`
    ///
    /// States are grouped by similarity. The first state of each group is tried, then the second of each, and
    /// so on. The output counts the states that are left out.
    #[arg(
        long,
        value_name = "N|all",
        default_value = "20000",
        value_parser = parse_max_states,
        help_heading = CRASH_STATES
    )]
    pub(crate) max_states: usize,
    /// Time after which no more crash states are tried, such as `10m` [default: none]
    ///
    /// It counts from the start of the command. The recorded run and the controls are finished in any case, and
    /// what was found by then is shrunk and reported. The output counts the states that were not tried. States of
    /// each kind come first, so that a short time shows most of what a long one does. Use it in CI.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = CRASH_STATES)]
    pub(crate) max_time: Option<std::time::Duration>,
    /// Directory for the report, as HTML and JSON [default: no report]
    ///
    /// It is created if necessary, and must be empty.
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub(crate) out: Option<PathBuf>,
    /// Largest size of the recording that is kept in the report, such as `500MiB` or `0`
    ///
    /// The commands that repeat findings then use it instead of a new recording, so that they repeat exactly what was
    /// found; for those of second crashes (`--depth 2`) the recovery is recorded again. A larger recording is not kept.
    /// Without `--out` there is no report, and no recording is kept.
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "2GiB",
        value_parser = parse_size,
        help_heading = OUTPUT
    )]
    pub(crate) keep_recording: u64,
    /// Kept recording to use instead of a new one: the directory `recording` of a report [default: record anew]
    ///
    /// The other options must be those with which it was made.
    #[arg(long, value_name = "DIR", help_heading = CRASH_STATES)]
    pub(crate) recording: Option<PathBuf>,
    /// Directory for the files of the states that the findings show [default: they are not kept]
    ///
    /// For each finding, a directory with the files as they are before the recovery, and all that the recovery then
    /// printed. With `--state`, those of this state, also if it is no finding. The directory is created if necessary,
    /// and must be empty.
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub(crate) keep: Option<PathBuf>,
    /// File for the result as JSON [default: no file]
    ///
    /// An existing file is overwritten.
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub(crate) json: Option<PathBuf>,
    /// What must not be skipped; `explore` itself is skipped if the machine lacks what it needs
    ///
    /// The exit code is 3 then, with and without this option.
    #[arg(long, value_name = "WHICH")]
    pub(crate) require: Option<RequireArg>,
    /// Try only this crash state, by its name in a finding [default: all states]
    ///
    /// Use it to repeat one finding.
    #[arg(long, value_name = "STATE", help_heading = CRASH_STATES)]
    pub(crate) state: Option<String>,
    /// Try only this state after a second crash, by its name in a finding [default: none]
    ///
    /// The recovery from the state of `--state` is recorded, and this crash state of it is tried. Use it to repeat
    /// one finding of `--depth 2`.
    #[arg(long, value_name = "STATE", requires = "state", help_heading = CRASH_STATES)]
    pub(crate) second_state: Option<String>,
    /// Command of the trainer, after `--`
    #[arg(last = true, required_unless_present = "target", value_name = "CMD")]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// The text of a time is not a duration.
#[derive(Debug, thiserror::Error)]
#[error("`{0}`: write it as `10s`, `500ms`, `2m` or `1h`")]
struct InvalidDuration(String);

/// The text of a size is not a number of bytes.
#[derive(Debug, thiserror::Error)]
#[error("`{0}`: write it as `500MiB`, `2GiB` or `0`")]
struct InvalidSize(String);

/// Parses `500MiB`, `2GiB` or `4 kB`. A number without a unit is in bytes.
fn parse_size(text: &str) -> Result<u64, InvalidSize> {
    let invalid = || InvalidSize(text.into());
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| invalid())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(invalid()),
    };
    number.checked_mul(unit).ok_or_else(invalid)
}

/// The text of a bound is neither a number in its range nor `all`.
#[derive(Debug, thiserror::Error)]
#[error("`{text}`: write a number from 1 to {max}, or `all`")]
struct InvalidBound {
    text: String,
    max: u32,
}

/// Parses a number from 1 to `max`, or `all`, which is `None`.
fn parse_bound(text: &str, max: u32) -> Result<Option<u32>, InvalidBound> {
    match text.parse() {
        _ if text == "all" => Ok(None),
        Ok(number) if (1..=max).contains(&number) => Ok(Some(number)),
        _ => Err(InvalidBound { text: text.into(), max }),
    }
}

fn parse_max_trials(text: &str) -> Result<MaxTrials, InvalidBound> {
    Ok(parse_bound(text, MAX_TRIALS_OF_SCENARIO)?.map_or(MaxTrials::All, MaxTrials::AtMost))
}

fn parse_max_states(text: &str) -> Result<usize, InvalidBound> {
    Ok(parse_bound(text, u32::MAX)?.map_or(usize::MAX, |max| max as usize))
}

/// Parses `10s`, `500ms`, `2m` or `1h`. A number without a unit is in seconds.
fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| InvalidDuration(text.into()))?;
    match text[digits..].trim() {
        "" | "s" => Ok(Duration::from_secs(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "m" | "min" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(InvalidDuration(text.into())),
    }
}
