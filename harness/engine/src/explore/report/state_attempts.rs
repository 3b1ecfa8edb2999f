//! What explaining and confirming a finding need: the results that are known, and trying crash states again. The stages
//! before this one do it.

use scenarios::{Confirmation, Outcome};

use crate::explore::states::CrashCandidate;

/// How the recovery from a crash state failed.
pub(crate) struct KnownFailure {
    pub(crate) outcome: Outcome,
    /// The line that explains it; it may be empty.
    pub(crate) message: String,
}

/// Tries crash states again.
pub(crate) trait StateAttempts {
    /// The outcome of a candidate. `None`: no state with its files was tried.
    fn known_outcome(&mut self, candidate: &CrashCandidate) -> Option<Outcome>;

    /// The outcome of a candidate that may show `wanted` in a simpler way: it is run if no state with its files was
    /// tried. `None`: it is not known.
    fn outcome_of(&mut self, candidate: &CrashCandidate, wanted: Outcome) -> Option<Outcome>;

    /// Whether nothing more is to be tried.
    fn cancelled(&self) -> fn() -> bool;

    /// How the recovery from a candidate that was tried before failed. `None`: it is not known.
    fn failure_of(&mut self, candidate: &CrashCandidate) -> Option<KnownFailure>;

    /// Whether the recovery from a candidate is no finding. It is run whatever that may cost. `None`: it is not known.
    fn recovers(&mut self, candidate: &CrashCandidate) -> Option<bool>;

    /// Runs the recovery from a candidate with this outcome again, alone. `None`: it was not run.
    fn confirm(&mut self, candidate: &CrashCandidate, outcome: Outcome) -> Option<Confirmation>;
}
