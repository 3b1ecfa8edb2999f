//! The third stage: materializes crash states, runs the recovery on each, and judges what it did. Does not
//! know why a recovery fails, nor how that is shown.

mod file_pool;
mod linked_names;
mod materialize;
#[cfg(test)]
mod materialize_cases;
mod output_oracle;
mod python_command;
mod python_fork_server;
mod recorded_jobs;
mod recovery_worker;
mod replay_spec;
mod replayer;
mod small_file_cache;
mod standing_tree;
#[cfg(test)]
mod standing_tree_cases;
mod tried_control;
mod tried_state;

pub use materialize::{MaterializePlace, materialize};
pub use output_oracle::{BaselineValues, ConsumedStep, JudgeSpec, OutputOracle, RecoveryResult};
pub use python_fork_server::{ForkedPython, ImportNotes, ServerImports};
pub(super) use recovery_worker::{
    CompletedRecovery, NotedRecovery, RecoveryLimit, RecoveryStart, RecoveryWorker, WorkerName,
};
pub use replay_spec::{ReplaySpec, WarmStart};
pub use replayer::ReplayProgress;
pub(super) use replayer::{Replayer, TriedReports};
pub(super) use tried_control::{ResumeDifference, TriedControl};
pub use tried_state::TriedState;
pub(super) use tried_state::is_acceptable;
