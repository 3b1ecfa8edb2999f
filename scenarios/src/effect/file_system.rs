//! The fault `file-system`: a place on a file system that ignores case, or that has coarse times.

use crate::effect::checker::{Checker, NameKind};
use crate::effect::keys::{TriggerDraft, fault};
use crate::effect::spec::{CheckEffect, EffectSpec};
use crate::units::TimeSpan;
use crate::yaml::spanned::Spanned;

/// Coarsest unit of times, in seconds.
const MAX_TIME_UNIT_S: u64 = 3600;

fault!(
    /// Another file system over a place, with the files that are there. One of the two traits must be given.
    FileSystemDraft {
        /// A place of the target file.
        place: Spanned<String>,
        /// Names that differ only in case are one name, and it keeps the case in which it was made, as on vfat, NTFS
        /// and APFS.
        ignores_case: Option<Spanned<bool>>,
        /// Times of files are multiples of this: `2 s`, as on vfat. In whole seconds.
        time_unit: Option<Spanned<TimeSpan>>,
    }
);

/// Puts a place on another file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// A place of the target file.
    pub place: String,
    /// Names that differ only in case are one name.
    pub ignores_case: bool,
    /// Times of files are multiples of so many seconds.
    pub time_unit_s: Option<u32>,
}

impl CheckEffect for FileSystemDraft {
    type Checked = FileSystem;

    fn check(&self, checker: &mut Checker) -> FileSystem {
        let place = checker.target_name(NameKind::Place, &self.place);
        let ignores_case = self.ignores_case.as_ref().is_some_and(|ignores| ignores.value);
        if let Some(ignores) = self.ignores_case.as_ref().filter(|ignores| !ignores.value) {
            let problem = ignores.problem("`ignores-case` can only be `true`");
            checker.problems.push(problem.help("remove it: an ordinary file system does not ignore case"));
        }
        let time_unit_s = self.time_unit.as_ref().and_then(|unit| time_unit(unit, checker));
        if checker.is_complete {
            if self.ignores_case.is_none() && self.time_unit.is_none() {
                checker.method_problem(
                    "`file-system` changes nothing",
                    "add `ignores-case: true`, or a unit of times: `time-unit: 2 s`",
                );
            }
            if !matches!(self.when, None | Some(TriggerDraft::Start | TriggerDraft::Restart)) {
                checker.method_problem(
                    "the file system of a running target can't be changed: it has files open there",
                    "use `when: start` or `when: restart` for `file-system`",
                );
            }
        }
        FileSystem { place, ignores_case, time_unit_s }
    }
}

/// The unit in seconds, if it is one.
fn time_unit(unit: &Spanned<TimeSpan>, checker: &mut Checker) -> Option<u32> {
    let (seconds, rest) = (unit.value.0.as_secs(), unit.value.0.subsec_nanos());
    if rest != 0 || !(1..=MAX_TIME_UNIT_S).contains(&seconds) {
        let problem = unit.problem("`time-unit` is no number of whole seconds up to 1 h");
        checker.problems.push(problem.help("write `2 s`, as on vfat"));
    }
    u32::try_from(seconds).ok()
}

impl EffectSpec for FileSystem {
    fn describe(&self) -> String {
        let case = self.ignores_case.then(|| "ignores case".to_owned());
        let times = self.time_unit_s.map(|unit| format!("has times in units of {unit} s"));
        let traits: Vec<String> = case.into_iter().chain(times).collect();
        format!("the file system of `{}` {}", self.place, traits.join(" and "))
    }

    fn needed_mechanism(&self) -> Option<&'static str> {
        Some("fuse")
    }

    fn changed_mount(&self) -> Option<&str> {
        Some(&self.place)
    }
}
