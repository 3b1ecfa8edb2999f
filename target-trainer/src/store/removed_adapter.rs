//! Removes the adapter of a result whose merged model has been verified, and leaves a note in its place: the
//! result stays complete. Looks at no merged model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::adapter::ADAPTER_FILE;
use crate::bounded_read::read_regular;
use crate::durable::{self, DurableError, SyncPolicy};

/// The file that takes the place of the adapter.
const NOTE_FILE: &str = "adapter_merged.json";
/// Largest note.
const MAX_NOTE_BYTES: u64 = 1 << 16;

#[derive(Serialize, Deserialize)]
struct Note {
    /// Digest of the adapter that was merged.
    adapter: String,
}

/// Whether the result in this directory has its adapter.
pub fn has_adapter(dir: &Path) -> bool {
    dir.join(ADAPTER_FILE).symlink_metadata().is_ok()
}

/// Whether the adapter with this digest was merged and removed.
pub(super) fn is_removed(dir: &Path, adapter: &str) -> bool {
    let note = read_regular(&dir.join(NOTE_FILE), MAX_NOTE_BYTES).ok();
    let note = note.and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
    !has_adapter(dir) && note.is_some_and(|note| note.adapter == adapter)
}

/// Removes the adapter with this digest, durably: the note first. Does nothing if it is gone.
///
/// # Errors
/// If the note can't be written, or the adapter can't be removed.
pub fn remove_merged_adapter(dir: &Path, adapter: &str, sync: SyncPolicy) -> Result<(), DurableError> {
    if !has_adapter(dir) {
        return Ok(());
    }
    let note = Note { adapter: adapter.to_owned() };
    durable::replace(&dir.join(NOTE_FILE), &serde_json::to_vec(&note).unwrap_or_default(), sync)?;
    durable::remove_file(&dir.join(ADAPTER_FILE))?;
    durable::sync_dir(dir, sync)
}
