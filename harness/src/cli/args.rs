//! The command line as typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Breaks a machine-learning trainer in every way a trainer breaks, and reports what it does not come back from.
///
/// Without a verb: `run` over the whole shipped library.
#[derive(Debug, Parser)]
#[command(name = "trainwreck", version, after_help = EXIT_CODES)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: Option<CliCommand>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

const EXIT_CODES: &str = "Exit codes: 0 all survived; 1 something violated; 2 invalid scenario or arguments; \
3 inconclusive; 4 the harness failed; 5 clean-up failed. Skipped counts as skipped, never as passed.";

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// Runs scenarios and writes a report
    Run(RunArgs),
    /// Takes each scenario's guard away and wants the scenario violated: shows that it can notice
    Ablate(RunArgs),
    /// Records one run of any trainer and tries every state that a crash or a power loss could leave
    Explore(Box<ExploreArgs>),
    /// Lists the shipped scenarios
    List,
    /// Checks scenario and target files: all errors of a file at once
    Check {
        /// Scenario or target files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Judges a record again without running anything
    Analyze {
        /// A `record.jsonl`
        record: PathBuf,
        /// Renders the reports again into this folder
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Tells which mechanisms this machine grants, and how to get the others
    Doctor,
    /// Sweeps what a killed harness left behind
    Recover,
    /// Prints the JSON Schema of scenario or target files
    Schema {
        /// Which kind of file
        #[arg(value_enum, default_value_t = SchemaKind::Scenario)]
        kind: SchemaKind,
        /// Writes both schemas into this folder instead
        #[arg(long)]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum SchemaKind {
    Scenario,
    Target,
}

#[derive(Debug, Clone, Args)]
pub(super) struct RunArgs {
    /// Ids of shipped scenarios (`fs-01`), files or folders; none: the whole shipped library
    pub(super) scenarios: Vec<String>,
    /// Folder for the report; must not exist or be empty [default: reports/out/<run>]
    #[arg(long)]
    pub(super) out: Option<PathBuf>,
    /// Decides everything that is drawn: same scenario, same seed, same plan
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Trials at a time [default: number of cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) jobs: Option<u16>,
    /// Only this trial of each scenario, as numbered in the report
    #[arg(long)]
    pub(super) trial: Option<u32>,
}

/// Crashes to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum CrashArg {
    /// SIGKILL: everything that the kernel has taken stays
    Process,
    /// Unsynced data and names may be lost
    Power,
    All,
}

/// File systems, as far as a power loss goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum FsModelArg {
    Posix,
    Ext4,
    Xfs,
    Btrfs,
    /// A disk that says "synced" and does nothing; never tried unless asked for
    Lying,
}

#[derive(Debug, Clone, Args)]
pub(super) struct ExploreArgs {
    /// Folders that the trainer saves in; it works on copies of them
    #[arg(long, required_unless_present = "target", num_args = 1.., value_name = "DIR")]
    pub(super) watch: Vec<PathBuf>,
    /// A target file, or the name of a shipped one: it says all that the options say otherwise
    #[arg(long, value_name = "FILE", conflicts_with_all = ["watch", "saved", "resumed", "step", "resume", "check", "same", "refused_exit", "timeout", "command"])]
    pub(super) target: Option<String>,
    /// With `--target`: a guard that is taken away
    #[arg(long, value_name = "GUARD", requires = "target")]
    pub(super) without: Option<String>,
    /// 2: the crash states of recoveries as well, for a second crash
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    pub(super) depth: u8,
    #[arg(long, value_enum, default_value_t = CrashArg::All)]
    pub(super) crash: CrashArg,
    /// File systems whose power losses are tried [default: posix, ext4, xfs and btrfs]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(super) model: Vec<FsModelArg>,
    /// A line of the output that says that a step is durable now; with a group `step`
    #[arg(long, value_name = "REGEX")]
    pub(super) saved: Option<String>,
    /// A line that says where it goes on from; with a group `step`
    #[arg(long, value_name = "REGEX")]
    pub(super) resumed: Option<String>,
    /// A line that says that a step was trained; with a group `step`: tells a silent start from scratch from one with nothing left to do
    #[arg(long, value_name = "REGEX")]
    pub(super) step: Option<String>,
    /// How it is resumed, for the shell [default: the command itself]
    #[arg(long, value_name = "CMD")]
    pub(super) resume: Option<String>,
    /// Run on the recovered files, for the shell; must exit with 0
    #[arg(long, value_name = "CMD")]
    pub(super) check: Option<String>,
    /// A line with one group whose value after recovery must be the undisturbed run's: a hash of the weights
    #[arg(long, value_name = "REGEX")]
    pub(super) same: Option<String>,
    /// A line that says what a step consumed, such as a digest of its batch or its loss; with groups `step` and `value`: in a
    /// recovery each step must consume what it did undisturbed
    #[arg(long, value_name = "REGEX")]
    pub(super) consumed: Option<String>,
    /// Exit codes by which it refuses with a clear error
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(super) refused_exit: Vec<i32>,
    /// Python modules to import once: each recovery is then a fork of an interpreter that has them
    #[arg(long, value_name = "MODULE", value_delimiter = ',')]
    pub(super) warm: Vec<String>,
    /// A recovery that takes longer is hung
    #[arg(long, value_name = "T", default_value = "60s", value_parser = crate::cli::explore::parse_duration)]
    pub(super) timeout: std::time::Duration,
    /// States at a time [default: number of cores]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) jobs: Option<u16>,
    /// Distinct states at most; representatives of each kind come first, and what is left out is counted
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(super) max_states: usize,
    /// Folder for the report; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
    /// File for the result as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Only this state, as named by a finding
    #[arg(long, value_name = "STATE")]
    pub(super) state: Option<String>,
    /// The trainer's command
    #[arg(last = true, required_unless_present = "target", value_name = "CMD")]
    pub(super) command: Vec<std::ffi::OsString>,
}
