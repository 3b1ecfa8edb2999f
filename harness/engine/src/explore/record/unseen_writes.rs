//! Notices what the kernel writes into files by itself, for calls that the gate cannot perform (splice). The bytes
//! are read from the file before the next call is recorded. Knows no operations.

use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::recording::NodeId;

/// At most this many bytes of one call are looked at: more than a pipe holds.
const MAX_WRITE_BYTES: u64 = 16 << 20;

/// A call that the kernel performs, or has performed.
pub(super) struct UnseenWrite {
    pub(super) tid: i32,
    pub(super) node: NodeId,
    pub(super) file: OwnedFd,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

/// What the call that is recorded now has written.
#[derive(Clone, Copy)]
pub(super) struct KnownWrite {
    pub(super) node: NodeId,
    pub(super) offset: u64,
    pub(super) len_bytes: u64,
}

/// Bytes that a call has written.
pub(super) struct WrittenBytes {
    pub(super) node: NodeId,
    pub(super) offset: u64,
    pub(super) bytes: Vec<u8>,
}

/// The calls that may be writing, with the bytes that were in the file before.
#[derive(Default)]
pub(super) struct UnseenWrites {
    pending: Vec<PendingWrite>,
}

struct PendingWrite {
    write: UnseenWrite,
    before: Result<Vec<u8>, Error>,
}

impl UnseenWrites {
    /// Reads what the file has where the call is going to write.
    pub(super) fn expect(&mut self, write: UnseenWrite) {
        let before = write.read();
        self.pending.push(PendingWrite { write, before });
    }

    /// What was written by now, apart from what is known. `tid`: the thread that makes a call now, whose earlier calls
    /// have therefore ended.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(super) fn take_written(
        &mut self,
        tid: Option<i32>,
        known: Option<KnownWrite>,
    ) -> Result<Vec<WrittenBytes>, Error> {
        let mut written = Vec::new();
        for PendingWrite { write, before } in std::mem::take(&mut self.pending) {
            let has_ended = tid == Some(write.tid) || write.thread_is_gone();
            let (mut before, after) = (before?, write.read()?);
            if let Some(known) = known.filter(|known| known.node == write.node) {
                write.leave_out(known, &mut before, &after);
            }
            let common = before.iter().zip(&after).take_while(|(old, new)| old == new).count();
            let same_tail = if before.len() == after.len() {
                before.iter().rev().zip(after.iter().rev()).take_while(|(old, new)| old == new).count()
            } else {
                0
            };
            if common < after.len() {
                let bytes = after[common..after.len() - same_tail].to_vec();
                let (node, offset) = (write.node, write.offset + common as u64);
                written.push(WrittenBytes { node, offset, bytes });
            }
            if !has_ended {
                self.pending.push(PendingWrite { write, before: Ok(after) });
            }
        }
        Ok(written)
    }
}

impl UnseenWrite {
    fn thread_is_gone(&self) -> bool {
        !Path::new(&format!("/proc/{}", self.tid)).exists()
    }

    /// Makes what was there before equal to what is there now, where another write is known.
    fn leave_out(&self, known: KnownWrite, before: &mut Vec<u8>, after: &[u8]) {
        let place = |offset: u64| {
            usize::try_from(offset.saturating_sub(self.offset)).unwrap_or(usize::MAX).min(after.len())
        };
        let known = place(known.offset)..place(known.offset.saturating_add(known.len_bytes));
        if known.is_empty() {
            return;
        }
        if before.len() < known.end {
            before.resize(known.end, 0);
        }
        before[known.clone()].copy_from_slice(&after[known]);
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        let file = File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
        let len_bytes = self.len_bytes.min(MAX_WRITE_BYTES);
        let mut bytes = vec![0; usize::try_from(len_bytes).unwrap_or(0)];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], self.offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}
