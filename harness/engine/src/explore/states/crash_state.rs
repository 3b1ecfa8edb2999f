//! A distinct file tree that a crash may leave, with the crashes that leave it. Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use scenarios::{CrashCategory, CrashModel};

use super::crash_candidate::CrashCandidate;
use super::fs_model::FsModel;
use crate::explore::record::Recording;

/// What kind of crash ended the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CrashKind {
    /// The process is killed; the kernel keeps running.
    Process,
    /// The machine loses power; the file system behaves as the model allows.
    PowerLoss(FsModel),
}

impl CrashKind {
    /// Whether processes were killed or power was lost.
    pub fn category(self) -> CrashCategory {
        match self {
            CrashKind::Process => CrashCategory::Process,
            CrashKind::PowerLoss(_) => CrashCategory::Power,
        }
    }

    /// The same crash as scenarios and results name it.
    pub fn crash_model(self) -> CrashModel {
        match self {
            CrashKind::Process => CrashModel::Process,
            CrashKind::PowerLoss(model) => model.crash_model(),
        }
    }
}

/// A crash that leaves a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The crash point and the persisted set.
    pub candidate: CrashCandidate,
    /// The acknowledged step at the crash point.
    pub acknowledged: Option<u64>,
}

/// A distinct file tree that a crash may leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashState {
    /// Every kind of crash that can leave this tree. Of several crash points, the one with the newest
    /// acknowledged step.
    pub witnesses: BTreeMap<CrashKind, Witness>,
    /// The digest of the tree.
    pub digest: [u8; 16],
}

impl CrashState {
    /// The state that one crash leaves. `crash`: `None` leaves a state without a witness.
    pub(super) fn new(
        recording: &Recording,
        crash: Option<CrashKind>,
        candidate: CrashCandidate,
    ) -> CrashState {
        let digest = candidate.tree_digest(recording);
        let acknowledged = recording.acknowledged(candidate.op_count as usize);
        let witness = Witness { candidate, acknowledged };
        CrashState { witnesses: crash.into_iter().map(|crash| (crash, witness.clone())).collect(), digest }
    }

    /// The state that a process crash leaves.
    pub fn after_process_crash(recording: &Recording, candidate: CrashCandidate) -> CrashState {
        CrashState::new(recording, Some(CrashKind::Process), candidate)
    }

    /// The witness with the newest acknowledged step. A recovery that satisfies this one satisfies all.
    pub fn strictest_witness(&self) -> Option<(CrashKind, &Witness)> {
        let witnesses = self.witnesses.iter().map(|(crash, witness)| (*crash, witness));
        witnesses.max_by_key(|(crash, witness)| {
            (witness.acknowledged, witness.candidate.op_count, std::cmp::Reverse(*crash))
        })
    }

    /// The candidate of the first witness, from which the files are materialized. All witnesses give the same
    /// files.
    pub fn candidate(&self) -> &CrashCandidate {
        static NOTHING: LazyLock<CrashCandidate> = LazyLock::new(|| CrashCandidate::whole(0));
        self.witnesses.values().next().map_or(&*NOTHING, |witness| &witness.candidate)
    }
}
