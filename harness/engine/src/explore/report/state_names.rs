//! Names the states that findings show, with what they consist of.

use crate::explore::record::Recording;
use crate::explore::states::{ContentDigests, CrashCandidate, CrashKind, StateName};

/// The name of one state.
pub(in crate::explore) fn name_of_state(
    recording: &Recording,
    crash: CrashKind,
    candidate: &CrashCandidate,
) -> StateName {
    StateNames::new(recording).name(Some(crash), candidate)
}

/// Names the states of one recording, with what they consist of.
pub(super) struct StateNames<'a> {
    recording: &'a Recording,
    /// `None`: not needed yet, or a recorded byte cannot be read.
    digests: Option<ContentDigests<'a>>,
}

impl<'a> StateNames<'a> {
    pub(super) fn new(recording: &'a Recording) -> StateNames<'a> {
        StateNames { recording, digests: None }
    }

    pub(super) fn name(&mut self, crash: Option<CrashKind>, candidate: &CrashCandidate) -> StateName {
        if self.digests.is_none() {
            self.digests = ContentDigests::new(self.recording).ok();
        }
        let contents = self.digests.as_mut().and_then(|digests| digests.of(candidate).ok());
        StateName { crash, candidate: candidate.clone(), contents }
    }
}
