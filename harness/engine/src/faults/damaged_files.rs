//! Files of the target that are damaged where they lie. Knows no trigger.

use std::collections::BTreeSet;
use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use scenarios::{DamageFiles, EffectSpec, FileDamage};

use crate::faults::file_damage::damage_content;
use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::faults::target_files::{MAX_LISTED_FILES, TargetPlace, list_files};
use crate::sandbox::remove_tree;

/// The time that `age` sets, after 1970: 2001-09-09.
const OLD_TIME: Duration = Duration::from_secs(1_000_000_000);

/// Files that are damaged in one way.
pub(super) struct DamagedFiles {
    fault: DamageFiles,
    /// What was done, by path.
    done: Vec<String>,
    /// What was selected, and is as before, with the reason.
    unchanged: Vec<String>,
    /// Whether there were too many files to look at.
    has_too_many: bool,
    /// How many files matched.
    matched: usize,
}

impl DamagedFiles {
    pub(super) fn new(fault: &DamageFiles) -> DamagedFiles {
        DamagedFiles {
            fault: fault.clone(),
            done: Vec::new(),
            unchanged: Vec::new(),
            has_too_many: false,
            matched: 0,
        }
    }

    /// Damages one file, and notes what came of it.
    fn damage(&mut self, root: &Path, path: &str, how: impl Fn(&TargetPlace) -> DamageResult) {
        match TargetPlace::of(root, path).and_then(|place| how(&place)) {
            Ok(Some(done)) => self.done.push(format!("`{path}`: {done}")),
            Ok(None) => self.unchanged.push(format!("`{path}` is as before")),
            Err(error) => self.unchanged.push(format!("`{path}`: {error}")),
        }
    }

    /// The files or generations that are damaged in this trial.
    fn selected(&self, files: &[String]) -> Vec<String> {
        let (fault, newest) = (&self.fault, self.fault.newest.count());
        match (fault.takes_generations(), fault.only_file) {
            (true, _) => fault.selection.newest_generations(files, newest),
            (false, None) => fault.selection.selected(files, newest),
            (false, Some(number)) => {
                fault.selection.selected(files, newest).into_iter().skip(number - 1).take(1).collect()
            }
        }
    }

    fn damage_all(&mut self, root: &Path, files: &[String], damage: FileDamage) {
        let selection = self.fault.selection.clone();
        self.matched = selection.selected(files, self.fault.newest.count()).len();
        let selected = self.selected(files);
        let part = self.fault.part();
        let new_name = self.fault.new_name.clone().unwrap_or_default();
        match damage {
            FileDamage::Swap => {
                for pair in selected.chunks(2) {
                    match pair {
                        [one, other] => self.damage(root, one, |place| swap(place, root, other)),
                        _ => self
                            .unchanged
                            .push(format!("`{}` has no second file to be swapped with", pair[0])),
                    }
                }
            }
            FileDamage::Mix => {
                // The newest first, so that each takes from the one before what that one had.
                let all = selection.newest_generations(files, usize::MAX);
                for path in selected.iter().rev() {
                    let before = file_of_generation_before(path, &all);
                    self.damage(root, path, |place| mix(place, root, before.as_deref()));
                }
            }
            FileDamage::Remove => {
                selected.iter().for_each(|path| self.damage(root, path, remove));
            }
            FileDamage::Rename => {
                selected.iter().for_each(|path| self.damage(root, path, |place| rename(place, &new_name)));
            }
            FileDamage::Age => {
                // Each by its own place: what is in a directory may become a link at any time.
                let aged = with_contents(&selected, files);
                aged.iter().for_each(|path| self.damage(root, path, age));
            }
            FileDamage::Flip | FileDamage::Truncate | FileDamage::Zero | FileDamage::Empty => {
                let content = |place: &TargetPlace| damage_content(&place.open_file()?, damage, part);
                selected.iter().for_each(|path| self.damage(root, path, content));
            }
        }
    }
}

/// What was done to a file; `None` if it is as before.
type DamageResult = Result<Option<String>, Error>;

fn swap(place: &TargetPlace, root: &Path, other: &str) -> DamageResult {
    let second = TargetPlace::of(root, other)?;
    if same_content(place, &second)? {
        return Ok(None);
    }
    let (one, two) = (place.path(), second.path());
    renameat2(AT_FDCWD, &one, AT_FDCWD, &two, RenameFlags::RENAME_EXCHANGE)?;
    Ok(Some(format!("exchanged with `{other}`")))
}

