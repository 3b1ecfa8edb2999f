//! The manifest of a checkpoint: the size and the digest of each file. It is written last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::names::is_file_name;
use crate::plain_text::shown;

/// Version of the checkpoint format.
pub const FORMAT_VERSION: u32 = 1;

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the checkpoint format, see [`FORMAT_VERSION`].
    pub format: u32,
    /// Step that the checkpoint was saved at.
    pub step: u64,
    /// BLAKE3 of the base model's files.
    pub base: String,
    /// BLAKE3 of the recipe.
    pub recipe: String,
    /// All other files of the checkpoint, by name.
    pub files: BTreeMap<String, FileDigest>,
}

/// The one key that every format has.
#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

/// The size and the digest of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
}

impl FileDigest {
    /// The digest of these bytes.
    pub(super) fn of(bytes: &[u8]) -> FileDigest {
        FileDigest { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }
}

/// Why a manifest is not valid.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not the JSON of a manifest.
    #[error("manifest.json")]
    Json(#[source] serde_json::Error),
    /// A newer version has written it.
    #[error("manifest.json: format {format} is newer than {FORMAT_VERSION}, the newest supported format")]
    TooNew { format: u64 },
    /// A name leads out of the checkpoint.
    #[error("manifest.json: `{}` is not the name of a file", shown(.0))]
    FileName(String),
}

impl Manifest {
    /// Parses a manifest.
    ///
    /// # Errors
    /// If it is not valid, or from a newer version.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        // A newer format may have other keys too.
        let FormatOnly { format } = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        if format > u64::from(FORMAT_VERSION) {
            return Err(ManifestError::TooNew { format });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        match manifest.files.keys().find(|name| !is_file_name(name)) {
            Some(name) => Err(ManifestError::FileName(name.clone())),
            None => Ok(manifest),
        }
    }
}
