//! The command line as typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Breaks a machine-learning trainer in every way a trainer breaks, and reports what it does not come back from.
///
/// Without a verb: `run` over the whole shipped library.
#[derive(Debug, Parser)]
#[command(name = "trainwreck", version, after_help = EXIT_CODES)]
pub(super) struct Typed {
    #[command(subcommand)]
    pub(super) verb: Option<Verb>,
    #[command(flatten)]
    pub(super) run: RunArgs,
}

const EXIT_CODES: &str = "Exit codes: 0 all survived; 1 something violated; 2 invalid scenario or arguments; \
3 inconclusive; 4 the harness failed; 5 clean-up failed. Skipped counts as skipped, never as passed.";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Runs scenarios and writes a report
    Run(RunArgs),
    /// Takes each scenario's guard away and wants the scenario violated: shows that it can notice
    Prove(RunArgs),
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
        #[arg(value_enum, default_value_t = Kind::Scenario)]
        kind: Kind,
        /// Writes both schemas into this folder instead
        #[arg(long)]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Kind {
    Scenario,
    Target,
}

#[derive(Debug, Clone, Args)]
pub(super) struct RunArgs {
    /// Ids of shipped scenarios (`fs-01`), files or folders; none: the whole shipped library
    pub(super) which: Vec<String>,
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
