//! The reference trainer: a LoRA fine-tuning daemon and its worker, which survives what a trainer meets.
//!
//! It knows nothing of any harness. Rooms, from the ground up: `durable` (the only code that writes files) and
//! `device`; above them `store`, `intake`, `model`, `optim`; then `train`; then `daemon`; then `cli`.

pub mod cli;
pub mod daemon;
pub mod device;
pub mod durable;
pub mod exit;
pub mod intake;
pub mod make_data;
pub mod model;
pub mod optim;
mod random;
pub mod settings;
pub mod store;
pub mod train;

#[cfg(not(target_os = "linux"))]
compile_error!("the reference trainer is for Linux: it speaks of cgroups, inotify and O_NOFOLLOW");
