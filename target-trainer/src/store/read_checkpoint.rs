//! Reads one checkpoint and checks it against its manifest. Decides nothing about other checkpoints.

use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::error::{CheckpointDamage, STATE};
use super::manifest::{FileDigest, Manifest};
use super::tensors::decode;
use crate::bounded_read::read_regular;
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

/// Reads a checkpoint's directory. With `check_digests`, every file must match its digest in the manifest.
pub(super) fn read_checkpoint(
    dir: &Path,
    check_digests: bool,
) -> Result<(Manifest, TrainState), CheckpointDamage> {
    let is_link = dir.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    if is_link {
        return Err(CheckpointDamage::Link);
    }
    let manifest = Manifest::parse(&read_file(dir, MANIFEST, MAX_MANIFEST_BYTES)?)?;
    let checked = |name: &str| {
        let not_listed = || CheckpointDamage::NotInManifest { name: name.to_owned() };
        let expected = manifest.files.get(name).ok_or_else(not_listed)?;
        let max_bytes = if check_digests { expected.bytes } else { u64::MAX - 1 };
        let bytes = read_file(dir, name, max_bytes)?;
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

/// Reads a file of a checkpoint. An I/O error of the disk may happen once, so it is tried again.
fn read_file(dir: &Path, name: &str, max_bytes: u64) -> Result<Vec<u8>, CheckpointDamage> {
    let unreadable = |source| CheckpointDamage::Unreadable { name: name.to_owned(), source };
    for _ in 1..READ_ATTEMPTS {
        match read_regular(&dir.join(name), max_bytes) {
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => std::thread::sleep(READ_DELAY),
            result => return result.map_err(unreadable),
        }
    }
    read_regular(&dir.join(name), max_bytes).map_err(unreadable)
}
