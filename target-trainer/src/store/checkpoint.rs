//! The checkpoints of one job: saved whole or not at all, resumed from the newest that verifies.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adapter::adapter_files;
use super::manifest::{FORMAT, FileFacts, Manifest};
use super::tensors::{TensorError, decode, encode};
use crate::durable::{self, Care, DurableError, Need, Refusal, TEMPORARY};
use crate::settings::Guards;
use crate::train::{Cursor, Recipe, TrainState};

const MANIFEST: &str = "manifest.json";
const STATE: &str = "state.json";
const ADAPTER: &str = "adapter_model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Where the only checkpoint lies without the guard `atomic_save`.
const IN_PLACE: &str = "step-current";
/// Room that a file system takes beside the bytes of the files, for each.
const OVERHEAD: u64 = 4096;

/// How saves are made.
#[derive(Debug, Clone)]
pub struct SaveRules {
    pub guards: Guards,
    pub keep: usize,
}

/// Why a save was not made. The older checkpoints are as they were.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Nothing was begun.
    #[error("{0}")]
    PutOff(String),
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
            SaveError::Disk(error) => error.refusal() == Refusal::ReadOnly,
            SaveError::PutOff(why) => why.contains("read-only"),
            _ => false,
        }
    }
}

/// A checkpoint that can't be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    pub name: String,
    pub reason: String,
}

/// What a run goes on from.
pub struct Resume {
    /// None: from scratch, since there has never been a checkpoint.
    pub state: Option<TrainState>,
    pub passed_over: Vec<PassedOver>,
}

/// Why a run can't go on.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "none of the {0} checkpoints verifies; nothing was deleted; restore one, or remove them all to begin from scratch"
    )]
    NoneGood(usize),
    #[error(
        "the checkpoints were made with base {theirs}, and this root's base is {ours}; put the right base back"
    )]
    OtherBase { ours: String, theirs: String },
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
pub fn care(guards: &Guards) -> Care {
    match guards {
        Guards { sync: false, .. } => Care::Unsynced,
        Guards { folder_sync: false, .. } => Care::UnsyncedFolders,
        Guards { sync_errors: false, .. } => Care::UnheededSync,
        Guards { whole_writes: false, .. } => Care::HastyWrites,
        _ => Care::Full,
    }
}

/// The checkpoints of one job.
pub struct Checkpoints {
    dir: PathBuf,
    base: String,
    recipe: Recipe,
    rules: SaveRules,
}

impl Checkpoints {
    pub fn new(dir: PathBuf, base: String, recipe: Recipe, rules: SaveRules) -> Checkpoints {
        Checkpoints { dir, base, recipe, rules }
    }

    fn care(&self) -> Care {
        care(&self.rules.guards)
    }

    /// Removes what an earlier process left unfinished.
    pub fn clean(&self) -> Result<(), DurableError> {
        let unfinished = |name: &String| name.starts_with(TEMPORARY);
        names_in(&self.dir)
            .into_iter()
            .filter(unfinished)
            .try_for_each(|name| durable::remove_tree(&self.dir.join(name)))
    }

    /// Saves; durable when it returns.
    pub fn save(&self, state: &TrainState) -> Result<(), SaveError> {
        let files = self.files(state)?;
        if self.rules.guards.space_check {
            durable::check(&self.dir, need(&files)).map_err(SaveError::PutOff)?;
        }
        durable::create_dir(&self.dir)?;
        if self.rules.guards.abort_cleanup {
            // What an earlier save could not take back, since the disk refused that as well; and may refuse again.
            let _ = self.clean();
        }
        if !self.rules.guards.atomic_save {
            return self.save_in_place(&files);
        }
        let target = self.dir.join(name_of(state.cursor.step));
        // Left by a run that saved this step and then fell back to an older one.
        self.remove(&target)?;
        durable::write_dir(&target, &files, self.care(), self.rules.guards.abort_cleanup)?;
        if let Some(parent) = self.dir.parent() {
            durable::sync_dir(parent, self.care())?;
        }
        Ok(())
    }

