//! The log of all bytes that the target writes. Small equal payloads of several calls share one place in it.
//! Knows neither files nor operations.

use std::collections::HashMap;
use std::fs::File;
use std::io::Error;
use std::path::Path;

use super::background_file::BackgroundFile;

/// Payloads up to this size are deduplicated, so that equal writes have equal content.
const MAX_DEDUP_BYTES: usize = 64 * 1024;

/// The bytes of one call.
#[derive(Default)]
pub(super) struct Payload {
    /// Where they begin.
    start: u64,
    len_bytes: u64,
    /// The first of them: all of them, if they are few.
    head: Vec<u8>,
}

/// Appends the payloads of calls, one call after the other.
pub(super) struct PayloadLog {
    file: BackgroundFile,
    len_bytes: u64,
    current: Payload,
    /// Where each small payload starts, by its digest.
    offset_by_digest: HashMap<[u8; 32], u64>,
}

impl PayloadLog {
    /// Creates the file.
    pub(super) fn create(path: &Path) -> Result<PayloadLog, Error> {
        Ok(PayloadLog {
            file: BackgroundFile::new(File::create_new(path)?),
            len_bytes: 0,
            current: Payload::default(),
            offset_by_digest: HashMap::new(),
        })
    }

    /// What is appended from now on belongs to another call.
    pub(super) fn begin_payload(&mut self) {
        self.current.start = self.len_bytes;
        self.current.len_bytes = 0;
        self.current.head.clear();
    }

    /// The payload of the current call, so that others can be appended before the call is recorded.
    pub(super) fn take_payload(&mut self) -> Payload {
        std::mem::take(&mut self.current)
    }

    /// Goes on with a payload to which nothing more is appended.
    pub(super) fn resume_payload(&mut self, payload: Payload) {
        self.current = payload;
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let current = &mut self.current;
        if current.head.len() as u64 == current.len_bytes
            && current.head.len() + bytes.len() <= MAX_DEDUP_BYTES
        {
            current.head.extend_from_slice(bytes);
        }
        current.len_bytes += bytes.len() as u64;
        self.len_bytes += bytes.len() as u64;
        self.file.append(bytes)
    }

    /// How many bytes were appended so far.
    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The first bytes of the current call's payload: all of them, if the payload is small.
    pub(super) fn head(&self) -> &[u8] {
        &self.current.head
    }

    /// The offset of the current payload, of this length: that of an earlier, equal payload, if it is small.
    pub(super) fn offset_of_payload(&mut self, len_bytes: u64) -> u64 {
        let Payload { start, head, .. } = &self.current;
        if len_bytes as usize == head.len() {
            let digest = *blake3::hash(head).as_bytes();
            return *self.offset_by_digest.entry(digest).or_insert(*start);
        }
        *start
    }

    pub(super) fn flush(&mut self) -> Result<(), Error> {
        self.file.flush()
    }
}
