//! The reference trainer: a LoRA fine-tuning daemon and its worker process, which recover from common faults.
//! The crate must not know that a test harness exists.
//!
//! The modules from the bottom up; each imports only from those below it, and `harness/tests/architecture.rs`
//! holds the table of what each may import:
//!
//! | module | holds |
//! |---|---|
//! | `exit`, `locks`, `random` | exit codes, locks, random numbers |
//! | `denial`, `file_error` | who may have denied an access; file errors |
//! | `local_time`, `day_logs` | the local date; log files by day |
//! | `progress`, `bounded_read` | what a heartbeat counts; reads that never hang |
//! | `plain_text`, `names` | texts from outside, safe to print; names of files that come from outside |
//! | `durable`, `device` | the only code that writes files; operations on tensors |
//! | `state` | recipe, projections, train state, cursor |
//! | `settings`, `make_data` | the settings of a root; data to train on |
//! | `health` | whether the machine swaps, and how near its limits are |
//! | `store`, `intake`, `optim` | checkpoints; samples; AdamW |
//! | `submission` | data that gets into the inbox |
//! | `model` | the decoder, which takes samples and is stored as tensors |
//! | `train` | the engine and the worker |
//! | `consolidate` | merges finished adapters |
//! | `monitor` | a page, metrics and a door for jobs, over HTTP |
//! | `daemon` | the queue and the worker processes |
//! | `cli` | the command line |

mod bounded_read;
/// The command line. The only module that prints.
pub mod cli;
/// Merges finished adapters into the base model.
pub mod consolidate;
/// The daemon: accepts data files, runs one worker process at a time and restarts it after a failure.
pub mod daemon;
/// Log files by day.
pub mod day_logs;
mod denial;
/// Numerical operations on the CPU and on CUDA GPUs, and the health of a GPU.
pub mod device;
/// The only code that writes files.
pub mod durable;
/// Exit codes.
pub mod exit;
/// The error of one file operation.
pub mod file_error;
/// The health of the machine: memory, file systems and limits.
pub mod health;
/// Reads data files into samples.
pub mod intake;
/// The local date and time of day.
pub mod local_time;
mod locks;
/// Generates data to train on.
pub mod make_data;
/// The Llama decoder: a frozen base model with LoRA matrices.
pub mod model;
/// A page for people, metrics for Prometheus and a door for jobs, over HTTP.
pub mod monitor;
/// Names of files that come from outside.
pub mod names;
/// AdamW and gradient clipping.
pub mod optim;
/// Texts from outside, safe to print.
pub mod plain_text;
/// What this process gets done.
pub mod progress;
mod random;
/// The settings of a trainer root.
pub mod settings;
/// Recipe, projections, train state and cursor: what a run is and how far it has come.
pub mod state;
/// Checkpoints, adapters and the directory layout of a trainer root.
pub mod store;
/// Copies data into the inbox.
pub mod submission;
/// The training engine and the worker that runs it.
pub mod train;

#[cfg(not(target_os = "linux"))]
compile_error!("the reference trainer is for Linux: it uses cgroups, inotify and O_NOFOLLOW");
