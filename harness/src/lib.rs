//! The engine: builds a room, runs a trainer in it, breaks it, and judges what it does then.
//!
//! From the ground up: `sandbox`, `gate`, `judge`, `observe` know none of their neighbours; above them `explore`, `plan`,
//! `target`, `gpu` and `faults`; then `run`; then `cli`, the only room that prints.

pub mod cli;
pub mod explore;
pub mod faults;
pub mod gate;
pub mod gpu;
pub mod judge;
pub mod observe;
pub mod plan;
pub mod run;
pub mod sandbox;
pub mod target;

#[cfg(not(target_os = "linux"))]
compile_error!("trainwreck needs Linux: namespaces, cgroups and inotify are what its faults are made of");
