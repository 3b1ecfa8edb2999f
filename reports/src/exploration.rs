//! What exploring the crash states of one command came to, as `explore --json` writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

/// Figures by kind of crash: `process`, `power`.
type ByCrash<T> = BTreeMap<String, T>;

/// Fields that a page does not show are left unread.
#[derive(Debug, Clone, Deserialize)]
pub struct Exploration {
    /// How many of each kind, such as `rename` -> 4.
    pub operations: BTreeMap<String, u64>,
    pub candidates: ByCrash<u64>,
    pub distinct: ByCrash<u64>,
    pub left_out: ByCrash<u64>,
    /// How many states came to `recovered`, `crashed` and so on.
    pub outcomes: ByCrash<BTreeMap<String, u64>>,
    pub findings: Vec<Finding>,
    /// A line each: `file ...` or `folder ...`.
    pub never_synced: Vec<String>,
    /// Paths that were written outside of the watched folders.
    pub outside: Vec<PathBuf>,
    /// States that were tried; several crashes may lead to one of them.
    pub tried: u64,
    pub seconds: f64,
    pub states_per_second: f64,
    /// The first crash, where this is about a second one.
    pub after: Option<String>,
    #[serde(default)]
    pub second: Vec<Exploration>,
}

/// Something that the command does not come back from.
#[derive(Debug, Clone, Deserialize)]
pub struct Finding {
    pub cause: String,
    pub outcome: String,
    /// Crashes under which it can happen.
    pub under: Vec<String>,
    pub states: u64,
    /// The two operations between which the promise breaks.
    pub between: [String; 2],
    pub operations: Vec<String>,
    pub difference: Vec<String>,
    /// What the recovery said last.
    pub error: String,
    pub advice: String,
    pub repeat: String,
}
