//! The daemon as its users meet it: the built command, real files, signals and sockets. One program, so that the tests
//! of its modules run side by side.

#![expect(clippy::unwrap_used, reason = "a test fails at the first unexpected value")]

mod consolidation;
mod endurance;
mod intake;
mod intake_trouble;
mod lifecycle;
mod maintenance;
mod monitor;
mod names;
mod supervision;
#[path = "../support/trainer_root.rs"]
mod trainer_root;
mod without_guards;
