//! The fault `flip-memory`: one bit that flips in the memory of the target, in its copy of what a file holds, as by a
//! bad memory module.

use crate::effect::checker::Checker;
use crate::effect::damage_files::FilePart;
use crate::effect::keys::fault;
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::leaf::PathGlob;
use crate::yaml::spanned::Spanned;

fault!(
    /// A flipped bit in memory.
    FlipMemoryDraft {
        /// The file whose content is looked for in the memory of the target: a glob on paths below the root. If several
        /// match, the first by name.
        file: Spanned<PathGlob>,
        /// Where in the file. One trial for each in the list. Default: `[middle]`.
        part: Option<Spanned<Vec<FilePart>>>,
    }
);

/// Flips one bit in the target's copies of a part of a file.
#[derive(Debug, Clone)]
pub struct FlipMemory {
    /// Which file: the first that matches.
    pub file: globset::GlobMatcher,
    /// Where in the file. Only one in a planned trial.
    pub parts: Vec<FilePart>,
}

impl FlipMemory {
    /// Where in the file, in a planned trial.
    pub fn part(&self) -> FilePart {
        self.parts.first().copied().unwrap_or(FilePart::Middle)
    }
}

impl CheckEffect for FlipMemoryDraft {
    type Checked = FlipMemory;

    fn check(&self, checker: &mut Checker) -> FlipMemory {
        if let Some(parts) = &self.part {
            checker.require_not_empty(parts, "`part` is empty");
        }
        FlipMemory {
            file: self.file.value.0.compile_matcher(),
            parts: self.part.as_ref().map_or_else(|| vec![FilePart::Middle], |part| part.value.clone()),
        }
    }
}

impl EffectSpec for FlipMemory {
    fn is_momentary(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let file = self.file.glob().glob();
        format!("flip a bit in memory, in the copy of what is {} `{file}`", self.part().describe())
    }

    fn choices(&self, _: Measurements<'_>) -> Vec<FlipMemory> {
        self.parts.iter().map(|part| FlipMemory { parts: vec![*part], ..self.clone() }).collect()
    }
}
