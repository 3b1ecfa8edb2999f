//! The checkpoints of one job: saved whole or not at all, resumed from the newest that verifies.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adapter::adapter_files;
use super::manifest::{FORMAT_VERSION, FileDigest, Manifest};
use super::tensors::{TensorError, decode, encode};
use crate::durable::{self, DiskErrorKind, DurableError, RequiredSpace, SyncPolicy, TEMPORARY_MARKER};
use crate::settings::Guards;
use crate::train::{Cursor, Recipe, TrainState};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const ADAPTER: &str = "adapter_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Where the only checkpoint lies without the guard `atomic_save`.
const IN_PLACE_NAME: &str = "step-current";
/// Room that a file system takes beside the bytes of the files, for each.
const FILE_OVERHEAD_BYTES: u64 = 4096;

/// How saves are made.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    pub guards: Guards,
    pub keep: usize,
}

/// Why a save was not made. The older checkpoints are as they were.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Nothing was begun.
    #[error("{0}")]
    Deferred(String),
    #[error(transparent)]
    Disk(#[from] DurableError),
    #[error(transparent)]
    Tensors(#[from] TensorError),
    #[error("what was written does not read back: {0}")]
    ReadBack(String),
}

impl SaveError {
    /// Whether the file system is read-only, by word or by deed.
    pub fn is_read_only(&self) -> bool {
        match self {
            SaveError::Disk(error) => error.kind() == DiskErrorKind::ReadOnly,
            SaveError::Deferred(why) => why.contains("read-only"),
            _ => false,
        }
    }
}

/// A checkpoint that can't be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedCheckpoint {
    pub name: String,
    pub reason: String,
}

/// What a run goes on from.
pub struct ResumePoint {
    /// None: from scratch, since there has never been a checkpoint.
    pub state: Option<TrainState>,
    pub skipped: Vec<SkippedCheckpoint>,
}

/// Why a run can't go on.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error(
        "none of the {0} checkpoints verifies; nothing was deleted; restore one, or remove them all to begin from scratch"
    )]
    NoneValid(usize),
    #[error(
        "the checkpoints were made with base {checkpoint_base}, and this root's base is {root_base}; put the right base back"
    )]
    OtherBase { root_base: String, checkpoint_base: String },
    #[error("the checkpoints were made by another recipe; put it back, or submit the data as a new job")]
    OtherRecipe,
}

/// Where a run stands, as a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    cursor: Cursor,
}

