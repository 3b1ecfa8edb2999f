//! Reads one checkpoint and checks it against its manifest. Decides nothing about other checkpoints.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::error::{CheckpointDamage, STATE};
use super::manifest::{FileDigest, Manifest};
use super::tensors::decode;
use crate::bounded_read::read_regular;
use crate::settings::Guards;
use crate::state::{Cursor, TrainState};

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const ADAPTER: &str = "adapter_model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";

/// Largest manifest.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Attempts at a file that the disk fails to read.
const READ_ATTEMPTS: u32 = 3;
/// Wait between two attempts.
const READ_DELAY: Duration = Duration::from_millis(20);

/// The content of `state.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StateFile {
    pub(super) cursor: Cursor,
}

/// Reads a checkpoint's directory. With the guard `manifest_digest`, every file must match its digest in the
/// manifest.
pub(super) fn read_checkpoint(
    dir: &Path,
    guards: &Guards,
) -> Result<(Manifest, TrainState), CheckpointDamage> {
    let check_digests = guards.manifest_digest;
    let attempts = if guards.read_errors { READ_ATTEMPTS } else { 1 };
    let is_link = dir.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    if is_link {
        return Err(CheckpointDamage::Link);
    }
    let manifest = Manifest::parse(&read_file(&dir.join(MANIFEST), MAX_MANIFEST_BYTES, attempts)?)?;
    let checked = |name: &str| {
        let not_listed = || CheckpointDamage::NotInManifest { name: name.to_owned() };
        let expected = manifest.files.get(name).ok_or_else(not_listed)?;
        let max_bytes = if check_digests { expected.bytes } else { u64::MAX - 1 };
        let bytes = read_file(&dir.join(name), max_bytes, attempts)?;
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
    let cursor = match checked(STATE) {
        Err(damage) if !guards.complete_checkpoint && damage.is_missing() => fresh_cursor(manifest.step),
        bytes => serde_json::from_slice::<StateFile>(&bytes?).map_err(CheckpointDamage::State)?.cursor,
    };
    for name in manifest.files.keys().filter(|name| ![STATE, ADAPTER, OPTIMIZER].contains(&name.as_str())) {
        checked(name)?;
    }
    if cursor.step != manifest.step {
        return Err(CheckpointDamage::Step { state: cursor.step, manifest: manifest.step });
    }
    let optimizer = match tensors(OPTIMIZER) {
        Err(damage) if !guards.complete_checkpoint && damage.is_missing() => Vec::new(),
        optimizer => optimizer?,
    };
    let state = TrainState { adapter: tensors(ADAPTER)?, optimizer, cursor };
    Ok((manifest, state))
}

/// What a position is without the guard `complete_checkpoint` if its file is missing: the data begins anew.
fn fresh_cursor(step: u64) -> Cursor {
    Cursor { step, updates: step, epoch: 0, position: 0, random: [1, 2, 3, 4] }
}

/// Reads a file of a checkpoint. An I/O error of the disk may happen once, so it is tried again.
fn read_file(path: &Path, max_bytes: u64, attempts: u32) -> Result<Vec<u8>, CheckpointDamage> {
    let mut attempt = 1;
    loop {
        match read_regular(path, max_bytes) {
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) && attempt < attempts => {
                attempt += 1;
                std::thread::sleep(READ_DELAY);
            }
            result => {
                let name = || path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return result.map_err(|source| CheckpointDamage::Unreadable { name: name(), source });
            }
        }
    }
}
