//! What a scenario needs of its target file besides the names in it. Can be checked only once both files are
//! known.

use crate::yaml::problem::SourceSpan;

/// A need, and the part of the scenario file that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TargetNeed {
    pub(crate) kind: NeedKind,
    pub(crate) span: SourceSpan,
}

/// Something that a target file may do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NeedKind {
    /// `verify`, for the expectations `verifies` and `verifies-before-resume`.
    Verify,
    /// `same`, for the expectation `same-as-baseline`.
    Same,
    /// The group `loss` in `announces: step`, for the expectation `final-loss`.
    Loss,
    /// `announces: resumed` or `announces: saved`, for the expectation `lost-steps`.
    Resumed,
    /// `refused-exits`, if no other outcome than `refused` is expected.
    RefusedExits,
    /// `submit`, for data files.
    Submit,
    /// `setting-args` and an argument `{settings}`, for settings.
    Settings,
}
