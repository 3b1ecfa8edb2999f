//! How the target was started in the trials of a scenario, where there is a choice. Compares nothing.

use std::fmt::{Display, Formatter};

use serde::{Deserialize, Serialize};

use crate::trials_planned::grouped;

/// How the target was started in the trials of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrialStarts {
    /// By forking a Python interpreter that had imported the libraries.
    Forked {
        /// In how many trials.
        trials: u64,
        /// How many of them were also run with new processes, which did the same.
        compared: u64,
    },
    /// As a new process, although a forked one would be faster.
    NewProcesses {
        /// Why.
        why: String,
        /// How many trials were run with forked processes before. Their results are discarded.
        discarded: u64,
    },
}

impl Display for TrialStarts {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            TrialStarts::Forked { trials, compared } => {
                let noun = if *trials == 1 { "trial" } else { "trials" };
                let (compared, trials) = (grouped(*compared), grouped(*trials));
                write!(
                    f,
                    "warm start: {compared} of {trials} {noun} were also run with new processes, with the same result"
                )
            }
            TrialStarts::NewProcesses { why, discarded } => {
                write!(f, "the target is a new process in each trial, because {why}")?;
                match discarded {
                    0 => Ok(()),
                    1 => f.write_str("; the trial that was run with forked processes is run again"),
                    count => write!(
                        f,
                        "; the {} trials that were run with forked processes are run again",
                        grouped(*count)
                    ),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TrialStarts;

    #[test]
    fn the_line_says_how_many_trials_were_also_run_with_new_processes() {
        let line = TrialStarts::Forked { trials: 1340, compared: 12 }.to_string();
        let expected =
            "warm start: 12 of 1,340 trials were also run with new processes, with the same result";
        assert_eq!(line, expected);
        let line = TrialStarts::NewProcesses { why: "it differs".into(), discarded: 2 }.to_string();
        let expected = "the target is a new process in each trial, because it differs; the 2 trials that were run \
                        with forked processes are run again";
        assert_eq!(line, expected);
    }
}
