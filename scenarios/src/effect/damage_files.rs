//! The fault `damage-files`: files of the target that are damaged where they lie, as by a bad disk, a copy that
//! was cut off, or a person.

use gpu_words::Persistence;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::effect::checker::Checker;
use crate::effect::file_selection::FileSelection;
use crate::effect::keys::fault;
use crate::effect::measurements::Measurements;
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::yaml::leaf::{FileName, LeafError, PathGlob, leaf_of};
use crate::yaml::spanned::Spanned;

fault!(
    /// Damaged files.
    DamageFilesDraft {
        /// Which files: a glob on paths below the root. Default: all files of the generations in `of`.
        files: Option<Spanned<PathGlob>>,
        /// Directories or files of which each is one generation: `checkpoints/*/step-*`. They are ordered by
        /// name, numbers by value.
        of: Option<Spanned<PathGlob>>,
        /// How many of the newest generations in each directory are damaged: a number; `every` for 1, 2 and so
        /// on, one trial each, as long as one that the baseline run left is spared; or `all`. Default: 1.
        newest: Option<Spanned<NewestCount>>,
        /// What is done to each file. One trial for each in the list.
        how: Spanned<Vec<FileDamage>>,
        /// Where in each file, for `flip`, `truncate` and `zero`. One trial for each in the list. Default:
        /// `[middle]`.
        part: Option<Spanned<Vec<FilePart>>>,
        /// The new name, for `rename`.
        to: Option<Spanned<FileName>>,
        /// Damages one file in each trial, one trial for each file that the baseline run left. Default:
        /// `false`, all of them in the same trial.
        #[serde(default)]
        each: bool,
    }
);

/// How many of the newest generations are damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewestCount {
    /// This many, at least 1.
    Of(u32),
    /// 1, 2 and so on, one trial each, as long as one is spared.
    Every,
    /// All of them.
    All,
}

impl NewestCount {
    fn parse(text: &str) -> Result<NewestCount, LeafError> {
        match (text, text.parse()) {
            ("every", _) => Ok(NewestCount::Every),
            ("all", _) => Ok(NewestCount::All),
            (_, Ok(count @ 1..)) => Ok(NewestCount::Of(count)),
            _ => Err(LeafError::neither(text, "`every` or `all`", "a number from 1")),
        }
    }

    /// The number of a planned trial. More than there are means all of them.
    pub fn count(self) -> usize {
        match self {
            NewestCount::Of(count) => count as usize,
            NewestCount::Every => 1,
            NewestCount::All => usize::MAX,
        }
    }
}

leaf_of!(
    NewestCount,
    NewestCount::parse,
    r"^(every|all|[1-9]\d*)$",
    "How many of the newest: a number from 1, `every` (1, 2 and so on, as long as one is spared), or `all`."
);

/// What is done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileDamage {
    /// Flips one bit at `part`.
    Flip,
    /// Cuts the file off at `part`; at `start`, only its first byte is left.
    Truncate,
    /// Fills up to 4096 bytes at `part` with zeros.
    Zero,
    /// Leaves the file with no bytes.
    Empty,
    /// Removes the file, or, without `files`, the whole generation.
    Remove,
    /// Exchanges the contents of the first file and the second, of the third and the fourth, and so on.
    Swap,
    /// Replaces the file by that of the same name in the generation before, so that two are mixed.
    Mix,
    /// Gives the file, or, without `files`, the whole generation, the name in `to`.
    Rename,
    /// Sets the times of the file, and, without `files`, of the whole generation, to 2001-09-09.
    Age,
}

impl FileDamage {
    /// Whether it is done to one part of a file.
    pub fn has_part(self) -> bool {
        matches!(self, FileDamage::Flip | FileDamage::Truncate | FileDamage::Zero)
    }

    /// Whether it is done to a whole generation, if no files are stated.
    pub fn takes_generations(self) -> bool {
        matches!(self, FileDamage::Remove | FileDamage::Rename | FileDamage::Age)
    }

