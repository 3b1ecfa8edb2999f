//! The manifest of a checkpoint: written last, it says what every file must be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of the checkpoint's format.
pub const FORMAT_VERSION: u32 = 1;

/// What a checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    pub step: u64,
    /// BLAKE3 of the base's files.
    pub base: String,
    /// BLAKE3 of the recipe.
    pub recipe: String,
    pub files: BTreeMap<String, FileDigest>,
}

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    pub bytes: u64,
    pub blake3: String,
}

impl FileDigest {
    pub(super) fn of(bytes: &[u8]) -> FileDigest {
        FileDigest { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

impl Manifest {
    /// Reads a manifest; the error says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|error| format!("manifest.json: {error}"))?;
        if manifest.format > FORMAT_VERSION {
            return Err(format!(
                "manifest.json: format {} is newer than {FORMAT_VERSION}, the newest that this version knows",
                manifest.format
            ));
        }
        Ok(manifest)
    }
}
