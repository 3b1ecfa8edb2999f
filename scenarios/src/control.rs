//! A control: a recovery from undamaged files, with which those from crash states are compared. Knows nothing of
//! how it is run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::verdict::Outcome;

/// What a recovery from undamaged files did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Which files.
    pub files: ControlFiles,
    /// What the target did.
    pub outcome: Outcome,
    /// The name of the state of these files. `--state` takes it.
    pub state: String,
}

/// Undamaged files of the recorded run: everything that was written by then is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlFiles {
    /// Those at the moment at which a save was acknowledged.
    Saved {
        /// The acknowledged step.
        step: u64,
    },
    /// Those at the end of the run.
    Finished,
}

impl fmt::Display for ControlFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlFiles::Saved { step } => write!(f, "the files when step {step} was acknowledged"),
            ControlFiles::Finished => f.write_str("the files of the finished run"),
        }
    }
}
