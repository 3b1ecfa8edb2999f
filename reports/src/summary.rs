//! The counts of a run. Knows nothing of how they are shown.

use scenarios::{Record, TrialTotals};

use crate::error::ReportError;
use crate::view::{self, RunView, ScenarioStatus};

/// Number of scenarios with one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusCount {
    /// The status, such as `survived`, `violated` or `caught`.
    pub label: &'static str,
    /// Number of scenarios.
    pub scenarios: usize,
    /// The status itself.
    pub(crate) status: ScenarioStatus,
}

/// The counts of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The worst status first. Only those that occur.
    pub counts: Vec<StatusCount>,
    /// Numbers of trials: tried, and left out.
    pub trials: TrialTotals,
    /// False if the record ends before the end of the run.
    pub finished: bool,
}

/// Counts the scenarios and trials of a record.
///
/// # Errors
///
/// If the record has no `run-started` event.
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
    let count = |status: ScenarioStatus| StatusCount {
        label: status.label(),
        status,
        scenarios: run.scenarios.iter().filter(|scenario| scenario.status() == status).count(),
    };
    Summary {
        counts: all.map(count).into_iter().filter(|count| count.scenarios > 0).collect(),
        trials: run.scenarios.iter().map(|scenario| &scenario.counts).collect(),
        finished: run.ended.is_some(),
    }
}
