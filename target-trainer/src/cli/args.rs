//! The command line's arguments and their help texts. Does nothing with them.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::bench::BenchArgs;
use crate::model::Preset;
use crate::settings::DeviceRequest;

/// A LoRA fine-tuning daemon that recovers from crashes, full disks and GPU errors.
#[derive(Debug, Parser)]
#[command(name = "target-trainer", version, after_help = EXIT_CODES)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 verify found damage; 2 invalid arguments or settings; \
    3 failed; 10 root in use; 11 base model; 12 no valid checkpoint; 13 disk; 14 not finite; \
    15 stopped by a signal, work is left; 16 GPU failed; 17 GPU missing; \
    18 no driver, driver too old, or no such device; \
    19 GPU computes wrong results; 20 a job failed, or data or a job can't be read; \
    21 the machine refuses what a job needs; 22 a newer version's checkpoint; 23 the monitor's port is taken.";

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// Creates a root: settings, directories, and a base model with random weights
    Init {
        /// Directory to create the root in; it must not be a root already
        root: PathBuf,
        /// Size of the base model
        #[arg(long, value_enum, default_value_t = Preset::Tiny)]
        preset: Preset,
        /// Seed of the base model's weights and of training
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Changes a setting, given as `section.key=value`; can be repeated
        #[arg(long)]
        set: Vec<String>,
    },
    /// Accepts files from the inbox and trains on them, one job after the other
    Daemon {
        /// Directory of the root
        root: PathBuf,
        /// Exits when the inbox and the queue are empty; default: runs until SIGTERM, SIGINT or SIGHUP
        #[arg(long)]
        drain: bool,
        /// Overrides the setting `device.use`: auto, cpu or cuda:N
        #[arg(long)]
        device: Option<DeviceRequest>,
    },
    /// Copies a data file into the inbox, whole or not at all
    Submit {
        /// Directory of the root
        root: PathBuf,
        /// JSON lines to train on
        file: PathBuf,
        /// Name of the file in the inbox; default: its own
        #[arg(long)]
        name: Option<String>,
    },
    /// Prints status.json
    Status {
        /// Directory of the root
        root: PathBuf,
    },
    /// Checks all checkpoints, adapters and queued data; changes nothing
    Verify {
        /// Directory of the root
        root: PathBuf,
    },
    /// Merges the adapter of a finished job into the base model, below `merged/`; waits for a training to end
    Consolidate {
        /// Directory of the root
        root: PathBuf,
        /// Id of the job: the name of its directory in `done/`
        job: String,
        /// Removes the adapter when the merged model has been read back; default: it stays
        #[arg(long)]
        remove_adapter: bool,
    },
    /// Prints the checkpoint that each job would resume from, and those that are skipped, with the reason
    ResumeInfo {
        /// Directory of the root
        root: PathBuf,
    },
    /// Writes a data file
    #[command(subcommand)]
    MakeData(DataKind),
    /// Measures training steps on a model with random weights
    Bench(BenchArgs),
    /// Trains one job; started by the daemon only
    #[command(hide = true)]
    Worker(WorkerArgs),
}

/// The options of `worker`, which only the daemon passes.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    pub(super) root: PathBuf,
    #[arg(long)]
    pub(super) job: String,
    /// Id of the job's data
    #[arg(long)]
    pub(super) data: String,
    /// Digest of the base model that the job was accepted with
    #[arg(long)]
    pub(super) base: Option<String>,
    #[arg(long)]
    pub(super) micro_batch: NonZeroUsize,
    #[arg(long)]
    pub(super) device: DeviceRequest,
    /// Process id of the daemon
    #[arg(long)]
    pub(super) parent: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum DataKind {
    /// Sums of a two-digit and a one-digit number
    Arithmetic {
        /// Seed of the sums
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Number of samples
        #[arg(long, default_value_t = 1000)]
        samples: u32,
        /// Approximate bytes of a sample, reached with random letters; 0: no extra letters
        #[arg(long, default_value_t = 0)]
        length: usize,
        /// File to write; it must not exist
        #[arg(long)]
        out: PathBuf,
    },
    /// All UTF-8 text files below a directory, cut into samples
    Text {
        /// Directory to read
        dir: PathBuf,
        /// Maximum bytes of a sample
        #[arg(long, default_value_t = 512)]
        chunk: usize,
        /// File to write; it must not exist
        #[arg(long)]
        out: PathBuf,
    },
}
