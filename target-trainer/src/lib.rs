//! The reference trainer: a LoRA fine-tuning daemon and its worker, which survives what a trainer meets.
//!
//! It knows nothing of any harness. Rooms, from the ground up: `durable` (the only code that writes files) and
//! `device`; above them `store`, `intake`, `model`, `optim`; then `train`; then `daemon`; then `cli`.

pub mod intake;
pub mod train;
