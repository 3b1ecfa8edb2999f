//! The crash states that the fault `crash-states` tries: of which crashes, and where in a run. Knows no
//! recording.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is lost in a crash. A kill of the process loses nothing that the kernel has; a power loss loses what
/// the file system does not guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CrashModel {
    /// The target is killed, and the machine keeps running.
    Process,
    /// Power loss on ext4 (data=ordered).
    Ext4,
    /// Power loss on xfs.
    Xfs,
    /// Power loss on btrfs.
    Btrfs,
    /// Power loss on a file system that guarantees only what POSIX requires.
    Posix,
    /// Power loss with a disk that acknowledges a sync and keeps the data in a volatile cache: nothing is
    /// guaranteed since the save before the last one.
    Lying,
}

impl CrashModel {
    /// The models that a scenario uses if it names none. Without `Lying`, which stands for broken hardware.
    pub const DEFAULTS: [CrashModel; 5] =
        [CrashModel::Process, CrashModel::Ext4, CrashModel::Xfs, CrashModel::Btrfs, CrashModel::Posix];

    /// Its name in scenario files and results.
    pub fn name(self) -> &'static str {
        match self {
            CrashModel::Process => "process",
            CrashModel::Ext4 => "ext4",
            CrashModel::Xfs => "xfs",
            CrashModel::Btrfs => "btrfs",
            CrashModel::Posix => "posix",
            CrashModel::Lying => "lying",
        }
    }
}

/// Which crash states are tried.
#[derive(Debug, Clone)]
pub struct CrashStates {
    /// Kinds of crash. Never empty.
    pub models: Vec<CrashModel>,
    /// Only crashes from the start of one occurrence of this phase to the start of the next.
    pub phase: Option<String>,
    /// Only crashes at changes of these paths, relative to the root.
    pub paths: Option<globset::GlobMatcher>,
    /// The states are those of a second crash, during the recovery from a first one.
    pub in_recovery: bool,
}
