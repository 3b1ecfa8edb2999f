//! What limits what an exploration shows, because of how its recorded run or its recoveries went, with the one
//! text for people. Knows nothing of how it was seen.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::trials_planned::grouped;

/// Something about the recorded run or the recoveries that the reader of a result has to know. Its text is its
/// `Display`.
///
/// Paths are as the target names them. Bytes that are not UTF-8 are replaced, so that a report can hold them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExplorationNote {
    /// Files changed without a call that could be followed, and the user has accepted that.
    Unfollowed {
        /// The path that the user has named.
        path: String,
        /// How many differences there are at this path and below it.
        count: u64,
        /// The first of them, in words.
        first: String,
    },
    /// The user has named a path where every change was followed.
    UnfollowedNotNeeded {
        /// The path that the user has named.
        path: String,
    },
    /// Calls that could not be followed were let through.
    UnfollowedCalls {
        /// How many.
        count: u64,
        /// Why the first of them could not be followed.
        first: String,
    },
    /// Processes of the recorded run were still running when the wait for them was over. They were ended.
    StillRunning {
        /// How many there were.
        count: u64,
        /// The names of their programs, each once, up to a bound.
        programs: Vec<String>,
        /// How long after the end of the main process they were ended.
        seconds: u64,
        /// Whether watched files were changed after the main process had ended.
        saving: bool,
    },
    /// Several lines that acknowledge saves arrived together, so the saves themselves were earlier.
    BufferedOutput {
        /// How many such lines arrived together with others.
        lines: u64,
    },
    /// The kept recording that was used is of another command, or of other options of a target.
    RecordingOfOther {
        /// The recorded command.
        command: String,
    },
    /// Processes of recoveries were still running after their main processes. They were ended.
    RecoveriesCutOff {
        /// How many recoveries left processes.
        count: u64,
        /// How many recoveries there were.
        recoveries: u64,
    },
}

impl ExplorationNote {
    /// Whether the result could be better than the truth, so that it is not a success.
    pub fn weakens_result(&self) -> bool {
        match self {
            ExplorationNote::Unfollowed { .. }
            | ExplorationNote::UnfollowedCalls { .. }
            | ExplorationNote::BufferedOutput { .. } => true,
            ExplorationNote::StillRunning { saving, .. } => *saving,
            ExplorationNote::UnfollowedNotNeeded { .. }
            | ExplorationNote::RecordingOfOther { .. }
            | ExplorationNote::RecoveriesCutOff { .. } => false,
        }
    }
}

const STILL_SAVING: &str = "Watched files were changed in this time, so the last save may be incomplete; let the \
     command wait for its processes";
const STILL_IDLE: &str =
    "No watched file was changed in this time; if they save later, let the command wait for them";

impl fmt::Display for ExplorationNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExplorationNote::Unfollowed { path, count, first } => write!(
                f,
                "accepted by `--unfollowed {path}`: {} there without a call that could be followed, the first: \
                 {first}; crash states have these files as the recorded calls left them",
                counted(*count, "change", "changes")
            ),
            ExplorationNote::UnfollowedNotNeeded { path } => {
                write!(f, "`--unfollowed {path}` was not needed: every change there was followed")
            }
            ExplorationNote::UnfollowedCalls { count, first } => write!(
                f,
                "accepted by `--unfollowed`: {} could not be followed, the first because {first}; what they \
                 did is in no crash state",
                counted(*count, "call", "calls")
            ),
            ExplorationNote::StillRunning { count, programs, seconds, saving } => {
                let names: Vec<String> = programs.iter().map(|name| format!("`{name}`")).collect();
                write!(
                    f,
                    "{} of the recorded run still ran {seconds} s after its main process had ended, and the \
                     recording ends there: {}. {}",
                    counted(*count, "process", "processes"),
                    names.join(", "),
                    if *saving { STILL_SAVING } else { STILL_IDLE }
                )
            }
            ExplorationNote::RecordingOfOther { command } => write!(
                f,
                "the recording is of another command, `{command}`, which was not run again: changes of how it saves \
                 were not tried"
            ),
            ExplorationNote::BufferedOutput { lines } => write!(
                f,
                "the trainer's output is buffered: {} that match the pattern of a save arrived together with \
                 others, later than the saves. Until then no crash state counts these saves as acknowledged, so \
                 lost work is not noticed there; flush the output after each such line",
                counted(*lines, "line", "lines")
            ),
            ExplorationNote::RecoveriesCutOff { count, recoveries } => write!(
                f,
                "{} of {} recoveries left processes that were still running after the main process. They were \
                 ended then, and what they would have done is not judged",
                grouped(*count),
                grouped(*recoveries)
            ),
        }
    }
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes() -> [ExplorationNote; 7] {
        let running = |saving| ExplorationNote::StillRunning {
            count: 2,
            programs: vec!["sh".into(), "python3".into()],
            seconds: 12,
            saving,
        };
        let (path, first) = ("runs/cache".to_owned(), "`a` was created".to_owned());
        [
            ExplorationNote::Unfollowed { path: path.clone(), count: 1, first: first.clone() },
            ExplorationNote::UnfollowedCalls { count: 2, first },
            running(true),
            ExplorationNote::BufferedOutput { lines: 3 },
            running(false),
            ExplorationNote::UnfollowedNotNeeded { path },
            ExplorationNote::RecoveriesCutOff { count: 4, recoveries: 1000 },
        ]
    }

    #[test]
    fn what_may_hide_something_weakens_the_result() {
        assert_eq!(notes().map(|note| note.weakens_result()), [true, true, true, true, false, false, false]);
    }

    #[test]
    fn each_note_says_what_and_how_many() {
        let texts = notes().map(|note| note.to_string());
        let parts = [
            "`--unfollowed runs/cache`: 1 change there",
            "2 calls could not be followed",
            "2 processes of the recorded run still ran 12 s after its main process had ended",
            "3 lines that match",
            "`sh`, `python3`. No watched file was changed",
            "`--unfollowed runs/cache` was not needed",
            "4 of 1,000 recoveries",
        ];
        for (text, part) in texts.iter().zip(parts) {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_note_is_read_back_from_json() {
        for note in notes() {
            let json = serde_json::to_string(&note).unwrap();
            assert_eq!(serde_json::from_str::<ExplorationNote>(&json).unwrap(), note);
        }
    }
}
