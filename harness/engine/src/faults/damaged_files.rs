//! Files of the target that are damaged where they lie. Knows no trigger.

use std::io::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use scenarios::{DamageFiles, EffectSpec, FileDamage};

use crate::faults::file_damage::damage_content;
use crate::faults::injectable_fault::{FaultContext, FaultError, InjectableFault, TargetReaction};
use crate::faults::target_files::{MAX_LISTED_FILES, TargetPlace, list_files};

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
}

impl DamagedFiles {
    pub(super) fn new(fault: &DamageFiles) -> DamagedFiles {
        DamagedFiles { fault: fault.clone(), done: Vec::new(), unchanged: Vec::new(), has_too_many: false }
    }

    /// Damages one file, and notes what came of it.
    fn damage(&mut self, root: &Path, path: &str, how: impl Fn(&TargetPlace) -> DamageResult) {
        match TargetPlace::of(root, path).and_then(|place| how(&place)) {
            Ok(Some(done)) => self.done.push(format!("`{path}`: {done}")),
            Ok(None) => self.unchanged.push(format!("`{path}` is as before")),
            Err(error) => self.unchanged.push(format!("`{path}`: {error}")),
        }
    }

    fn damage_all(&mut self, root: &Path, files: &[String], damage: FileDamage) {
        let newest = self.fault.newest.count();
        let selection = self.fault.selection.clone();
        let mut selected = match self.fault.takes_generations() {
            true => selection.newest_generations(files, newest),
            false => selection.selected(files, newest),
        };
        if let Some(number) = self.fault.only_file {
            selected = selected.into_iter().skip(number - 1).take(1).collect();
        }
        let part = self.fault.part();
        let new_name = self.fault.new_name.clone().unwrap_or_default();
        match damage {
            FileDamage::Swap => {
                for pair in selected.chunks_exact(2) {
                    self.damage(root, &pair[0], |place| swap(place, root, &pair[1]));
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
                selected.iter().for_each(|path| self.damage(root, path, age));
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
    to.set_len(0)?;
    std::io::copy(&mut from, &mut to)?;
    Ok(Some(format!("replaced by `{before}`")))
}

fn remove(place: &TargetPlace) -> DamageResult {
    let path = place.path();
    if path.symlink_metadata()?.is_dir() {
        // Never follows a link.
        std::fs::remove_dir_all(&path)?;
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

/// Sets the times of a file, or of a directory and all that is in it.
fn age(place: &TargetPlace) -> DamageResult {
    let mut paths = vec![place.path()];
    while let Some(path) = paths.pop() {
        if path.symlink_metadata()?.is_dir() {
            paths.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
        }
        set_old_times(&path)?;
    }
    Ok(Some("dated to 2001-09-09".into()))
}

fn set_old_times(path: &Path) -> Result<(), Error> {
    let old = TimeSpec::from_duration(OLD_TIME);
    utimensat(AT_FDCWD, path, &old, &old, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
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
            None => "no file matched when it was injected".into(),
        }
    }
}
