//! The first recovery of an exploration whose recoveries may be forked. Does not know how it was run.

use super::replay::{ImportNotes, RecoveryResult};
use super::states::CrashCandidate;

/// The first recovery, which has noted what it imported.
pub(super) struct NotedStart {
    pub(super) candidate: CrashCandidate,
    pub(super) result: RecoveryResult,
    pub(super) notes: ImportNotes,
    /// Whether it did what the recorded run did, from the same files.
    pub(super) repeats_recording: bool,
}
