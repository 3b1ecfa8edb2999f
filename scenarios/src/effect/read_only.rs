//! The fault `read-only`: a place becomes read-only.

use crate::effect::checker::{Checker, NameKind};
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::spanned::Spanned;

fault!(
    /// A read-only place.
    ReadOnlyDraft {
        /// A place of the target file.
        place: Spanned<String>,
    }
);

/// Makes the place read-only.
#[derive(Debug, Clone)]
pub struct ReadOnly {
    /// A place of the target file.
    pub place: String,
}

impl CheckEffect for ReadOnlyDraft {
    type Checked = ReadOnly;

    fn check(&self, checker: &mut Checker) -> ReadOnly {
        ReadOnly { place: checker.target_name(NameKind::Place, &self.place) }
    }
}

impl EffectSpec for ReadOnly {
    fn describe(&self) -> String {
        format!("`{}` read-only", self.place)
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some("read-only-remount")
    }

    fn changed_mount(&self) -> Option<&str> {
        Some(&self.place)
    }

    fn is_shown_by_failed_calls(&self) -> bool {
        true
    }
}