    fn verb(self) -> &'static str {
        match self {
            FileDamage::Flip => "flip a bit",
            FileDamage::Truncate => "truncate",
            FileDamage::Zero => "write zeros",
            FileDamage::Empty => "empty",
            FileDamage::Remove => "remove",
            FileDamage::Swap => "swap",
            FileDamage::Mix => "mix with the generation before",
            FileDamage::Rename => "rename",
            FileDamage::Age => "age",
        }
    }
}

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FilePart {
    /// Its first byte.
    Start,
    /// The byte at half of its length.
    Middle,
    /// Its last byte.
    End,
}

impl FilePart {
    /// The place in a file of this length, which is not 0.
    pub fn offset(self, len_bytes: u64) -> u64 {
        match self {
            FilePart::Start => 0,
            FilePart::Middle => len_bytes / 2,
            FilePart::End => len_bytes.saturating_sub(1),
        }
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            FilePart::Start => "at the start of",
            FilePart::Middle => "in the middle of",
            FilePart::End => "at the end of",
        }
    }
}

/// Damages files of the target, in one way in each trial.
#[derive(Debug, Clone)]
pub struct DamageFiles {
    /// Which files.
    pub selection: FileSelection,
    /// Number of the newest generations.
    pub newest: NewestCount,
    /// What may be done to them. Only one in a planned trial.
    pub damages: Vec<FileDamage>,
    /// Where in each file. Only one in a planned trial.
    pub parts: Vec<FilePart>,
    /// The new name of what is renamed.
    pub new_name: Option<String>,
    /// The files are damaged one at a time.
    pub one_at_a_time: bool,
    /// In a planned trial: the only file that is damaged, by its place among the selected ones, from 1.
    pub only_file: Option<usize>,
}

impl DamageFiles {
    /// The damage of a planned trial.
    pub fn damage(&self) -> Option<FileDamage> {
        self.damages.first().copied()
    }

    /// Where in each file, in a planned trial.
    pub fn part(&self) -> FilePart {
        self.parts.first().copied().unwrap_or(FilePart::Middle)
    }

    /// Whether whole generations are damaged, and not their files.
    pub fn takes_generations(&self) -> bool {
        self.selection.files.is_none() && self.damage().is_some_and(FileDamage::takes_generations)
    }

    /// The choices of files: all, or each in turn.
    fn file_choices(&self, measured: Measurements<'_>) -> Vec<Option<usize>> {
        if !self.one_at_a_time || self.takes_generations() {
            return vec![None];
        }
        let count = self.selection.selected(measured.files, self.newest.count()).len();
        // Without any, the one trial tells that no file matched.
        (1..=count.max(1)).map(Some).collect()
    }
}

impl CheckEffect for DamageFilesDraft {
    type Checked = DamageFiles;

    fn check(&self, checker: &mut Checker) -> DamageFiles {
        checker.require_not_empty(&self.how, "`how` is empty");
        if self.persistence == Persistence::Persistent {
            let problem = self.how.problem("damage lasts: done again, it could undo itself");
            checker.problems.push(problem.help("remove `persistence`, or write one fault for each moment"));
        }
        if let Some(parts) = &self.part {
            checker.require_not_empty(parts, "`part` is empty");
        }
        self.check_selection(checker);
        let matcher = |glob: &Spanned<PathGlob>| glob.value.0.compile_matcher();
        DamageFiles {
            selection: FileSelection {
                files: self.files.as_ref().map(matcher),
                generations: self.of.as_ref().map(matcher),
            },
            newest: self.newest.as_ref().map_or(NewestCount::Of(1), |newest| newest.value),
            damages: self.how.value.clone(),
            parts: self.part.as_ref().map_or_else(|| vec![FilePart::Middle], |part| part.value.clone()),
            new_name: self.to.as_ref().map(|name| name.value.0.clone()),
            one_at_a_time: self.each,
            only_file: None,
        }
    }
}

