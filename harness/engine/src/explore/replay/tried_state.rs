//! A crash state together with what its recovery did. Knows no causes.

use std::collections::BTreeMap;

use scenarios::{CrashCategory, Outcome};

use super::output_oracle::RecoveryResult;
use crate::explore::states::{CrashKind, CrashState};

/// A crash state that has been tried.
#[derive(Debug, Clone)]
pub struct TriedState {
    /// The state.
    pub state: CrashState,
    /// What the recovery did.
    pub result: RecoveryResult,
    /// The outcome under each kind of crash that can leave this state.
    pub outcomes: BTreeMap<CrashKind, Outcome>,
    /// What is wrong with one of several jobs then, in words.
    pub job_faults: BTreeMap<CrashKind, String>,
}

impl TriedState {
    /// Whether some crash that leaves this state is a finding.
    pub fn is_failing(&self) -> bool {
        self.outcomes.values().any(|outcome| !is_acceptable(*outcome))
    }

    /// The worst outcome in each category of crash.
    pub fn worst_outcomes(&self) -> BTreeMap<CrashCategory, Outcome> {
        let mut worst = BTreeMap::new();
        for (crash, outcome) in &self.outcomes {
            let worst_outcome = worst.entry(crash.category()).or_insert(*outcome);
            *worst_outcome = std::cmp::max_by_key(*worst_outcome, *outcome, |outcome| {
                (!is_acceptable(*outcome), *outcome)
            });
        }
        worst
    }
}

/// Whether an outcome is no finding. A documented refusal is acceptable, and so is what nothing could judge.
pub(crate) fn is_acceptable(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Recovered | Outcome::Refused | Outcome::NotJudged)
}