fn mix(place: &TargetPlace, root: &Path, before: Option<&str>) -> DamageResult {
    let Some(before) = before else { return Ok(None) };
    let source = TargetPlace::of(root, before)?;
    if same_content(place, &source)? {
        return Ok(None);
    }
    let (mut from, mut to) = (source.open_file()?, place.open_file()?);
    let len_bytes = from.metadata()?.len();
    to.set_len(len_bytes)?;
    Ok(Some(match std::io::copy(&mut from, &mut to) {
        Ok(_) => format!("replaced by `{before}`"),
        Err(error) => format!("cut to {len_bytes} bytes and only partly replaced by `{before}`: {error}"),
    }))
}

fn remove(place: &TargetPlace) -> DamageResult {
    let path = place.path();
    if path.symlink_metadata()?.is_dir() {
        remove_tree(&path).map_err(Error::other)?;
    } else {
        std::fs::remove_file(&path)?;
    }
    Ok(Some("removed".into()))
}

fn rename(place: &TargetPlace, name: &str) -> DamageResult {
    let (from, to) = (place.path(), place.beside(name));
    // What already has the name is not the one that the fault is about.
    renameat2(AT_FDCWD, &from, AT_FDCWD, &to, RenameFlags::RENAME_NOREPLACE)?;
    Ok(Some(format!("renamed to `{name}`")))
}

/// Sets the times of a file or directory.
fn age(place: &TargetPlace) -> DamageResult {
    let (path, old) = (place.path(), TimeSpec::from_duration(OLD_TIME));
    let modified = path.symlink_metadata()?.mtime();
    utimensat(AT_FDCWD, &path, &old, &old, UtimensatFlags::NoFollowSymlink)?;
    Ok((modified != old.tv_sec()).then(|| "dated to 2001-09-09".into()))
}

/// The selected files and directories, the files in these, and the directories between. A file comes before its
/// directory, whose times it could change.
fn with_contents(selected: &[String], files: &[String]) -> Vec<String> {
    let mut all: BTreeSet<&str> = selected.iter().map(String::as_str).collect();
    for path in files.iter().flat_map(|file| Path::new(file).ancestors()) {
        if selected.iter().any(|generation| path.starts_with(generation)) {
            all.extend(path.to_str());
        }
    }
    all.into_iter().rev().map(str::to_owned).collect()
}

