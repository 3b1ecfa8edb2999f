//! What the test programs of the command share: trials, what they need of the machine, running the command,
//! and small targets. Must not know any test.

pub(crate) mod c_target;
pub(crate) mod call_programs;
pub(crate) mod command;
pub(crate) mod file_tree;
pub(crate) mod leftovers;
pub(crate) mod machine;
pub(crate) mod ordinary_user;
pub(crate) mod program_files;
pub(crate) mod scenario_run;
pub(crate) mod seeded_random;
pub(crate) mod small_target;
pub(crate) mod sys;
pub(crate) mod tree_snapshot;
#[macro_use]
#[path = "../../../target-trainer/tests/support/trial.rs"]
pub(crate) mod trial;
pub(crate) mod user_tree;
pub(crate) mod watched_sandbox;
