//! Why the states of a finding fail: the ids, and for each of them what to change in the trainer. Knows nothing
//! of how a cause is recognized. `docs/causes.md` shows each of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why the states of a finding fail: a known pattern of a save or of a resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A recovery from undamaged files fails, or starts over.
    DoesNotResume,
    /// A recovery from undamaged files ends in another state than the baseline.
    ResumeDiffers,
    /// A lock that a killed process has left stops the next one.
    StaleLock,
    /// The newest checkpoint is deleted while older ones stay.
    NewestPruned,
    /// A file is copied to its final name, because a rename to there is not possible.
    RenameFallsBackToCopy,
    /// A file is changed under its final name.
    WrittenInPlace,
    /// The old checkpoint is deleted before the new one is complete.
    OldDeletedFirst,
    /// A small file that names the newest checkpoint is changed before that checkpoint is complete.
    MarkerBeforeData,
    /// The newest checkpoint directory is incomplete, and is resumed from.
    UnfinishedDirectoryTaken,
    /// The files of one checkpoint are replaced one after the other, so that they can come from two saves.
    MixedSaves,
    /// A rename reached the disk, but the bytes of the renamed file did not.
    NoFsyncBeforeRename,
    /// A save was acknowledged before it was complete, or before its bytes were synced.
    AcknowledgedTooEarly,
    /// The bytes of a file reached the disk, but its name did not.
    DirectoryNotSynced,
    /// A later change reached the disk before an earlier one that it depends on.
    OrderNotEnforced,
    /// A save was acknowledged although one of its calls failed.
    ErrorSwallowed,
    /// None of the above.
    Other,
}

/// What a cause is about, as far as the advice depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FailureSubject {
    /// A file with data.
    File,
    /// A directory with the files of one checkpoint.
    Directory,
    /// A small file that names the newest checkpoint.
    Pointer,
}

impl Cause {
    /// All causes.
    pub const ALL: [Cause; 16] = [
        Cause::DoesNotResume,
        Cause::ResumeDiffers,
        Cause::StaleLock,
        Cause::NewestPruned,
        Cause::RenameFallsBackToCopy,
        Cause::WrittenInPlace,
        Cause::OldDeletedFirst,
        Cause::MarkerBeforeData,
        Cause::UnfinishedDirectoryTaken,
        Cause::MixedSaves,
        Cause::NoFsyncBeforeRename,
        Cause::AcknowledgedTooEarly,
        Cause::DirectoryNotSynced,
        Cause::OrderNotEnforced,
        Cause::ErrorSwallowed,
        Cause::Other,
    ];

    /// The id in reports and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Cause::DoesNotResume => "does-not-resume",
            Cause::ResumeDiffers => "resume-differs",
            Cause::StaleLock => "stale-lock",
            Cause::NewestPruned => "newest-pruned",
            Cause::RenameFallsBackToCopy => "rename-falls-back-to-copy",
            Cause::WrittenInPlace => "written-in-place",
            Cause::OldDeletedFirst => "old-deleted-first",
            Cause::MarkerBeforeData => "marker-before-data",
            Cause::UnfinishedDirectoryTaken => "unfinished-directory-taken",
            Cause::MixedSaves => "mixed-saves",
            Cause::NoFsyncBeforeRename => "no-fsync-before-rename",
            Cause::AcknowledgedTooEarly => "acknowledged-too-early",
            Cause::DirectoryNotSynced => "directory-not-synced",
            Cause::OrderNotEnforced => "order-not-enforced",
            Cause::ErrorSwallowed => "error-swallowed",
            Cause::Other => "other",
        }
    }

    /// What to change in the trainer.
    pub fn advice(self, subject: FailureSubject) -> &'static str {
        match self {
            Cause::DoesNotResume => {
                "load the newest checkpoint at the start: first make a run resume after a stop between two saves"
            }
            Cause::ResumeDiffers => {
                "save and restore all state that later steps depend on: weights, optimizer, scheduler, random \
                 states, position in the data, best value"
            }
            Cause::StaleLock => {
                "use a lock that ends with its process (`flock` or `fcntl`), or write the process id into it, and \
                 take it over if that process is gone"
            }
            Cause::NewestPruned => {
                "sort checkpoints by their step as a number, not as text, and never delete the newest one"
            }
            Cause::RenameFallsBackToCopy => {
                "write the temporary file into the directory of the final one, so that one rename replaces it"
            }
            Cause::WrittenInPlace => in_place_advice(subject),
            Cause::OldDeletedFirst => {
                "delete the old checkpoint only after the new one is synced and has its final name"
            }
            Cause::MarkerBeforeData => {
                "replace the marker last, by a temporary file and a rename, after what it names is synced"
            }
            Cause::UnfinishedDirectoryTaken => {
                "write everything into a temporary directory, sync it and rename it, or write the manifest last and \
                 resume only from directories that have one"
            }
            Cause::MixedSaves => {
                "write the files of one checkpoint into one directory and rename the directory"
            }
            Cause::NoFsyncBeforeRename => "fsync the file before renaming it",
            Cause::AcknowledgedTooEarly => {
                "announce the save only after all of it is written, synced and has its final name; wait for a save \
                 in the background before that"
            }
            Cause::DirectoryNotSynced => {
                "fsync the directory after creating, renaming or removing in it, before announcing the save"
            }
            Cause::OrderNotEnforced => {
                "fsync the file and the directory of the earlier change before making the later one"
            }
            Cause::ErrorSwallowed => {
                "check the result of every call of a save, and announce the save only if all of them succeeded"
            }
            Cause::Other => "repeat this state with its command and look at the files",
        }
    }
}

fn in_place_advice(subject: FailureSubject) -> &'static str {
    match subject {
        FailureSubject::File => {
            "write a temporary file next to it, fsync it, rename it over the file, fsync the directory"
        }
        FailureSubject::Pointer => {
            "write the name of the checkpoint into a temporary file next to the pointer, fsync it, rename it over \
             the pointer, fsync the directory"
        }
        FailureSubject::Directory => {
            "write all files into a temporary directory next to it, fsync each of them and the directory, rename \
             the directory, fsync its parent"
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
    }
}
