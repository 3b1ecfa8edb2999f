//! The checkpoints of one job: saves each one completely or not at all, and resumes from the newest valid
//! one. Knows nothing of the engine.

use std::path::{Path, PathBuf};

use super::adapter::adapter_files;
use super::error::{CheckpointDamage, DamageKind, ResumeError, STATE, SaveError};
use super::manifest::{FORMAT_VERSION, FileDigest, Manifest};
use super::prune::removable;
use super::read_checkpoint::{MANIFEST, OPTIMIZER, StateFile, read_checkpoint};
use super::resume::{Readers, ResumePoint, newest_valid};
use super::tensors::{TensorError, encode};
use crate::denial::{Access, explained};
use crate::durable::{self, DurableError, RequiredSpace, SyncPolicy, TEMPORARY_MARKER};
use crate::file_error::{FileError, file_error};
use crate::settings::Guards;
use crate::state::{Recipe, TrainState};

/// Begin of the name of a checkpoint's directory.
const NAME_PREFIX: &str = "step-";
/// Directory of the only checkpoint if the guard `atomic_save` is off.
const IN_PLACE_NAME: &str = "step-current";
/// Bytes that a file system may use for each file in addition to its content.
const FILE_OVERHEAD_BYTES: u64 = 4096;

/// How saves are made.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// The guards decide how files are written, checked and removed.
    pub guards: Guards,
    /// Number of checkpoints to keep.
    pub keep: usize,
}

/// The sync policy for checkpoints and adapters that the guards ask for.
pub fn sync_policy(guards: &Guards) -> SyncPolicy {
    match guards {
        Guards { sync: false, .. } => SyncPolicy::NoSync,
        Guards { directory_sync: false, .. } => SyncPolicy::NoDirectorySync,
        Guards { sync_errors: false, .. } => SyncPolicy::IgnoreSyncErrors,
        Guards { whole_writes: false, .. } => SyncPolicy::IgnoreShortWrites,
        _ => SyncPolicy::Full,
    }
}

/// The checkpoints of one job.
pub struct CheckpointStore {
    dir: PathBuf,
    base: String,
    recipe: Recipe,
    options: SaveOptions,
}

impl CheckpointStore {
    /// The checkpoints in `dir`. `base` is the digest of the base model.
    pub fn new(dir: PathBuf, base: String, recipe: Recipe, options: SaveOptions) -> CheckpointStore {
        CheckpointStore { dir, base, recipe, options }
    }

    fn sync_policy(&self) -> SyncPolicy {
        sync_policy(&self.options.guards)
    }

    /// Removes unfinished checkpoints of an earlier process.
    ///
    /// # Errors
    /// If a directory can't be removed.
    pub fn remove_unfinished(&self) -> Result<(), DurableError> {
        let unfinished = |name: &String| name.starts_with(TEMPORARY_MARKER);
        // What can't be listed now is removed later.
        names_in(&self.dir)
            .unwrap_or_default()
            .into_iter()
            .filter(unfinished)
            .try_for_each(|name| durable::remove_tree(&self.dir.join(name)))
    }

    /// Saves a checkpoint. It is durable when this function returns.
    ///
    /// # Errors
    /// If the checkpoint could not be written. See [`SaveError`].
    pub fn save(&self, state: &TrainState) -> Result<(), SaveError> {
        self.write_checkpoint(state.cursor.step, &self.encode_files(state)?)
    }

    /// Writes the files of a checkpoint, which is durable when this function returns.
    pub(super) fn write_checkpoint(&self, step: u64, files: &[(&str, Vec<u8>)]) -> Result<(), SaveError> {
        // A link that somebody has put in the place of the directory would be followed out of the root.
        let no_links = self.options.guards.no_links;
        for dir in self.dir.parent().into_iter().chain([self.dir.as_path()]).filter(|_| no_links) {
            durable::refuse_link(dir)?;
        }
        if self.options.guards.space_check {
            durable::check_space(&self.dir, required_space(files))?;
        }
        durable::create_dir(&self.dir)?;
        if self.options.guards.abort_cleanup {
            // An earlier save may have failed to remove its files. This attempt may fail again, which is
            // harmless.
            let _ = self.remove_unfinished();
        }
        if !self.options.guards.atomic_save {
            return self.save_in_place(files);
        }
        let target = self.dir.join(checkpoint_name(step));
        // The directory exists if a run saved this step and a later run resumed from an older one. It is
        // replaced as a whole.
        durable::write_dir(&target, files, self.sync_policy(), self.options.guards.abort_cleanup)?;
        if let Some(parent) = self.dir.parent() {
            durable::sync_dir(parent, self.sync_policy())?;
        }
        Ok(())
    }

