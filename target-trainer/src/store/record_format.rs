//! The format of records in JSON: a number that each has, so that a later version's is not taken for damaged or for
//! one of today.

use serde::Deserialize;

/// The newest format of a record that this version knows. A record without a number is of the first.
pub const RECORD_FORMAT: u32 = 1;

/// A record that a newer version has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has format {format}, which is newer than {RECORD_FORMAT}, the newest supported format; use the version that has \
     written it"
)]
pub struct NewerFormat {
    format: u64,
}

/// The one key that every format has.
#[derive(Deserialize)]
struct RecordFormat {
    #[serde(default)]
    format: u64,
}

/// Finds out whether a newer version has written a record. What is no record is not newer.
///
/// # Errors
/// If so.
pub fn refuse_newer(bytes: &[u8]) -> Result<(), NewerFormat> {
    match serde_json::from_slice(bytes) {
        Ok(RecordFormat { format }) if format > u64::from(RECORD_FORMAT) => Err(NewerFormat { format }),
        _ => Ok(()),
    }
}