    fn save_in_place(&self, files: &[(&str, Vec<u8>)]) -> Result<(), SaveError> {
        let target = self.dir.join(IN_PLACE);
        durable::create_dir(&target)?;
        for (name, bytes) in files {
            durable::write_in_place(&target.join(name), bytes, self.care())?;
        }
        durable::sync_dir(&target, self.care())?;
        Ok(())
    }

    fn files(&self, state: &TrainState) -> Result<Vec<(&'static str, Vec<u8>)>, SaveError> {
        let to_json = |error: serde_json::Error| TensorError::Format(error.to_string());
        let cursor =
            serde_json::to_vec_pretty(&StateFile { cursor: state.cursor.clone() }).map_err(to_json)?;
        let mut files = Vec::from(adapter_files(&self.recipe, &state.adapter)?);
        files.push((OPTIMIZER, encode(&state.optimizer)?));
        files.push((STATE, cursor));
        let manifest = Manifest {
            format: FORMAT,
            step: state.cursor.step,
            base: self.base.clone(),
            recipe: recipe_digest(&self.recipe),
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), FileFacts::of(bytes))).collect(),
        };
        files.push((MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(to_json)?));
        Ok(files)
    }

    /// Removes all but the newest `keep`, once the newest has been read back.
    pub fn prune(&self, newest: u64) -> Result<(), SaveError> {
        if !self.rules.guards.atomic_save {
            return Ok(());
        }
        if self.rules.guards.verify_before_prune {
            self.load(&name_of(newest)).map_err(SaveError::ReadBack)?;
        }
        for name in self.names().into_iter().skip(self.rules.keep) {
            self.remove(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// A checkpoint that is no longer needed.
    fn remove(&self, dir: &Path) -> Result<(), DurableError> {
        match self.rules.guards.prune_whole {
            true => durable::remove_whole(dir, self.care()),
            false => durable::remove_tree(dir),
        }
    }

    /// The newest checkpoint that verifies.
    pub fn resume(&self) -> Result<Resume, LoadError> {
        let mut passed_over = Vec::new();
        for name in self.names() {
            match self.load(&name) {
                Ok((manifest, state)) => {
                    self.must_fit(&manifest)?;
                    return Ok(Resume { state: Some(state), passed_over });
                }
                Err(reason) => passed_over.push(PassedOver { name, reason }),
            }
        }
        match passed_over.len() {
            0 => Ok(Resume { state: None, passed_over }),
            count => Err(LoadError::NoneGood(count)),
        }
    }

    fn must_fit(&self, manifest: &Manifest) -> Result<(), LoadError> {
        if manifest.base != self.base {
            return Err(LoadError::OtherBase { ours: self.base.clone(), theirs: manifest.base.clone() });
        }
        if manifest.recipe != recipe_digest(&self.recipe) {
            return Err(LoadError::OtherRecipe);
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
        load(&self.dir.join(name), self.rules.guards.manifest_digest)
    }
}

/// Reads a checkpoint's folder; `digests`: every file must have its manifest's digest.
fn load(dir: &Path, digests: bool) -> Result<(Manifest, TrainState), String> {
    let read = |name: &str| std::fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}"));
    let manifest = Manifest::parse(&read(MANIFEST)?)?;
    let checked = |name: &str| {
        let bytes = read(name)?;
        let expected = manifest.files.get(name).ok_or_else(|| format!("{name}: not in the manifest"))?;
        if digests && FileFacts::of(&bytes) != *expected {
            return Err(format!(
                "{name}: {} bytes that are not those of the manifest ({} bytes, blake3 {}..)",
                bytes.len(),
                expected.bytes,
                short(&expected.blake3)
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

fn short(digest: &str) -> &str {
    digest.get(..8).unwrap_or(digest)
}

fn name_of(step: u64) -> String {
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

fn need(files: &[(&str, Vec<u8>)]) -> Need {
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64 + OVERHEAD).sum();
    // The folder itself is one more.
    Need { bytes, inodes: files.len() as u64 + 1 }
}
