//! A finding: crash states from which a target does not recover, why, and what shows it. Knows nothing of how
//! states are found, tried or shown.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::effect::CrashModel;
use crate::verdict::Outcome;

/// Crash states with one cause from which the target does not recover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Why the states fail.
    pub cause: Cause,
    /// What the target did with the states.
    pub outcome: Outcome,
    /// Where the states can occur. Sorted by name.
    pub under: Vec<CrashModel>,
    /// Number of distinct states.
    pub states: u64,
    /// What the target did when one state was repeated alone, with three times the time limit. Only hung states
    /// are repeated. `None`: it was not repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<Outcome>,
    /// The two operations between which the crash falls, or whose order was not kept.
    pub between: [String; 2],
    /// The shortest sequence of operations that shows the cause.
    pub operations: Vec<OperationLine>,
    /// Files that differ from the tree before the crash, one line each.
    pub difference: Vec<String>,
    /// The line of the recovery's output that explains the failure; it may be empty.
    pub error: String,
    /// What to change in the trainer.
    pub advice: String,
    /// The name of the smallest state that shows the cause. `--state` takes it.
    pub state: String,
    /// The command that tries this state alone.
    pub repeat: String,
}

impl Finding {
    /// Whether the outcome is certain. A recovery that exceeds its time limit may be slow because the machine
    /// is busy: it is certain to hang only if it also exceeds three times the limit, alone.
    pub fn is_confirmed(&self) -> bool {
        self.outcome != Outcome::Hung || self.repeated == Some(Outcome::Hung)
    }

    /// Why the finding is not confirmed, and what to do. `None`: it is confirmed.
    pub fn doubt(&self) -> Option<String> {
        match self.repeated {
            _ if self.is_confirmed() => None,
            Some(outcome) => Some(format!(
                "not confirmed: with three times the time limit the recovery ended, and its outcome was \
                 {outcome}; try again with a longer --timeout"
            )),
            None => Some(
                "not confirmed: it was not repeated with three times the time limit; try this state again"
                    .into(),
            ),
        }
    }
}

/// One operation that leads to a crash state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationLine {
    /// The line as it is shown: the operation's number, the operation, and what happened to it.
    pub text: String,
    /// What happened to it.
    pub fate: Fate,
}

/// What became of an operation in a crash state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It happened in full.
    Happened,
    /// It did not reach the disk.
    Lost,
    /// One of its two name changes did not reach the disk.
    HalfLost,
    /// Its length reached the disk, but its bytes did not.
    Zeroes,
    /// It reached the disk in part.
    Torn,
    /// The line stands for operations that the list leaves out.
    Omitted,
}

impl Fate {
    /// Whether the crash changed the operation.
    pub fn is_damaged(self) -> bool {
        matches!(self, Fate::Lost | Fate::HalfLost | Fate::Zeroes | Fate::Torn)
    }
}

/// Why the states of a finding fail: a known pattern of a save that is not crash-safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A file is changed under its final name.
    WrittenInPlace,
    /// The old checkpoint is deleted before the new one is complete.
    OldDeletedFirst,
    /// A small file that names the newest checkpoint is changed before that checkpoint exists.
    MarkerBeforeData,
    /// A list of files is complete before the files are, so that an unfinished checkpoint is resumed from.
    UnfinishedDirectoryTaken,
    /// The files of one checkpoint are replaced one after the other, so that they can come from two saves.
    MixedSaves,
    /// A rename reached the disk, but the bytes of the renamed file did not.
    NoFsyncBeforeRename,
    /// A save was acknowledged before its bytes were synced.
    AcknowledgedTooEarly,
    /// The bytes of a file reached the disk, but its name did not.
    DirectoryNotSynced,
    /// A later change reached the disk before an earlier one that it depends on.
    OrderNotEnforced,
    /// None of the above.
    Other,
}

impl Cause {
    /// All causes.
    pub const ALL: [Cause; 10] = [
        Cause::WrittenInPlace,
        Cause::OldDeletedFirst,
        Cause::MarkerBeforeData,
        Cause::UnfinishedDirectoryTaken,
        Cause::MixedSaves,
        Cause::NoFsyncBeforeRename,
        Cause::AcknowledgedTooEarly,
        Cause::DirectoryNotSynced,
        Cause::OrderNotEnforced,
        Cause::Other,
    ];

    /// The id in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => "written-in-place",
            Cause::OldDeletedFirst => "old-deleted-first",
            Cause::MarkerBeforeData => "marker-before-data",
            Cause::UnfinishedDirectoryTaken => "unfinished-directory-taken",
            Cause::MixedSaves => "mixed-saves",
            Cause::NoFsyncBeforeRename => "no-fsync-before-rename",
            Cause::AcknowledgedTooEarly => "acknowledged-too-early",
            Cause::DirectoryNotSynced => "directory-not-synced",
            Cause::OrderNotEnforced => "order-not-enforced",
            Cause::Other => "other",
        }
    }

    /// What to change in the trainer.
    pub fn advice(self) -> &'static str {
        match self {
            Cause::WrittenInPlace => {
                "write a temporary file next to it, fsync it, rename it over the file, fsync the directory"
            }
            Cause::OldDeletedFirst => {
                "delete the old checkpoint only after the new one is synced and has its final name"
            }
            Cause::MarkerBeforeData => {
                "replace the marker last, by a temporary file and a rename, after what it names is synced"
            }
            Cause::UnfinishedDirectoryTaken => {
                "write the manifest last, or write everything into a temporary directory and rename that"
            }
            Cause::MixedSaves => {
                "write the files of one checkpoint into one directory and rename the directory"
            }
            Cause::NoFsyncBeforeRename => "fsync the file before renaming it",
            Cause::AcknowledgedTooEarly => "fsync the file before announcing the save",
            Cause::DirectoryNotSynced => {
                "fsync the directory after creating, renaming or removing in it, before announcing the save"
            }
            Cause::OrderNotEnforced => {
                "fsync the file and the directory of the earlier change before making the later one"
            }
            Cause::Other => "repeat this state with its command and look at the files",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_cause_is_its_name_in_json() {
        for cause in Cause::ALL {
            assert_eq!(serde_json::to_string(&cause).unwrap(), format!("\"{cause}\""));
        }
        for model in CrashModel::DEFAULTS.into_iter().chain([CrashModel::Lying]) {
            assert_eq!(serde_json::to_string(&model).unwrap(), format!("\"{}\"", model.name()));
        }
    }
}
