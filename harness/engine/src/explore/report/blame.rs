//! Which crash explains a failing state: often a simpler one that fails in the same way. Does not try states.

use std::collections::HashMap;

use scenarios::Outcome;

use super::failure_kind::FailureKind;
use super::save_window::SaveWindow;
use crate::explore::record::Recording;
use crate::explore::replay::{TriedState, is_acceptable};
use crate::explore::states::{CrashCandidate, CrashKind};

/// The crash that explains a failure.
pub(super) struct Blamed {
    pub(super) candidate: CrashCandidate,
    pub(super) crash: CrashKind,
    /// Whether the files fail in the same way at the moment at which the last save was acknowledged.
    pub(super) fails_when_acknowledged: bool,
}

/// The failing states in which nothing is lost.
pub(super) struct WholeStates<'a> {
    recording: &'a Recording,
    /// By the digest of the tree.
    outcomes: HashMap<[u8; 16], Outcome>,
    /// The digests of the trees, by crash point, as far as they were needed.
    digests: HashMap<u32, [u8; 16]>,
}

impl<'a> WholeStates<'a> {
    pub(super) fn new(recording: &'a Recording, tried: &[TriedState]) -> WholeStates<'a> {
        let failing = tried.iter().flat_map(|tried_state| {
            let whole =
                tried_state.state.witnesses.iter().filter(|(crash, witness)| {
                    **crash == CrashKind::Process || witness.candidate.lost_nothing()
                });
            whole.filter_map(|(crash, _)| {
                let outcome = *tried_state.outcomes.get(crash)?;
                (!is_acceptable(outcome)).then_some((tried_state.state.digest, outcome))
            })
        });
        WholeStates { recording, outcomes: failing.collect(), digests: HashMap::new() }
    }

    /// If the files fail in the same way when the save is acknowledged, or after a process crash at the same
    /// point, the lost operations are not the reason.
    pub(super) fn blame(&mut self, candidate: &CrashCandidate, crash: CrashKind, outcome: Outcome) -> Blamed {
        if let Some(whole) = SaveWindow::of(self.recording, candidate).acknowledged_state()
            && self.fails(&whole, outcome)
        {
            return Blamed { candidate: whole, crash: CrashKind::Process, fails_when_acknowledged: true };
        }
        if crash != CrashKind::Process {
            let whole = CrashCandidate::whole(candidate.op_count as usize);
            if self.fails(&whole, outcome) {
                let crash = CrashKind::Process;
                return Blamed { candidate: whole, crash, fails_when_acknowledged: false };
            }
        }
        Blamed { candidate: candidate.clone(), crash, fails_when_acknowledged: false }
    }

    fn fails(&mut self, whole: &CrashCandidate, outcome: Outcome) -> bool {
        let recording = self.recording;
        let digest = self.digests.entry(whole.op_count).or_insert_with(|| whole.tree(recording).digest());
        // From which older save the recovery then begins is another matter.
        self.outcomes.get(digest).and_then(|whole| FailureKind::of(*whole)) == FailureKind::of(outcome)
    }
}
