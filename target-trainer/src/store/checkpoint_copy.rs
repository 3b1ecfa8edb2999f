//! Copies the newest valid checkpoint of one store to another one: a snapshot, or its way back. Every byte is
//! checked against the manifest before it is written.

use std::path::Path;

use super::checkpoint::CheckpointStore;
use super::error::{CheckpointDamage, SaveError};
use super::manifest::{FileDigest, Manifest};
use super::read_checkpoint::MANIFEST;
use crate::bounded_read::read_regular;

/// Largest manifest.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// How often a copy must fit: training may save at the same time, and comes first.
const ROOM: u64 = 4;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiedCheckpoint {
    /// The checkpoint of this step.
    Step(u64),
    /// Nothing: the newest valid one is there already, or there is none.
    Nothing,
}

impl CheckpointStore {
    /// Copies the newest valid checkpoint to `copies`, then removes copies beyond the number that is kept,
    /// after reading back the new one. Another process may save and prune here at the same time.
    ///
    /// # Errors
    /// If the checkpoints can't be listed, the copy can't be written, or it is damaged.
    pub fn copy_newest_to(&self, copies: &CheckpointStore) -> Result<CopiedCheckpoint, SaveError> {
        for name in self.names()? {
            let Ok((manifest, _)) = self.load(&name) else { continue };
            let is_there = copies.load(&name).is_ok_and(|(copy, _)| copy == manifest);
            if is_there {
                return Ok(CopiedCheckpoint::Nothing);
            }
            // It may have been removed since: an older one is no use then, and there is a newer one.
            let Ok(files) = self.files_of(&name, &manifest) else { continue };
            let files: Vec<(&str, Vec<u8>)> =
                files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
            copies.check_room(&files, ROOM)?;
            copies.write_checkpoint(manifest.step, &files)?;
            copies.prune(manifest.step)?;
            return Ok(CopiedCheckpoint::Step(manifest.step));
        }
        Ok(CopiedCheckpoint::Nothing)
    }

    /// The bytes of a checkpoint, the manifest last.
    fn files_of(&self, name: &str, manifest: &Manifest) -> Result<Vec<(String, Vec<u8>)>, CheckpointDamage> {
        let dir = self.path_of(name);
        let read = |dir: &Path, name: &str, max_bytes| {
            let read = read_regular(&dir.join(name), max_bytes);
            read.map_err(|source| CheckpointDamage::Unreadable { name: name.to_owned(), source })
        };
        let mut files = Vec::new();
        for (name, expected) in &manifest.files {
            let bytes = read(&dir, name, expected.bytes)?;
            if FileDigest::of(&bytes) != *expected {
                let (name, len_bytes) = (name.clone(), bytes.len());
                return Err(CheckpointDamage::Digest { name, len_bytes, expected: expected.clone() });
            }
            files.push((name.clone(), bytes));
        }
        files.push((MANIFEST.to_owned(), read(&dir, MANIFEST, MAX_MANIFEST_BYTES)?));
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Guards;
    use crate::state::{Cursor, Recipe, TrainState};
    use crate::store::SaveOptions;

    fn store(dir: &Path, keep: usize) -> CheckpointStore {
        // Without syncs: there are many saves, and no power loss.
        let options = SaveOptions { guards: Guards { sync: false, ..Guards::default() }, keep };
        CheckpointStore::new(dir.into(), "base".into(), Recipe::default(), options)
    }

    fn save(store: &CheckpointStore, step: u64) {
        let cursor = Cursor { step, updates: step, epoch: 0, position: 0, random: Default::default() };
        store.save(&TrainState { adapter: Vec::new(), optimizer: Vec::new(), cursor }).unwrap();
    }

    fn resumed(store: &CheckpointStore) -> Option<u64> {
        store.resume().unwrap().state.map(|state| state.cursor.step)
    }

    #[test]
    fn the_newest_valid_checkpoint_is_copied_once_and_the_last_good_copy_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (source, copies) = (dir.path().join("source"), dir.path().join("copies"));
        let (checkpoints, snapshots) = (store(&source, 9), store(&copies, 2));
        assert_eq!(checkpoints.copy_newest_to(&snapshots).unwrap(), CopiedCheckpoint::Nothing);
        for step in [10, 20, 30] {
            save(&checkpoints, step);
            assert_eq!(checkpoints.copy_newest_to(&snapshots).unwrap(), CopiedCheckpoint::Step(step));
            assert_eq!(checkpoints.copy_newest_to(&snapshots).unwrap(), CopiedCheckpoint::Nothing);
        }
        assert_eq!(snapshots.names().unwrap(), ["step-00000030", "step-00000020"]);
        // A damaged checkpoint is not copied, and a damaged copy is made anew.
        save(&checkpoints, 40);
        std::fs::write(source.join("step-00000040/state.json"), "{}").unwrap();
        assert_eq!(checkpoints.copy_newest_to(&snapshots).unwrap(), CopiedCheckpoint::Nothing);
        std::fs::write(copies.join("step-00000030/state.json"), "{}").unwrap();
        assert_eq!(resumed(&snapshots), Some(20));
        assert_eq!(checkpoints.copy_newest_to(&snapshots).unwrap(), CopiedCheckpoint::Step(30));
        assert_eq!(resumed(&snapshots), Some(30));
        // Without a source, nothing changes.
        std::fs::remove_dir_all(&source).unwrap();
        assert_eq!(checkpoints.copy_newest_to(&snapshots).unwrap(), CopiedCheckpoint::Nothing);
        assert_eq!(resumed(&snapshots), Some(30));
    }
}
