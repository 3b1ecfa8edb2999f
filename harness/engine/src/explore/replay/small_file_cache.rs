//! Keeps the contents of small files in memory, so that each is read from the recording once. Knows no trees.

use std::collections::HashMap;
use std::io::Error;
use std::sync::{Arc, Mutex};

use crate::explore::record::{ContentReader, FileContent};
use crate::locks::LockExt;

/// Up to this size, writing a file is as fast as moving it.
pub(super) const MAX_SMALL_FILE_BYTES: u64 = 16 * 1024;
/// At most this many bytes of small contents are kept in memory.
const MAX_CACHED_BYTES: usize = 64 * 1024 * 1024;

type CachedBytes = Arc<Vec<u8>>;

/// The contents of small files, shared by all materializers.
#[derive(Default)]
pub(super) struct SmallFileCache {
    cached: Mutex<CachedFiles>,
}

#[derive(Default)]
struct CachedFiles {
    /// How many bytes all contents have.
    len_bytes: usize,
    by_digest: HashMap<[u8; 16], CachedBytes>,
}

impl SmallFileCache {
    /// The bytes of a content, which is not larger than [`MAX_SMALL_FILE_BYTES`].
    ///
    /// # Errors
    /// A recorded byte cannot be read.
    pub(super) fn bytes(
        &self,
        content: &FileContent,
        reader: &mut ContentReader<'_>,
    ) -> Result<CachedBytes, Error> {
        let digest = content.digest();
        if let Some(bytes) = self.cached.locked().by_digest.get(&digest) {
            return Ok(bytes.clone());
        }
        let bytes = Arc::new(content.head(reader, MAX_SMALL_FILE_BYTES)?);
        let mut cached = self.cached.locked();
        if cached.len_bytes < MAX_CACHED_BYTES {
            cached.len_bytes += bytes.len();
            cached.by_digest.insert(digest, bytes.clone());
        }
        Ok(bytes)
    }
}
