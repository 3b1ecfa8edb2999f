//! Counts, for whoever only wants to know how it went.

use scenarios::Record;

use crate::ReportError;
use crate::view::{self, Mark, Run};

/// How many scenarios ended in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// `survived`, `violated`, `guard noticed`, ...
    pub word: &'static str,
    pub scenarios: usize,
}

/// A run in a few numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The worst first; only those that occur.
    pub counts: Vec<Count>,
    pub trials: usize,
    /// False: the run was cut off.
    pub finished: bool,
}

/// Counts a record.
pub fn summary(record: &Record) -> Result<Summary, ReportError> {
    Ok(of(&view::run(record)?))
}

pub(crate) fn of(run: &Run<'_>) -> Summary {
    let all = [
        Mark::Violated,
        Mark::NotNoticed,
        Mark::Inconclusive,
        Mark::Unfinished,
        Mark::Skipped,
        Mark::Noticed,
        Mark::Survived,
    ];
    let count = |mark: Mark| Count {
        word: mark.word(),
        scenarios: run.scenarios.iter().filter(|one| one.mark() == mark).count(),
    };
    Summary {
        counts: all.map(count).into_iter().filter(|count| count.scenarios > 0).collect(),
        trials: run.scenarios.iter().map(|one| one.trials.len()).sum(),
        finished: run.ended.is_some(),
    }
}
