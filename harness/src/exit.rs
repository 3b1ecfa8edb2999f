//! How the command ends: one enum for the documented exit codes, and which of several counts. Knows nothing
//! of what was printed.

use std::process::ExitCode;

use scenarios::Verdict;

/// Why the command ends. Each reason has its own exit code, listed here, in `--help` and in the README:
///
/// | code | meaning |
/// |---|---|
/// | 0 | at least one trial or crash state was judged, and nothing is wrong |
/// | 1 | a scenario was violated, `explore` has a finding, or `ablate` missed a guard |
/// | 2 | invalid scenario, target file or arguments, or a missing program |
/// | 3 | nothing to rely on: inconclusive, everything skipped, or a scenario that must not be skipped was |
/// | 4 | the harness failed |
/// | 5 | clean-up failed |
/// | 130 | interrupted by SIGINT or SIGTERM; what was known by then is reported |
///
/// Several at once: the first of 2, 4, 130, 1, 5, 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CommandExit {
    /// Something was judged, and nothing is wrong. With `ablate`: the removal of every guard was caught.
    Success,
    /// A scenario was violated, or `explore` has a finding. With `ablate`: the removal of a guard was missed.
    Violation,
    /// Nothing can be concluded: a fault did not take effect, a baseline run failed, or nothing ran.
    Inconclusive,
    /// Invalid scenario, target file or arguments, or a missing program.
    InvalidInput,
    /// The harness could not do its work.
    HarnessFailed,
    /// A part of a run could not be removed.
    CleanUpFailed,
    /// SIGINT or SIGTERM arrived before the end.
    Interrupted,
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
            CommandExit::Interrupted => 130,
        }
    }

    /// The exit for one scenario's verdict in an ordinary run. `None`: the scenario was skipped.
    pub(crate) fn from_verdict(verdict: &Verdict) -> Option<CommandExit> {
        match verdict {
            Verdict::Survived => Some(CommandExit::Success),
            Verdict::Violated { .. } => Some(CommandExit::Violation),
            Verdict::Inconclusive { .. } => Some(CommandExit::Inconclusive),
            Verdict::Skipped { .. } => None,
        }
    }

    /// The exit for one scenario's verdict without a guard: a violation is the good result, and survival is
    /// the bad one.
    pub(crate) fn from_ablation(verdict: &Verdict) -> Option<CommandExit> {
        CommandExit::from_verdict(verdict).map(|exit| match exit {
            CommandExit::Success => CommandExit::Violation,
            CommandExit::Violation => CommandExit::Success,
            other => other,
        })
    }

    /// The exit for several results. Without any result it is [`CommandExit::Inconclusive`], because nothing
    /// was judged.
    pub(crate) fn worst(exits: impl IntoIterator<Item = CommandExit>) -> CommandExit {
        exits.into_iter().max_by_key(|exit| exit.rank()).unwrap_or(CommandExit::Inconclusive)
    }

    /// Which of several exits counts: the one with the highest rank.
    fn rank(self) -> u8 {
        match self {
            CommandExit::Success => 0,
            CommandExit::Inconclusive => 1,
            CommandExit::CleanUpFailed => 2,
            CommandExit::Violation => 3,
            CommandExit::Interrupted => 4,
            CommandExit::HarnessFailed => 5,
            CommandExit::InvalidInput => 6,
        }
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

    /// All exits, in the order in which the first one of several counts.
    const BY_PRECEDENCE: [CommandExit; 7] = [
        CommandExit::InvalidInput,
        CommandExit::HarnessFailed,
        CommandExit::Interrupted,
        CommandExit::Violation,
        CommandExit::CleanUpFailed,
        CommandExit::Inconclusive,
        CommandExit::Success,
    ];

    #[test]
    fn of_two_or_three_exits_the_first_of_2_4_130_1_5_3_counts() {
        assert_eq!(BY_PRECEDENCE.map(CommandExit::code), [2, 4, 130, 1, 5, 3, 0]);
        let indices = 0..BY_PRECEDENCE.len();
        for a in indices.clone() {
            for b in indices.clone() {
                assert_eq!(CommandExit::worst([a, b].map(|i| BY_PRECEDENCE[i])), BY_PRECEDENCE[a.min(b)]);
                for c in indices.clone() {
                    let worst = CommandExit::worst([a, b, c].map(|i| BY_PRECEDENCE[i]));
                    assert_eq!(worst, BY_PRECEDENCE[a.min(b).min(c)]);
                }
            }
        }
    }

    #[test]
    fn without_any_result_nothing_was_judged() {
        assert_eq!(CommandExit::worst([]), CommandExit::Inconclusive);
    }
}
