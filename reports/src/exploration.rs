//! The result of exploring the crash states of one command, as `explore --json` writes it. Knows nothing of
//! how it is shown.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// A value for each kind of crash: `process`, `power`.
type ByCrash<T> = BTreeMap<String, T>;

/// The result of an exploration. Has only those fields that a page shows.
#[derive(Debug, Clone, Deserialize)]
pub struct Exploration {
    /// Number of recorded operations of each kind, such as `rename` -> 4.
    pub operations: BTreeMap<String, u64>,
    /// Number of crash states that the file-system models allow.
    pub candidates: ByCrash<u64>,
    /// Number of different file trees among the candidates.
    pub distinct: ByCrash<u64>,
    /// Number of crash points, candidates and states that a bound left out.
    pub left_out: ByCrash<u64>,
    /// Number of states with each outcome, such as `recovered`.
    pub outcomes: ByCrash<BTreeMap<String, u64>>,
    /// One for each cause.
    pub findings: Vec<Finding>,
    /// Files and directories that were not synced before a save was acknowledged, or never; one line each.
    pub never_synced: Vec<String>,
    /// Paths outside the recorded directories that were written.
    pub outside: Vec<PathBuf>,
    /// Number of states that were tried. Several crashes can leave the same state.
    pub tried: u64,
    /// Wall-clock time of the exploration.
    pub seconds: f64,
    /// Number of states that were tried per second.
    pub states_per_second: f64,
    /// The first crash, if these are the states of a second one.
    pub after: Option<String>,
    /// The explorations of second crashes.
    #[serde(default)]
    pub second: Vec<Exploration>,
}

/// Crash states with one cause from which the command does not recover.
#[derive(Debug, Clone, Deserialize)]
pub struct Finding {
    /// Id of the cause, such as `no-fsync-before-rename`.
    pub cause: String,
    /// What the command did with the states.
    pub outcome: String,
    /// Crash models that allow the states.
    pub under: Vec<String>,
    /// Number of states.
    pub states: u64,
    /// The two operations between which the crash falls, or whose order was not kept.
    pub between: [String; 2],
    /// The shortest sequence of operations that shows the cause, one line each.
    pub operations: Vec<String>,
    /// Files that differ from the tree before the crash, one line each.
    pub difference: Vec<String>,
    /// The last output of the recovery.
    pub error: String,
    /// What to change in the trainer.
    pub advice: String,
    /// The command that repeats one of the states.
    pub repeat: String,
}
