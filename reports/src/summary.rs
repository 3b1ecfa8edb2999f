//! Counts, for whoever only wants to know how it went.

use scenarios::Record;

use crate::ReportError;
use crate::view::{self, RunView, ScenarioStatus};

/// How many scenarios ended in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusCount {
    /// `survived`, `violated`, `guard noticed`, ...
    pub label: &'static str,
    pub scenarios: usize,
}

/// A run in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The worst first; only those that occur.
    pub counts: Vec<StatusCount>,
    pub trials: usize,
    /// False: the run was cut off.
    pub finished: bool,
}

/// Counts a record.
pub fn summary(record: &Record) -> Result<Summary, ReportError> {
    Ok(summarize(&view::run_view(record)?))
}

pub(crate) fn summarize(run: &RunView<'_>) -> Summary {
    let all = [
        ScenarioStatus::Violated,
        ScenarioStatus::Missed,
        ScenarioStatus::Inconclusive,
        ScenarioStatus::Unfinished,
        ScenarioStatus::Skipped,
        ScenarioStatus::Caught,
        ScenarioStatus::Survived,
    ];
    let count = |mark: ScenarioStatus| StatusCount {
        label: mark.label(),
        scenarios: run.scenarios.iter().filter(|one| one.status() == mark).count(),
    };
    Summary {
        counts: all.map(count).into_iter().filter(|count| count.scenarios > 0).collect(),
        trials: run.scenarios.iter().map(|one| one.trials.len()).sum(),
        finished: run.ended.is_some(),
    }
}
