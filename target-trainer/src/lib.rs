//! The reference trainer: a LoRA fine-tuning daemon and its worker process, which recover from common faults.
//! The crate must not know that a test harness exists.
//!
//! The modules from the bottom up: `durable` (the only code that writes files) and `device`; above them
//! `store`, `intake`, `model`, `optim`; then `train`; then `daemon`; then `cli`.

/// The command line. The only module that prints.
pub mod cli;
/// The daemon: accepts data files, runs one worker process at a time and restarts it after a failure.
pub mod daemon;
/// Numerical operations on the CPU and on CUDA GPUs, and the health of a GPU.
pub mod device;
/// The only code that writes files.
pub mod durable;
/// Exit codes.
pub mod exit;
/// Reads data files into samples.
pub mod intake;
/// Generates data to train on.
pub mod make_data;
/// The Llama decoder: a frozen base model with LoRA matrices.
pub mod model;
/// AdamW and gradient clipping.
pub mod optim;
mod random;
/// The settings of a trainer root.
pub mod settings;
/// Checkpoints, adapters and the directory layout of a trainer root.
pub mod store;
/// The training engine and the worker that runs it.
pub mod train;

#[cfg(not(target_os = "linux"))]
compile_error!("the reference trainer is for Linux: it uses cgroups, inotify and O_NOFOLLOW");
