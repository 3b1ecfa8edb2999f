//! How the command ends. One enum; the numbers are the documented ones.

use std::process::ExitCode;

use scenarios::Verdict;

/// An ending, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandExit {
    /// Everything survived (or was skipped, and said so); with `prove`: every guard was noticed.
    Success,
    /// Something was violated; with `prove`: a guard's absence was not noticed.
    Violation,
    /// Something is not known: a fault never landed, or a steady state failed.
    Inconclusive,
    /// Invalid scenario or arguments.
    InvalidInput,
    /// The harness could not do its work.
    HarnessFailed,
    /// Something of a run could not be cleaned up.
    CleanUpFailed,
}

impl CommandExit {
    pub(crate) fn code(self) -> u8 {
        match self {
            CommandExit::Success => 0,
            CommandExit::Violation => 1,
            CommandExit::InvalidInput => 2,
            CommandExit::Inconclusive => 3,
            CommandExit::HarnessFailed => 4,
            CommandExit::CleanUpFailed => 5,
        }
    }

    /// What one verdict asks for. A violation is worse news than not knowing, so it wins.
    pub(crate) fn from_verdict(verdict: &Verdict) -> CommandExit {
        match verdict {
            Verdict::Survived | Verdict::Skipped { .. } => CommandExit::Success,
            Verdict::Violated { .. } => CommandExit::Violation,
            Verdict::Inconclusive { .. } => CommandExit::Inconclusive,
        }
    }

    /// The ending of several: known violations first, then what is not known.
    pub(crate) fn worst(exits: impl IntoIterator<Item = CommandExit>) -> CommandExit {
        let rank = |exit: &CommandExit| match exit {
            CommandExit::Success => 0,
            CommandExit::Inconclusive => 1,
            CommandExit::Violation => 2,
            CommandExit::InvalidInput => 3,
            CommandExit::HarnessFailed => 4,
            CommandExit::CleanUpFailed => 5,
        };
        exits.into_iter().max_by_key(rank).unwrap_or(CommandExit::Success)
    }
}

impl From<CommandExit> for ExitCode {
    fn from(exit: CommandExit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::CommandExit;

    #[test]
    fn a_violation_outranks_inconclusive_and_a_harness_failure_outranks_both() {
        assert_eq!(
            CommandExit::worst([CommandExit::Inconclusive, CommandExit::Violation, CommandExit::Success]),
            CommandExit::Violation
        );
        assert_eq!(
            CommandExit::worst([CommandExit::Violation, CommandExit::HarnessFailed]),
            CommandExit::HarnessFailed
        );
        assert_eq!(CommandExit::worst([]), CommandExit::Success);
    }
}
