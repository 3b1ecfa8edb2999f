//! The checkpoints of one job: saves each one completely or not at all, and resumes from the newest valid
//! one. Knows nothing of the engine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::adapter::adapter_files;
use super::error::{CheckpointDamage, ResumeError, STATE, SaveError};
use super::manifest::{FORMAT_VERSION, FileDigest, Manifest};
use super::tensors::{TensorError, decode, encode};
use crate::durable::{self, DurableError, RequiredSpace, SyncPolicy, TEMPORARY_MARKER};
use crate::locks::LockExt;
use crate::settings::Guards;
use crate::state::{Cursor, Recipe, TrainState};

const MANIFEST: &str = "manifest.json";
const ADAPTER: &str = "adapter_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
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

/// A damaged checkpoint, and what is wrong with it.
#[derive(Debug)]
pub struct SkippedCheckpoint {
    /// Name of its directory.
    pub name: String,
    /// What is wrong with it.
    pub damage: CheckpointDamage,
}

/// What a run resumes from.
pub struct ResumePoint {
    /// `None` if there is no checkpoint: the run starts at step 0.
    pub state: Option<TrainState>,
    /// Newer checkpoints that are damaged.
    pub skipped: Vec<SkippedCheckpoint>,
}

/// The content of `state.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    cursor: Cursor,
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
    /// Names of the checkpoints that this process has read back and found to be valid.
    verified: Mutex<BTreeSet<String>>,
}

impl CheckpointStore {
    /// The checkpoints in `dir`. `base` is the digest of the base model.
    pub fn new(dir: PathBuf, base: String, recipe: Recipe, options: SaveOptions) -> CheckpointStore {
        CheckpointStore { dir, base, recipe, options, verified: Mutex::new(BTreeSet::new()) }
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
        names_in(&self.dir)
            .into_iter()
            .filter(unfinished)
            .try_for_each(|name| durable::remove_tree(&self.dir.join(name)))
    }

