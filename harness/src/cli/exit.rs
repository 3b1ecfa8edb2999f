//! How the command ends. One enum; the numbers are the documented ones.

use std::process::ExitCode;

use scenarios::Verdict;

/// An ending, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Exit {
    /// Everything survived (or was skipped, and said so); with `prove`: every guard was noticed.
    Survived,
    /// Something was violated; with `prove`: a guard's absence was not noticed.
    Violated,
    /// Something is not known: a fault never landed, or a steady state failed.
    Inconclusive,
    /// Invalid scenario or arguments.
    Invalid,
    /// The harness could not do its work.
    HarnessFailed,
    /// Something of a run could not be cleaned up.
    CleanUpFailed,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Survived => 0,
            Exit::Violated => 1,
            Exit::Invalid => 2,
            Exit::Inconclusive => 3,
            Exit::HarnessFailed => 4,
            Exit::CleanUpFailed => 5,
        }
    }

    /// What one verdict asks for. A violation is worse news than not knowing, so it wins.
    pub(crate) fn of_verdict(verdict: &Verdict) -> Exit {
        match verdict {
            Verdict::Survived | Verdict::Skipped { .. } => Exit::Survived,
            Verdict::Violated { .. } => Exit::Violated,
            Verdict::Inconclusive { .. } => Exit::Inconclusive,
        }
    }

    /// The ending of several: known violations first, then what is not known.
    pub(crate) fn of_all(exits: impl IntoIterator<Item = Exit>) -> Exit {
        let rank = |exit: &Exit| match exit {
            Exit::Survived => 0,
            Exit::Inconclusive => 1,
            Exit::Violated => 2,
            Exit::Invalid => 3,
            Exit::HarnessFailed => 4,
            Exit::CleanUpFailed => 5,
        };
        exits.into_iter().max_by_key(rank).unwrap_or(Exit::Survived)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::Exit;

    #[test]
    fn a_violation_outweighs_what_is_not_known_and_a_failed_harness_outweighs_both() {
        assert_eq!(Exit::of_all([Exit::Inconclusive, Exit::Violated, Exit::Survived]), Exit::Violated);
        assert_eq!(Exit::of_all([Exit::Violated, Exit::HarnessFailed]), Exit::HarnessFailed);
        assert_eq!(Exit::of_all([]), Exit::Survived);
    }
}