    fn save_in_place(&self, files: &[(&str, Vec<u8>)]) -> Result<(), SaveError> {
        let target = self.dir.join(IN_PLACE_NAME);
        durable::create_dir(&target)?;
        for (name, bytes) in files {
            durable::write_in_place(&target.join(name), bytes, self.sync_policy())?;
        }
        durable::sync_dir(&target, self.sync_policy())?;
        Ok(())
    }

    fn encode_files(&self, state: &TrainState) -> Result<Vec<(&'static str, Vec<u8>)>, SaveError> {
        let cursor = serde_json::to_vec_pretty(&StateFile { cursor: state.cursor.clone() })
            .map_err(TensorError::Json)?;
        let mut files = Vec::from(adapter_files(&self.recipe, &state.adapter)?);
        files.push((OPTIMIZER, encode(&state.optimizer)?));
        files.push((STATE, cursor));
        let manifest = Manifest {
            format: FORMAT_VERSION,
            step: state.cursor.step,
            base: self.base.clone(),
            recipe: recipe_digest(&self.recipe),
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), FileDigest::of(bytes))).collect(),
        };
        files.push((MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(TensorError::Json)?));
        Ok(files)
    }

    /// Removes checkpoints once `keep` valid ones are there, after reading back the one of step `newest`. The
    /// newest `keep` valid ones stay. Damaged ones do not count, wherever they are in the order, and nothing
    /// is removed while there are fewer valid ones. What can't be judged is never removed: a checkpoint that
    /// the disk fails to read, or that a newer version has written. Each is read anew: what was valid at its save may
    /// have been damaged since.
    ///
    /// # Errors
    /// If the newest checkpoint is damaged, or an old one can't be removed.
    pub fn prune(&self, newest: u64) -> Result<(), SaveError> {
        if !self.options.guards.atomic_save {
            return Ok(());
        }
        let names = self.names()?;
        if !self.options.guards.verify_before_prune {
            return names.iter().skip(self.options.keep).try_for_each(|name| self.remove_named(name));
        }
        let newest = checkpoint_name(newest);
        self.load(&newest).map_err(SaveError::ReadBack)?;
        if !self.options.guards.valid_prune {
            return names.iter().skip(self.options.keep).try_for_each(|name| self.remove_named(name));
        }
        let is_valid = |name: &str| name == newest || self.load(name).is_ok();
        let removable = removable(&names, self.options.keep, is_valid, |name| self.is_damaged(name));
        removable.into_iter().try_for_each(|name| self.remove_named(name))
    }

    /// Whether the checkpoint can be read and is of no use. One that belongs to another step than its name is
    /// a copy that somebody else has made, and so is one with a name that no save has.
    fn is_damaged(&self, name: &str) -> bool {
        let is_own = step_of_name(name).is_some_and(|step| name == checkpoint_name(step));
        let is_copy = |damage: &CheckpointDamage| matches!(damage, CheckpointDamage::OtherName { .. });
        let is_damage =
            |damage: CheckpointDamage| !is_copy(&damage) && self.kind_of(&damage) == DamageKind::Damaged;
        is_own && self.load(name).is_err_and(is_damage)
    }

    /// Fails if there is no room for these files several times over. Without the guard `space_check`, there is.
    pub(super) fn check_room(&self, files: &[(&str, Vec<u8>)], times: u64) -> Result<(), SaveError> {
        let RequiredSpace { bytes, inodes } = required_space(files);
        if self.options.guards.space_check {
            durable::check_space(&self.dir, RequiredSpace { bytes: bytes * times, inodes: inodes * times })?;
        }
        Ok(())
    }

    /// Path of the checkpoint with this name.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn remove_named(&self, name: &str) -> Result<(), SaveError> {
        Ok(self.remove(&self.dir.join(name))?)
    }

    /// Removes a checkpoint that is no longer needed.
    fn remove(&self, dir: &Path) -> Result<(), DurableError> {
        if self.options.guards.prune_whole {
            durable::remove_atomically(dir, self.sync_policy())
        } else {
            durable::remove_tree(dir)
        }
    }

    /// Reads the newest valid checkpoint.
    ///
    /// # Errors
    /// If all checkpoints are damaged, the newest valid one belongs to another base model or recipe, a newer
    /// version has written one of them, or one can't be read because of the machine.
    /// [`ResumeError::may_pass`] tells the last case.
    pub fn resume(&self) -> Result<ResumePoint, ResumeError> {
        let readers = Readers {
            load: &|name| self.load(name),
            kind_of: &|damage| self.kind_of(damage),
            check_compatible: &|manifest| self.check_compatible(manifest),
        };
        newest_valid(self.names()?, &readers)
    }

    /// What follows from the damage. Without the guard `read_errors`, a checkpoint that can't be read counts
    /// as damaged; without `step_names`, one of a newer version does.
    fn kind_of(&self, damage: &CheckpointDamage) -> DamageKind {
        match damage.kind() {
            DamageKind::ReadError | DamageKind::Machine if !self.options.guards.read_errors => {
                DamageKind::Damaged
            }
            DamageKind::NewerFormat if !self.options.guards.step_names => DamageKind::Damaged,
            kind => kind,
        }
    }

    fn check_compatible(&self, manifest: &Manifest) -> Result<(), ResumeError> {
        if self.options.guards.base_identity && manifest.base != self.base {
            return Err(ResumeError::OtherBase {
                root_base: self.base.clone(),
                checkpoint_base: manifest.base.clone(),
            });
        }
        if manifest.recipe != recipe_digest(&self.recipe) {
            return Err(ResumeError::OtherRecipe);
        }
        Ok(())
    }

    /// Names of the checkpoints, newest first. The order is that of the steps as numbers, not of time stamps.
    ///
    /// # Errors
    /// If the directory can't be listed. If it does not exist, there are no checkpoints.
    pub fn names(&self) -> Result<Vec<String>, FileError> {
        let mut names: Vec<String> = names_in(&self.dir)
            .map_err(file_error("list", &self.dir))?
            .into_iter()
            .filter(|name| name.starts_with(NAME_PREFIX))
            .collect();
        if !self.options.guards.step_order {
            let modified =
                |name: &String| self.dir.join(name).metadata().and_then(|found| found.modified()).ok();
            names.sort_by_cached_key(|name| (modified(name), name.clone()));
            names.reverse();
            return Ok(names);
        }
        let is_numeric = self.options.guards.step_names;
        names.sort_by_cached_key(|name| (step_of_name(name).filter(|_| is_numeric), name.clone()));
        names.reverse();
        Ok(names)
    }

    /// Reads a checkpoint and checks it against its manifest.
    ///
    /// # Errors
    /// If a file is missing, does not match its digest, or is not valid, or the name is not that of the step.
    pub fn load(&self, name: &str) -> Result<(Manifest, TrainState), CheckpointDamage> {
        let (manifest, state) = read_checkpoint(&self.dir.join(name), &self.options.guards)?;
        let is_checked = self.options.guards.step_names && name != IN_PLACE_NAME;
        if is_checked && name != checkpoint_name(manifest.step) {
            return Err(CheckpointDamage::OtherName { step: manifest.step });
        }
        Ok((manifest, state))
    }
}

