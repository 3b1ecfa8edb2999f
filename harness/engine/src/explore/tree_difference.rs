//! A file that is not as a recording says. The ground of the four stages: knows none of them.

use std::path::PathBuf;

/// A file that is not as the recording says: something changed it without a recorded call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeDifference {
    /// The file, as the target sees it.
    pub path: PathBuf,
    /// What differs.
    pub kind: TreeDifferenceKind,
}

/// How a file differs from what a recording says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeDifferenceKind {
    /// It exists, and no recorded call created it.
    NotRecorded,
    /// It does not exist, and no recorded call removed it.
    Gone,
    /// It is a file of another type, or a link to somewhere else.
    OtherType,
    /// Two names that should be hard links of one file are not.
    OtherFile,
    /// It has other permission bits, owners or extended attributes.
    OtherAttributes,
    /// It has another length, in bytes.
    OtherSize { recorded: u64, found: u64 },
    /// It has other bytes from this offset on.
    OtherContent { offset: u64 },
}

impl std::fmt::Display for TreeDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match self.kind {
            TreeDifferenceKind::NotRecorded => write!(f, "`{path}` was created"),
            TreeDifferenceKind::Gone => write!(f, "`{path}` was removed or renamed"),
            TreeDifferenceKind::OtherType => write!(f, "`{path}` was replaced by something else"),
            TreeDifferenceKind::OtherFile => write!(f, "`{path}` is no longer a hard link of the same file"),
            TreeDifferenceKind::OtherAttributes => {
                write!(f, "`{path}` got other permissions, owners or extended attributes")
            }
            TreeDifferenceKind::OtherSize { recorded, found } => {
                write!(f, "`{path}` has {found} bytes, {recorded} were recorded")
            }
            TreeDifferenceKind::OtherContent { offset } => {
                write!(f, "`{path}` has other bytes, from byte {offset} on")
            }
        }
    }
}