fn same_content(one: &TargetPlace, other: &TargetPlace) -> Result<bool, Error> {
    let (one, other) = (one.open_file()?, other.open_file()?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let digest =
        |file| -> Result<blake3::Hash, Error> { Ok(blake3::Hasher::new().update_reader(file)?.finalize()) };
    Ok(digest(one)? == digest(other)?)
}

/// The path of the same file in the generation before that of `path`. `all`: the generations, the oldest of each
/// directory first.
fn file_of_generation_before(path: &str, all: &[String]) -> Option<String> {
    let is_in = |generation: &String| Path::new(path).starts_with(generation);
    let at = all.iter().position(is_in)?;
    let within = Path::new(path).strip_prefix(&all[at]).ok()?;
    let before = all.get(at.checked_sub(1)?)?;
    let are_siblings = Path::new(before).parent() == Path::new(&all[at]).parent();
    let file: PathBuf = Path::new(before).join(within);
    are_siblings.then(|| file.to_string_lossy().into_owned())
}

impl InjectableFault for DamagedFiles {
    fn mechanism(&self) -> String {
        format!("in the target's root: {}", self.fault.describe())
    }

    fn inject(&mut self, context: &FaultContext<'_>) -> Result<(), FaultError> {
        let root = context.sandbox.host_path_in_root(Path::new(""));
        let Some(damage) = self.fault.damage() else { return Ok(()) };
        match list_files(&root) {
            Some(files) => self.damage_all(&root, &files, damage),
            None => self.has_too_many = true,
        }
        Ok(())
    }

    fn effective_evidence(&mut self, _: &FaultContext<'_>, _: TargetReaction) -> Option<String> {
        let first = self.done.first()?;
        let others = match self.done.len() - 1 {
            0 => String::new(),
            others => format!(", and {others} more in the same way"),
        };
        let unchanged = match self.unchanged.len() {
            0 => String::new(),
            count => format!("; {count} could not be changed, such as {}", self.unchanged[0]),
        };
        Some(format!("{first}{others}{unchanged}"))
    }

    fn missing_evidence(&self) -> String {
        match self.unchanged.first() {
            _ if self.has_too_many => format!("the root holds more than {MAX_LISTED_FILES} files"),
            Some(first) => format!("nothing changed in {} files: {first}", self.unchanged.len()),
            None => match self.fault.only_file.filter(|_| self.matched > 0) {
                Some(number) => {
                    format!("only {} files matched when file {number} was to be damaged", self.matched)
                }
                None => "no file matched when it was injected".into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use globset::{GlobBuilder, GlobMatcher};
    use scenarios::{FilePart, FileSelection, NewestCount};

    use super::*;

    const ALL: [FileDamage; 9] = [
        FileDamage::Flip,
        FileDamage::Truncate,
        FileDamage::Zero,
        FileDamage::Empty,
        FileDamage::Remove,
        FileDamage::Swap,
        FileDamage::Mix,
        FileDamage::Rename,
        FileDamage::Age,
    ];

    fn fault(damage: FileDamage, files: Option<&str>) -> DamageFiles {
        let matcher = |pattern: &str| -> GlobMatcher {
            GlobBuilder::new(pattern).literal_separator(true).build().unwrap().compile_matcher()
        };
        DamageFiles {
            selection: FileSelection { files: files.map(matcher), generations: Some(matcher("c/step-*")) },
            newest: NewestCount::Of(1),
            damages: vec![damage],
            parts: vec![FilePart::Middle],
            new_name: Some("renamed".into()),
            one_at_a_time: false,
            only_file: None,
        }
    }

    /// Two generations of two files.
    fn write_generations(root: &Path) {
        for step in [9, 10] {
            let dir = root.join(format!("c/step-{step}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("w"), format!("weights {step}")).unwrap();
            std::fs::write(dir.join("x"), format!("others {step}")).unwrap();
        }
    }

    /// Content and time of each file.
    fn state_of(root: &Path) -> BTreeMap<String, (Vec<u8>, i64)> {
        let state = |file: &String| {
            let path = root.join(file);
            (std::fs::read(&path).unwrap(), path.metadata().unwrap().mtime())
        };
        list_files(root).unwrap().iter().map(|file| (file.clone(), state(file))).collect()
    }

    fn damage(root: &Path, fault: &DamageFiles, files: &[String]) -> DamagedFiles {
        let mut damaged = DamagedFiles::new(fault);
        damaged.damage_all(root, files, fault.damage().unwrap());
        damaged
    }

    #[test]
    fn each_damage_changes_the_newest_generation_and_says_so_and_a_second_time_only_if_it_does() {
        for damage_kind in ALL {
            for pattern in [None, Some("c/*/*")] {
                let dir = tempfile::tempdir().unwrap();
                write_generations(dir.path());
                let fault = fault(damage_kind, pattern);
                for round in 0..2 {
                    let before = state_of(dir.path());
                    let done = damage(dir.path(), &fault, &list_files(dir.path()).unwrap()).done;
                    let after = state_of(dir.path());
                    assert_eq!(before != after, !done.is_empty(), "{damage_kind:?}, {round}: {done:?}");
                    assert!(round > 0 || before != after, "{damage_kind:?} {pattern:?}");
                    let old = |state: &BTreeMap<String, _>| -> Vec<_> {
                        state
                            .iter()
                            .filter(|file| file.0.contains("step-9/"))
                            .map(|f| format!("{f:?}"))
                            .collect()
                    };
                    assert!(round > 0 || old(&before) == old(&after), "{damage_kind:?} {pattern:?}");
                }
            }
        }
    }

    /// The target may replace what was listed by a link that leads out of its root, at any time.
    #[test]
    fn nothing_outside_of_the_root_is_damaged() {
        for damage_kind in ALL {
            for pattern in [None, Some("c/*/*")] {
                for replaced in ["c", "c/step-10", "c/step-9", "c/step-10/w"] {
                    let dir = tempfile::tempdir().unwrap();
                    let [root, outside] = ["root", "outside"].map(|name| dir.path().join(name));
                    [&root, &outside].into_iter().for_each(|dir| write_generations(dir));
                    let files = list_files(&root).unwrap();
                    std::fs::rename(root.join(replaced), dir.path().join("away")).unwrap();
                    std::os::unix::fs::symlink(outside.join(replaced), root.join(replaced)).unwrap();
                    let before = state_of(&outside);
                    damage(&root, &fault(damage_kind, pattern), &files);
                    assert_eq!(before, state_of(&outside), "{damage_kind:?} {pattern:?} {replaced}");
                }
            }
        }
    }

    #[test]
    fn what_could_not_be_damaged_is_said() {
        let dir = tempfile::tempdir().unwrap();
        write_generations(dir.path());
        let files = list_files(dir.path()).unwrap();
        let single = fault(FileDamage::Swap, Some("c/*/w"));
        let why = damage(dir.path(), &single, &files).missing_evidence();
        assert!(why.contains("`c/step-10/w` has no second file to be swapped with"), "{why}");
        let beyond = DamageFiles { only_file: Some(3), ..fault(FileDamage::Flip, Some("c/*/*")) };
        let why = damage(dir.path(), &beyond, &files).missing_evidence();
        assert_eq!(why, "only 2 files matched when file 3 was to be damaged");
        let why = damage(dir.path(), &fault(FileDamage::Flip, Some("never")), &files).missing_evidence();
        assert_eq!(why, "no file matched when it was injected");
    }
}
