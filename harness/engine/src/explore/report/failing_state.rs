//! A crash state from which a target does not recover, with what explains that.

use super::blame::Blamed;
use crate::explore::replay::TriedState;
use crate::explore::states::CrashKind;

/// A failing state, under one kind of crash.
pub(super) struct FailingState<'t> {
    pub(super) tried: &'t TriedState,
    pub(super) crash: CrashKind,
    /// What explains the failure.
    pub(super) blamed: Blamed,
    pub(super) message: String,
}

impl FailingState<'_> {
    /// The crash that is shown. One that loses nothing leaves the same as a killed process, if such were tried.
    pub(super) fn shown_crash(&self, has_process_crashes: bool) -> CrashKind {
        if has_process_crashes { self.blamed.crash } else { self.crash }
    }
}