    /// Saves a checkpoint. It is durable when this function returns.
    ///
    /// # Errors
    /// If the checkpoint could not be written. See [`SaveError`].
    pub fn save(&self, state: &TrainState) -> Result<(), SaveError> {
        let files = self.encode_files(state)?;
        if self.options.guards.space_check {
            durable::check_space(&self.dir, required_space(&files))?;
        }
        durable::create_dir(&self.dir)?;
        if self.options.guards.abort_cleanup {
            // An earlier save may have failed to remove its files. This attempt may fail again, which is
            // harmless.
            let _ = self.remove_unfinished();
        }
        if !self.options.guards.atomic_save {
            return self.save_in_place(&files);
        }
        let target = self.dir.join(checkpoint_name(state.cursor.step));
        // The directory exists if a run saved this step and a later run resumed from an older one.
        self.verified.locked().remove(&checkpoint_name(state.cursor.step));
        self.remove(&target)?;
        durable::write_dir(&target, &files, self.sync_policy(), self.options.guards.abort_cleanup)?;
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
    /// is removed while there are fewer valid ones.
    ///
    /// # Errors
    /// If the newest checkpoint is damaged, or an old one can't be removed.
    pub fn prune(&self, newest: u64) -> Result<(), SaveError> {
        if !self.options.guards.atomic_save {
            return Ok(());
        }
        if !self.options.guards.verify_before_prune {
            return self.names().iter().skip(self.options.keep).try_for_each(|name| self.remove_named(name));
        }
        let newest = checkpoint_name(newest);
        self.load(&newest).map_err(SaveError::ReadBack)?;
        self.verified.locked().insert(newest);
        let names = self.names();
        let mut kept: Vec<&String> = Vec::new();
        for name in &names {
            if kept.len() < self.options.keep && self.is_verified(name) {
                kept.push(name);
            }
        }
        if kept.len() < self.options.keep {
            return Ok(());
        }
        names.iter().filter(|name| !kept.contains(name)).try_for_each(|name| self.remove_named(name))
    }

    /// Whether the checkpoint is valid. It is read once by each process.
    fn is_verified(&self, name: &str) -> bool {
        if self.verified.locked().contains(name) {
            return true;
        }
        let is_valid = self.load(name).is_ok();
        if is_valid {
            self.verified.locked().insert(name.to_owned());
        }
        is_valid
    }

    fn remove_named(&self, name: &str) -> Result<(), SaveError> {
        self.verified.locked().remove(name);
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
    /// If all checkpoints are damaged, or the newest valid one belongs to another base model or recipe.
    pub fn resume(&self) -> Result<ResumePoint, ResumeError> {
        let mut skipped = Vec::new();
        for name in self.names() {
            match self.load(&name) {
                Ok((manifest, state)) => {
                    self.check_compatible(&manifest)?;
                    return Ok(ResumePoint { state: Some(state), skipped });
                }
                Err(damage) => skipped.push(SkippedCheckpoint { name, damage }),
            }
        }
        match skipped.len() {
            0 => Ok(ResumePoint { state: None, skipped }),
            count => Err(ResumeError::NoneValid(count)),
        }
    }

    fn check_compatible(&self, manifest: &Manifest) -> Result<(), ResumeError> {
        if manifest.base != self.base {
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

    /// Names of the checkpoints, newest first. The order is that of the steps, not of time stamps.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            names_in(&self.dir).into_iter().filter(|name| name.starts_with("step-")).collect();
        names.sort();
        names.reverse();
        names
    }

    /// Reads a checkpoint and checks it against its manifest.
    ///
    /// # Errors
    /// If a file is missing, does not match its digest, or is not valid.
    pub fn load(&self, name: &str) -> Result<(Manifest, TrainState), CheckpointDamage> {
        read_checkpoint(&self.dir.join(name), self.options.guards.manifest_digest)
    }
}

/// Reads a checkpoint's directory. With `check_digests`, every file must match its digest in the manifest.
fn read_checkpoint(dir: &Path, check_digests: bool) -> Result<(Manifest, TrainState), CheckpointDamage> {
    let read = |name: &str| {
        let unreadable = |source| CheckpointDamage::Unreadable { name: name.to_owned(), source };
        std::fs::read(dir.join(name)).map_err(unreadable)
    };
    let manifest = Manifest::parse(&read(MANIFEST)?)?;
    let checked = |name: &str| {
        let bytes = read(name)?;
        let not_listed = || CheckpointDamage::NotInManifest { name: name.to_owned() };
        let expected = manifest.files.get(name).ok_or_else(not_listed)?;
        if check_digests && FileDigest::of(&bytes) != *expected {
            return Err(CheckpointDamage::Digest {
                name: name.to_owned(),
                len_bytes: bytes.len(),
                expected: expected.clone(),
            });
        }
        Ok(bytes)
    };
    let tensors = |name: &str| {
        let not_tensors = |source| CheckpointDamage::Tensors { name: name.to_owned(), source };
        checked(name).and_then(|bytes| decode(&bytes).map_err(not_tensors))
    };
    let state: StateFile = serde_json::from_slice(&checked(STATE)?).map_err(CheckpointDamage::State)?;
    for name in manifest.files.keys().filter(|name| ![STATE, ADAPTER, OPTIMIZER].contains(&name.as_str())) {
        checked(name)?;
    }
    if state.cursor.step != manifest.step {
        return Err(CheckpointDamage::Step { state: state.cursor.step, manifest: manifest.step });
    }
    let state =
        TrainState { adapter: tensors(ADAPTER)?, optimizer: tensors(OPTIMIZER)?, cursor: state.cursor };
    Ok((manifest, state))
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// BLAKE3 of the recipe as JSON.
fn recipe_digest(recipe: &Recipe) -> String {
    blake3::hash(serde_json::to_string(recipe).unwrap_or_default().as_bytes()).to_hex().to_string()
}

fn required_space(files: &[(&str, Vec<u8>)]) -> RequiredSpace {
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64 + FILE_OVERHEAD_BYTES).sum();
    // One more inode for the directory.
    RequiredSpace { bytes, inodes: files.len() as u64 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                    let found = second.names().iter().filter(|name| second.load(name).is_ok()).count();
                    assert_eq!((resumed_step(dir.path()), found), (step, valid), "{damaged:b} {keep}");
                }
            }
        }
    }
}
