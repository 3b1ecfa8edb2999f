//! What shrinking and confirming a finding need: trying crash states again. The stages before this one do it.

use scenarios::Outcome;

use crate::explore::states::CrashCandidate;

/// How the recovery from a crash state failed.
pub(crate) struct KnownFailure {
    pub(crate) outcome: Outcome,
    /// The line that explains it; it may be empty.
    pub(crate) message: String,
}

/// Tries crash states again.
pub(crate) trait StateAttempts {
    /// The outcome of a candidate that may show `wanted` in a simpler way. `None`: it is not known.
    fn outcome_of(&mut self, candidate: &CrashCandidate, wanted: Outcome) -> Option<Outcome>;

    /// How the recovery from a candidate that was tried before failed. `None`: it is not known.
    fn failure_of(&mut self, candidate: &CrashCandidate) -> Option<KnownFailure>;

    /// Whether the recovery from a candidate is no finding. It is run whatever that may cost. `None`: it is not known.
    fn recovers(&mut self, candidate: &CrashCandidate) -> Option<bool>;

    /// The outcome of a candidate that exceeded its time limit, repeated alone with a longer one. `None`: it
    /// was not repeated.
    fn repeat_hung(&mut self, candidate: &CrashCandidate) -> Option<Outcome>;
}
