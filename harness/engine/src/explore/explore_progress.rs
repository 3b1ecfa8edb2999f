//! The progress of an exploration, as data. Decides nothing.

use super::record::{LargeTreeProgress, RecordingProgress};
use super::replay::ReplayProgress;
use super::warm_news::WarmNews;

/// The progress of an exploration.
#[derive(Debug, Clone)]
pub enum ExploreProgress {
    /// The baseline run has started.
    Recording,
    /// A watched directory is large.
    LargeTree(LargeTreeProgress),
    /// The baseline run is running.
    RecordingRuns(RecordingProgress),
    /// The baseline run has ended.
    Recorded {
        /// How many file operations it made.
        operations: usize,
        /// How many saves it acknowledged.
        saves: usize,
        /// Whether it was recorded earlier, and is only read now.
        is_kept: bool,
    },
    /// The distinct states are known.
    Enumerated {
        /// How many will be tried.
        states: usize,
    },
    /// The recoveries from undamaged files have begun.
    Controls,
    /// The recoveries from undamaged files have ended.
    ControlsEnded,
    /// How the recoveries will start, if it is not the usual way.
    WarmStart(WarmNews),
    /// One more state has been tried.
    Tried(ReplayProgress),
    /// A state fails in a way in which none has failed before. It is not confirmed yet. In words.
    FirstMet(String),
    /// The state of `--state` is at another place in this recording, where it has this name.
    StateMoved(String),
    /// The second crashes of one more recovery are explored.
    SecondCrash {
        /// Which recovery, from 1.
        number: usize,
        /// Of how many.
        count: usize,
        /// The first crash, in words.
        after: String,
    },
    /// All states have been tried; one of each finding is repeated.
    Confirming,
}