fn checkpoint_name(step: u64) -> String {
    format!("{NAME_PREFIX}{step:08}")
}

/// The step in a checkpoint's name. `None` sorts before all steps.
fn step_of_name(name: &str) -> Option<u64> {
    name.strip_prefix(NAME_PREFIX)?.parse().ok()
}

/// The names in a directory, which need not exist.
fn names_in(dir: &Path) -> std::io::Result<Vec<String>> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(explained(error, dir, Access::Read)),
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
    }
}

/// BLAKE3 of the recipe as JSON.
fn recipe_digest(recipe: &Recipe) -> String {
    blake3::hash(serde_json::to_string(recipe).unwrap_or_default().as_bytes()).to_hex().to_string()
}

/// The space that a directory with these files needs.
pub fn required_space(files: &[(&str, Vec<u8>)]) -> RequiredSpace {
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64 + FILE_OVERHEAD_BYTES).sum();
    // One more inode for the directory.
    RequiredSpace { bytes, inodes: files.len() as u64 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_error::chain;
    use crate::state::Cursor;

    fn state(step: u64) -> TrainState {
        let cursor = Cursor { step, updates: step, epoch: 0, position: 0, random: Default::default() };
        TrainState { adapter: Vec::new(), optimizer: Vec::new(), cursor }
    }

    fn store(dir: &Path, keep: usize) -> CheckpointStore {
        // Without syncs: there are many saves, and no power loss.
        let options = SaveOptions { guards: Guards { sync: false, ..Guards::default() }, keep };
        CheckpointStore::new(dir.into(), "base".into(), Recipe::default(), options)
    }

    fn save(store: &CheckpointStore, step: u64) {
        store.save(&state(step)).unwrap();
        store.prune(step).unwrap();
    }

    fn resumed_step(dir: &Path) -> u64 {
        store(dir, 1).resume().unwrap().state.unwrap().cursor.step
    }

    /// Each set of damaged checkpoints of five, then saves with each setting of `keep`: after every save, the
    /// one that was just announced can be resumed from, and as many valid ones are there as before, up to
    /// `keep`.
    #[test]
    fn pruning_never_takes_a_valid_checkpoint_because_of_damaged_ones() {
        for damaged in 0..31u32 {
            for keep in 1..=3 {
                let dir = tempfile::tempdir().unwrap();
                let first = store(dir.path(), 5);
                [10, 20, 30, 40, 50].into_iter().for_each(|step| save(&first, step));
                let is_damaged = |step: u64| damaged & (1 << (step / 10 - 1)) != 0;
                let steps = || [10, 20, 30, 40, 50].into_iter();
                for step in steps().filter(|step| is_damaged(*step)) {
                    std::fs::write(dir.path().join(checkpoint_name(step)).join(MANIFEST), "{").unwrap();
                }
                let newest = steps().filter(|step| !is_damaged(*step)).max().unwrap();
                assert_eq!(resumed_step(dir.path()), newest);
                // Another process continues there. It repeats steps whose checkpoints are damaged.
                let second = store(dir.path(), keep);
                let mut valid = steps().filter(|step| !is_damaged(*step)).count();
                for step in [newest + 2, newest + 4, newest + 6] {
                    save(&second, step);
                    valid = (valid + 1).min(keep.max(1)).max(1);
                    let found =
                        second.names().unwrap().iter().filter(|name| second.load(name).is_ok()).count();
                    assert_eq!((resumed_step(dir.path()), found), (step, valid), "{damaged:b} {keep}");
                }
            }
        }
    }

    fn copy_of(dir: &Path, from: u64, name: &str) {
        let (from, to) = (dir.join(checkpoint_name(from)), dir.join(name));
        std::fs::create_dir(&to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }

    /// Changes the manifest of a checkpoint as text.
    fn edit_manifest(dir: &Path, name: &str, edit: impl Fn(String) -> String) {
        let path = dir.join(name).join(MANIFEST);
        std::fs::write(&path, edit(std::fs::read_to_string(&path).unwrap())).unwrap();
    }

    #[test]
    fn the_order_is_that_of_numbers_and_a_name_must_be_that_of_its_step() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 10);
        for step in [99_999_999, 100_000_000, 9, 1_000_000_000] {
            save(&store, step);
        }
        assert_eq!(resumed_step(dir.path()), 1_000_000_000);
        copy_of(dir.path(), 9, "step-2000000000");
        copy_of(dir.path(), 9, "step-9");
        copy_of(dir.path(), 9, "step-x");
        std::os::unix::fs::symlink(checkpoint_name(9), dir.path().join("step-3000000000")).unwrap();
        let resume = store.resume().unwrap();
        let skipped: Vec<String> =
            resume.skipped.iter().map(|skipped| format!("{}: {}", skipped.name, skipped.damage)).collect();
        let expected = [
            "step-3000000000: a symbolic link; links are not followed",
            "step-2000000000: the manifest has step 9; this name belongs to another step",
        ];
        assert_eq!(skipped, expected);
        assert_eq!(resume.state.unwrap().cursor.step, 1_000_000_000);
    }

    #[test]
    fn copies_that_somebody_has_made_are_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1);
        save(&store, 10);
        let copies = ["step-best", "step-9", "step-00000005", "step-00000099", "step-10", "best"];
        copies.into_iter().for_each(|name| copy_of(dir.path(), 10, name));
        [20, 30].into_iter().for_each(|step| save(&store, step));
        assert!(copies.into_iter().all(|name| dir.path().join(name).join(STATE).exists()));
        assert!(
            dir.path().join(checkpoint_name(30)).exists() && !dir.path().join(checkpoint_name(20)).exists()
        );
        assert_eq!(resumed_step(dir.path()), 30);
    }

    #[test]
    fn a_newer_format_is_refused_and_never_removed_whatever_else_is_in_its_manifest() {
        for place in [10, 30, 50] {
            let dir = tempfile::tempdir().unwrap();
            let first = store(dir.path(), 10);
            [10, 20, 30, 40, 50].into_iter().for_each(|step| save(&first, step));
            let newer = |text: String| text.replacen("\"format\": 1", "\"new\": [], \"format\": 2", 1);
            edit_manifest(dir.path(), &checkpoint_name(place), newer);
            let error = store(dir.path(), 1).resume().err();
            match error {
                Some(ResumeError::NewerFormat { name, .. }) => {
                    assert_eq!((name, place), (checkpoint_name(50), 50))
                }
                // An older one does not matter as long as the newest is valid.
                None => assert_ne!(place, 50),
                Some(error) => panic!("{error}"),
            }
            save(&store(dir.path(), 1), 60);
            let expected: Vec<String> = [60, place].map(checkpoint_name).into();
            assert_eq!(first.names().unwrap(), expected);
        }
    }

    fn store_without(dir: &Path, keep: usize, change: impl Fn(&mut Guards)) -> CheckpointStore {
        let mut guards = Guards { sync: false, ..Guards::default() };
        change(&mut guards);
        CheckpointStore::new(dir.into(), "base".into(), Recipe::default(), SaveOptions { guards, keep })
    }

    #[test]
    fn without_valid_prune_the_checkpoint_just_announced_is_removed() {
        for is_on in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let first = store(dir.path(), 5);
            [10, 20, 30].into_iter().for_each(|step| save(&first, step));
            std::fs::write(dir.path().join(checkpoint_name(30)).join(MANIFEST), "{").unwrap();
            save(&store_without(dir.path(), 1, |guards| guards.valid_prune = is_on), 25);
            let resume = store(dir.path(), 1).resume();
            assert_eq!(resume.is_ok_and(|resume| resume.state.is_some()), is_on);
        }
    }

    #[test]
    fn without_step_names_an_old_copy_wins_and_newer_work_is_passed_over() {
        for is_on in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let store = store_without(dir.path(), 10, |guards| guards.step_names = is_on);
            let resumed = || store.resume().map(|resume| resume.state.unwrap().cursor.step);
            [99_999_999, 100_000_000].into_iter().for_each(|step| save(&store, step));
            assert_eq!(resumed().unwrap() == 100_000_000, is_on);
            copy_of(dir.path(), 99_999_999, "step-999999999");
            assert_eq!(resumed().unwrap() == 100_000_000, is_on);
            std::fs::remove_dir_all(dir.path().join("step-999999999")).unwrap();
            for name in [checkpoint_name(100_000_000), checkpoint_name(99_999_999)] {
                edit_manifest(dir.path(), &name, |text| text.replacen("\"format\": 1", "\"format\": 2", 1));
                assert_eq!(matches!(resumed(), Err(ResumeError::NewerFormat { .. })), is_on);
            }
        }
    }

    #[test]
    fn a_manifest_names_files_beside_it_only() {
        let dir = tempfile::tempdir().unwrap();
        save(&store(dir.path(), 1), 10);
        for hostile in ["/dev/zero", "../step-00000010/state.json", "a/b", "..", ""] {
            copy_of(dir.path(), 10, "step-00000020");
            edit_manifest(dir.path(), "step-00000020", |text| {
                let entry = format!("\"files\": {{\"{hostile}\": {{\"bytes\": 1, \"blake3\": \"\"}},");
                text.replacen("\"files\": {", &entry, 1).replacen("\"step\": 10", "\"step\": 20", 1)
            });
            let damage = store(dir.path(), 1).load("step-00000020").unwrap_err();
            assert!(chain(&damage).contains("not the name of a file"), "{}", chain(&damage));
            std::fs::remove_dir_all(dir.path().join("step-00000020")).unwrap();
        }
    }

    #[test]
    fn a_file_that_is_none_is_damage_and_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        save(&store(dir.path(), 3), 10);
        save(&store(dir.path(), 3), 20);
        let state = dir.path().join(checkpoint_name(20)).join(STATE);
        std::fs::remove_file(&state).unwrap();
        nix::unistd::mkfifo(&state, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(resumed_step(dir.path()), 10);
    }

    #[test]
    fn a_directory_that_can_not_be_listed_is_no_start_from_scratch() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = store(&file, 1).resume().err().unwrap();
        assert!(matches!(error, ResumeError::List(_)) && error.may_pass(), "{error}");
        assert!(store(&dir.path().join("none"), 1).resume().unwrap().state.is_none());
    }

    #[test]
    fn errors_of_the_machine_are_no_damage() {
        let kind = |errno: i32| {
            let source = std::io::Error::from_raw_os_error(errno);
            CheckpointDamage::Unreadable { name: STATE.into(), source }.kind()
        };
        use nix::libc::{
            EACCES, EBADMSG, EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOTDIR, ESTALE, ETIMEDOUT, EUCLEAN,
        };
        for errno in [ESTALE, EMFILE, ENFILE, ENOMEM, EACCES, ETIMEDOUT] {
            assert_eq!(kind(errno), DamageKind::Machine, "{errno}");
        }
        for errno in [EIO, EBADMSG, EUCLEAN] {
            assert_eq!(kind(errno), DamageKind::ReadError, "{errno}");
        }
        assert_eq!((kind(ENOENT), kind(ENOTDIR)), (DamageKind::Damaged, DamageKind::Damaged));
    }

    #[test]
    fn a_step_that_is_saved_again_replaces_the_old_one_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path(), 1);
        save(&store, 10);
        let inode =
            || std::os::unix::fs::MetadataExt::ino(&dir.path().join(checkpoint_name(10)).metadata().unwrap());
        let before = inode();
        save(&store, 10);
        assert_ne!(inode(), before);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the old one is gone");
        assert_eq!(resumed_step(dir.path()), 10);
    }

    #[test]
    fn no_save_follows_a_link_that_has_come_to_the_place_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (place, outside) = (dir.path().join("checkpoints/job"), dir.path().join("outside"));
        let store = store(&place, 2);
        save(&store, 10);
        for linked in [place.clone(), dir.path().join("checkpoints")] {
            std::fs::rename(&linked, &outside).unwrap();
            std::os::unix::fs::symlink(&outside, &linked).unwrap();
            let error = store.save(&state(20)).unwrap_err();
            assert!(chain(&error).contains("symbolic link"), "{}", chain(&error));
            std::fs::remove_file(&linked).unwrap();
            std::fs::rename(&outside, &linked).unwrap();
        }
        assert_eq!(resumed_step(&place), 10);
    }
}
