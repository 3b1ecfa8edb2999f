//! How the command ends: one enum for the documented exit codes. Knows nothing of what was printed.

use std::process::ExitCode;

use scenarios::Verdict;

/// Why the command ends. Each reason has its own exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommandExit {
    /// Everything survived or was reported as skipped. With `ablate`: the removal of every guard was caught.
    Success,
    /// A scenario was violated, or `explore` has a finding. With `ablate`: the removal of a guard was missed.
    Violation,
    /// Nothing can be concluded: a fault did not take effect, or a baseline run failed.
    Inconclusive,
    /// Invalid scenario or arguments.
    InvalidInput,
    /// The harness could not do its work.
    HarnessFailed,
    /// A part of a run could not be removed.
    CleanUpFailed,
}

impl CommandExit {
    /// The documented exit code.
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

    /// The exit for one scenario's verdict in an ordinary run.
    pub(crate) fn from_verdict(verdict: &Verdict) -> CommandExit {
        match verdict {
            Verdict::Survived | Verdict::Skipped { .. } => CommandExit::Success,
            Verdict::Violated { .. } => CommandExit::Violation,
            Verdict::Inconclusive { .. } => CommandExit::Inconclusive,
        }
    }

    /// The exit for several results. A violation outranks an inconclusive result, because it is certain.
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
