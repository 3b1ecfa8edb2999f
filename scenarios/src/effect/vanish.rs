//! The fault `vanish`: files that are removed after the target has listed them and before it opens them.

use crate::effect::checker::{Checker, NameKind};
use crate::effect::data_kind::DataKind;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::spanned::Spanned;

fault!(
    /// Vanishing files.
    VanishDraft {
        /// A place of the target file.
        place: Spanned<String>,
        /// Number of files in each round.
        files: Spanned<u32>,
        /// What the files contain.
        holds: DataKind,
    }
);

/// Puts files into the place, and removes them after the target has listed them and before it opens them.
#[derive(Debug, Clone)]
pub struct Vanish {
    /// A place of the target file.
    pub place: String,
    /// Number of files in each round.
    pub files: u32,
    /// What they contain.
    pub kind: DataKind,
}

impl CheckEffect for VanishDraft {
    type Checked = Vanish;

    fn check(&self, checker: &mut Checker) -> Vanish {
        let files = checker.require_positive(&self.files, "files");
        self.holds.check(self.files.span, checker);
        let place = checker.target_name(NameKind::Place, &self.place);
        Vanish { place, files, kind: self.holds.clone() }
    }
}

impl EffectSpec for Vanish {
    fn describe(&self) -> String {
        format!("{} files vanish from `{}` between listing and opening", self.files, self.place)
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some("inotify")
    }
}
