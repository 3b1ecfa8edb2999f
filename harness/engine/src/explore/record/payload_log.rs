//! The log of all bytes that the target writes. Small equal payloads of several calls share one place in it.
//! Knows neither files nor operations.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Error, Write};
use std::path::Path;

/// Payloads up to this size are deduplicated, so that equal writes have equal content.
const MAX_DEDUP_BYTES: usize = 64 * 1024;

/// Appends the payloads of calls, one call after the other.
pub(super) struct PayloadLog {
    file: BufWriter<File>,
    len_bytes: u64,
    /// Where the current call's bytes begin.
    start: u64,
    /// The first bytes of the current call's payload.
    head: Vec<u8>,
    /// Where each small payload starts, by its digest.
    offset_by_digest: HashMap<[u8; 32], u64>,
}

impl PayloadLog {
    /// Creates the file.
    pub(super) fn create(path: &Path) -> Result<PayloadLog, Error> {
        Ok(PayloadLog {
            file: BufWriter::with_capacity(MAX_DEDUP_BYTES, File::create_new(path)?),
            len_bytes: 0,
            start: 0,
            head: Vec::new(),
            offset_by_digest: HashMap::new(),
        })
    }

    /// What is appended from now on belongs to another call.
    pub(super) fn begin_payload(&mut self) {
        self.start = self.len_bytes;
        self.head.clear();
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if (self.head.len() as u64) == self.len_bytes - self.start
            && self.head.len() + bytes.len() <= MAX_DEDUP_BYTES
        {
            self.head.extend_from_slice(bytes);
        }
        self.len_bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    /// How many bytes were appended so far.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The first bytes of the current call's payload: all of them, if the payload is small.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The offset of the current payload, of this length: that of an earlier, equal payload, if it is small.
    pub(super) fn offset_of_payload(&mut self, len_bytes: u64) -> u64 {
        if len_bytes as usize == self.head.len() {
            let digest = *blake3::hash(&self.head).as_bytes();
            return *self.offset_by_digest.entry(digest).or_insert(self.start);
        }
        self.start
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.file.flush()
    }
}
