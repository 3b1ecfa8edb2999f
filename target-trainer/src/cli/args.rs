//! The command line as typed.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::bench::BenchArgs;
use crate::model::Preset;
use crate::settings::DeviceRequest;

/// A LoRA fine-tuning daemon that survives what a trainer meets.
#[derive(Debug, Parser)]
#[command(name = "target-trainer", version, after_help = EXIT_CODES)]
pub(super) struct CommandLine {
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 verify found something; 2 arguments or settings; 3 failed; 10 root in use; \
11 base model; 12 no checkpoint verifies; 13 disk; 14 not finite; 15 asked to end; 16 GPU failed; 17 GPU not there; \
18 no driver, too old, or no such device; 19 GPU computes wrongly.";

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
    /// Makes a root: settings, a base model from a seed, and the folders
    Init {
        root: PathBuf,
        /// Size of the base model
        #[arg(long, value_enum, default_value_t = Preset::Tiny)]
        preset: Preset,
        /// Decides the base's weights, and the recipe's seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Changes a setting: `section.key=value`
        #[arg(long)]
        set: Vec<String>,
    },
    /// Takes files from the inbox and trains them, one job after the other
    Daemon {
        root: PathBuf,
        /// Ends once everything is done
        #[arg(long)]
        drain: bool,
        /// In place of the setting `device.use`: auto, cpu or cuda:N
        #[arg(long)]
        device: Option<DeviceRequest>,
    },
    /// Puts a data file into the inbox
    Submit { root: PathBuf, file: PathBuf },
    /// Prints status.json
    Status { root: PathBuf },
    /// Checks everything that the root keeps
    Verify { root: PathBuf },
    /// Tells which checkpoint each job would go on from, and which are passed over
    ResumeInfo { root: PathBuf },
    /// Makes a data file
    #[command(subcommand)]
    MakeData(DataKind),
    /// Measures steps on a random model
    Bench(BenchArgs),
    #[command(hide = true)]
    Worker {
        root: PathBuf,
        #[arg(long)]
        job: String,
        #[arg(long)]
        micro_batch: NonZeroUsize,
        #[arg(long)]
        device: DeviceRequest,
        #[arg(long)]
        parent: u32,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum DataKind {
    /// Sums to be learned
    Arithmetic {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 1000)]
        samples: u32,
        /// Bytes of a sample, about; 0: no longer than needed
        #[arg(long, default_value_t = 0)]
        length: usize,
        #[arg(long)]
        out: PathBuf,
    },
    /// A folder of texts
    Text {
        dir: PathBuf,
        /// Bytes of a sample at most
        #[arg(long, default_value_t = 512)]
        chunk: usize,
        #[arg(long)]
        out: PathBuf,
    },
}