impl DamageFilesDraft {
    /// Checks that the keys fit each other.
    fn check_selection(&self, checker: &mut Checker) {
        let how = &self.how;
        let has = |damage: FileDamage| how.value.contains(&damage);
        let mut problem = |is_wrong: bool, message: &str, help: &str| {
            if is_wrong && checker.is_complete {
                checker.problems.push(how.problem(message).help(help));
            }
        };
        problem(
            self.files.is_none() && self.of.is_none(),
            "nothing says which files are damaged",
            "add `files: 'checkpoints/**'`, or `of: 'checkpoints/*'` for the newest directory that matches",
        );
        problem(
            self.of.is_none() && self.newest.is_some(),
            "`newest` needs `of`, the pattern of what it counts",
            "add `of: 'checkpoints/*'`",
        );
        problem(
            self.of.is_none() && has(FileDamage::Mix),
            "`mix` needs `of`, the pattern of the directories that are mixed",
            "add `of: 'checkpoints/*'`",
        );
        problem(
            has(FileDamage::Rename) != self.to.is_some(),
            "`rename` and `to`, the new name, need each other",
            "write `how: [rename]` and `to: backup`",
        );
        problem(
            self.each && has(FileDamage::Swap),
            "`swap` needs two files in a trial, and `each` permits one",
            "remove `each`, or move `swap` to a fault of its own",
        );
        problem(
            self.part.is_some() && !how.value.iter().any(|damage| damage.has_part()),
            "`part` has no meaning for this damage",
            "remove `part`, or write `how: [flip, truncate, zero]`",
        );
    }
}

impl EffectSpec for DamageFiles {
    fn is_momentary(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        let Some(damage) = self.damage() else { return String::new() };
        let part = if damage.has_part() { format!(" {}", self.part().describe()) } else { String::new() };
        let pattern = |matcher: &globset::GlobMatcher| format!("`{}`", matcher.glob().glob());
        let files = match (&self.selection.files, self.takes_generations()) {
            (Some(files), _) => pattern(files),
            (None, true) => String::new(),
            (None, false) => "the files".into(),
        };
        let generations = self.selection.generations.as_ref().map(|generations| match self.newest {
            NewestCount::Of(1) | NewestCount::Every => format!("the newest {}", pattern(generations)),
            NewestCount::Of(count) => format!("the newest {count} of {}", pattern(generations)),
            NewestCount::All => format!("every {}", pattern(generations)),
        });
        let place = match (files.as_str(), generations) {
            ("", Some(generations)) => generations,
            (files, Some(generations)) => format!("{files} in {generations}"),
            (files, None) => files.to_owned(),
        };
        let only = self.only_file.map(|number| format!("file {number} of ")).unwrap_or_default();
        format!("{}{part} {only}{place}", damage.verb())
    }

    fn why_no_choice(&self, measured: Measurements<'_>) -> Option<String> {
        let most = self.selection.most_generations(measured.files);
        let spares_none = self.newest == NewestCount::Every && most < 2;
        let pattern = self.selection.generations.as_ref()?.glob().glob();
        spares_none.then(|| {
            format!("`newest: every` spares one, and the baseline run left {most} in a directory that match `{pattern}`")
        })
    }

    fn choices(&self, measured: Measurements<'_>) -> Vec<DamageFiles> {
        let newest: Vec<NewestCount> = match self.newest {
            NewestCount::Of(_) | NewestCount::All => vec![self.newest],
            NewestCount::Every => {
                let most = self.selection.most_generations(measured.files);
                (1..most as u32).map(NewestCount::Of).collect()
            }
        };
        let mut choices = Vec::new();
        for newest in newest {
            for damage in &self.damages {
                let parts = if damage.has_part() { self.parts.clone() } else { vec![FilePart::Middle] };
                for part in parts {
                    let chosen =
                        DamageFiles { newest, damages: vec![*damage], parts: vec![part], ..self.clone() };
                    let files = chosen.file_choices(measured);
                    choices.extend(
                        files.into_iter().map(|only_file| DamageFiles { only_file, ..chosen.clone() }),
                    );
                }
            }
        }
        choices
    }
}