/// How carefully checkpoints and adapters are written.
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
    pub fn new(dir: PathBuf, base: String, recipe: Recipe, options: SaveOptions) -> CheckpointStore {
        CheckpointStore { dir, base, recipe, options }
    }

    fn sync_policy(&self) -> SyncPolicy {
        sync_policy(&self.options.guards)
    }

    /// Removes what an earlier process left unfinished.
    pub fn remove_unfinished(&self) -> Result<(), DurableError> {
        let unfinished = |name: &String| name.starts_with(TEMPORARY_MARKER);
        names_in(&self.dir)
            .into_iter()
            .filter(unfinished)
            .try_for_each(|name| durable::remove_tree(&self.dir.join(name)))
    }

    /// Saves; durable when it returns.
    pub fn save(&self, state: &TrainState) -> Result<(), SaveError> {
        let files = self.encode_files(state)?;
        if self.options.guards.space_check {
            durable::check_space(&self.dir, required_space(&files)).map_err(SaveError::Deferred)?;
        }
        durable::create_dir(&self.dir)?;
        if self.options.guards.abort_cleanup {
            // What an earlier save could not take back, since the disk refused that as well; and may refuse again.
            let _ = self.remove_unfinished();
        }
        if !self.options.guards.atomic_save {
            return self.save_in_place(&files);
        }
        let target = self.dir.join(checkpoint_name(state.cursor.step));
        // Left by a run that saved this step and then fell back to an older one.
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
        let to_json = |error: serde_json::Error| TensorError::Format(error.to_string());
        let cursor =
            serde_json::to_vec_pretty(&StateFile { cursor: state.cursor.clone() }).map_err(to_json)?;
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
        files.push((MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(to_json)?));
        Ok(files)
    }

    /// Removes all but the newest `keep`, once the newest has been read back.
    pub fn prune(&self, newest: u64) -> Result<(), SaveError> {
        if !self.options.guards.atomic_save {
            return Ok(());
        }
        if self.options.guards.verify_before_prune {
            self.load(&checkpoint_name(newest)).map_err(SaveError::ReadBack)?;
        }
        for name in self.names().into_iter().skip(self.options.keep) {
            self.remove(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// A checkpoint that is no longer needed.
    fn remove(&self, dir: &Path) -> Result<(), DurableError> {
        match self.options.guards.prune_whole {
            true => durable::remove_atomically(dir, self.sync_policy()),
            false => durable::remove_tree(dir),
        }
    }

    /// The newest checkpoint that verifies.
    pub fn resume(&self) -> Result<ResumePoint, ResumeError> {
        let mut passed_over = Vec::new();
        for name in self.names() {
            match self.load(&name) {
                Ok((manifest, state)) => {
                    self.check_compatible(&manifest)?;
                    return Ok(ResumePoint { state: Some(state), skipped: passed_over });
                }
                Err(reason) => passed_over.push(SkippedCheckpoint { name, reason }),
            }
        }
        match passed_over.len() {
            0 => Ok(ResumePoint { state: None, skipped: passed_over }),
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

    /// Names of the checkpoints that are there, the newest first: by step, never by time stamps.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            names_in(&self.dir).into_iter().filter(|name| name.starts_with("step-")).collect();
        names.sort();
        names.reverse();
        names
    }

    /// Reads one and checks it against its manifest. The error says what is wrong.
    pub fn load(&self, name: &str) -> Result<(Manifest, TrainState), String> {
        read_checkpoint(&self.dir.join(name), self.options.guards.manifest_digest)
    }
}

/// Reads a checkpoint's folder; `digests`: every file must have its manifest's digest.
fn read_checkpoint(dir: &Path, digests: bool) -> Result<(Manifest, TrainState), String> {
    let read = |name: &str| std::fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}"));
    let manifest = Manifest::parse(&read(MANIFEST)?)?;
    let checked = |name: &str| {
        let bytes = read(name)?;
        let expected = manifest.files.get(name).ok_or_else(|| format!("{name}: not in the manifest"))?;
        if digests && FileDigest::of(&bytes) != *expected {
            return Err(format!(
                "{name}: {} bytes that are not those of the manifest ({} bytes, blake3 {}..)",
                bytes.len(),
                expected.bytes,
                short_digest(&expected.blake3)
            ));
        }
        Ok(bytes)
    };
    let tensors = |name: &str| {
        checked(name).and_then(|bytes| decode(&bytes).map_err(|error| format!("{name}: {error}")))
    };
    let state: StateFile =
        serde_json::from_slice(&checked(STATE)?).map_err(|error| format!("{STATE}: {error}"))?;
    for name in manifest.files.keys().filter(|name| ![STATE, ADAPTER, OPTIMIZER].contains(&name.as_str())) {
        checked(name)?;
    }
    if state.cursor.step != manifest.step {
        return Err(format!(
            "{STATE} is of step {}, the manifest of step {}",
            state.cursor.step, manifest.step
        ));
    }
    let state =
        TrainState { adapter: tensors(ADAPTER)?, optimizer: tensors(OPTIMIZER)?, cursor: state.cursor };
    Ok((manifest, state))
}

fn short_digest(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Digest of all that decides the weights.
fn recipe_digest(recipe: &Recipe) -> String {
    blake3::hash(serde_json::to_string(recipe).unwrap_or_default().as_bytes()).to_hex().to_string()
}

fn required_space(files: &[(&str, Vec<u8>)]) -> RequiredSpace {
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64 + FILE_OVERHEAD_BYTES).sum();
    // The folder itself is one more.
    RequiredSpace { bytes, inodes: files.len() as u64 + 1 }
}
