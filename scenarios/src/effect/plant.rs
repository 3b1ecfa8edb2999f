//! The fault `plant`: hostile files in a place.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::effect::checker::{Checker, NameKind};
use crate::effect::data_kind::DataKind;
use crate::effect::keys::fault;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::leaf::FileName;
use crate::yaml::spanned::Spanned;

fault!(
    /// Hostile files.
    PlantDraft {
        /// A place of the target file.
        place: Spanned<String>,
        /// The files that are put there.
        files: Spanned<Vec<PlantedFileDraft>>,
    }
);

/// A file to be planted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct PlantedFileDraft {
    /// Name of the file.
    pub(crate) name: FileName,
    /// What the file contains.
    pub(crate) holds: DataKind,
}

/// Puts hostile files into a place, each by rename.
#[derive(Debug, Clone)]
pub struct Plant {
    /// A place of the target file.
    pub place: String,
    /// Never empty.
    pub files: Vec<PlantedFile>,
}

/// A file to be planted.
#[derive(Debug, Clone, PartialEq)]
pub struct PlantedFile {
    /// File name, without separators.
    pub name: String,
    /// What it contains.
    pub kind: DataKind,
}

impl CheckEffect for PlantDraft {
    type Checked = Plant;

    fn check(&self, checker: &mut Checker) -> Plant {
        checker.require_not_empty(&self.files, "`files` is empty");
        self.files.value.iter().for_each(|file| file.holds.check(self.files.span, checker));
        let planted =
            |file: &PlantedFileDraft| PlantedFile { name: file.name.0.clone(), kind: file.holds.clone() };
        let files = self.files.value.iter().map(planted).collect();
        Plant { place: checker.target_name(NameKind::Place, &self.place), files }
    }
}

impl EffectSpec for Plant {
    fn describe(&self) -> String {
        format!("{} files into `{}`", self.files.len(), self.place)
    }

    fn adds_work(&self) -> bool {
        self.files.iter().any(|file| file.kind.may_be_valid())
    }
}
