//! Counts what this process gets done. A heartbeat is sent only if the count rises: a thread that is stuck in
//! a call does not count, whatever other threads do beside their work. Knows nothing of who counts.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Pieces of work since the start: layers computed, lines and chunks read, chunks written, syncs, answers of
/// the GPU.
static DONE: AtomicU64 = AtomicU64::new(0);

/// Writes and syncs do not count. Only for the guard `save_progress`.
static LEAVES_SAVES_OUT: AtomicBool = AtomicBool::new(false);

/// From now on writes and syncs do not count. Only for the guard `save_progress`.
pub fn leave_saves_out() {
    LEAVES_SAVES_OUT.store(true, Ordering::Relaxed);
}

/// Records that a write or a sync is done.
pub fn advance_save() {
    if !LEAVES_SAVES_OUT.load(Ordering::Relaxed) {
        advance();
    }
}

/// Records that a piece of work is done.
pub fn advance() {
    DONE.fetch_add(1, Ordering::Relaxed);
}

/// The number of pieces that are done.
pub fn count() -> u64 {
    DONE.load(Ordering::Relaxed)
}

/// Counts each read of a stream as progress, so that a large file takes as long as it needs.
pub struct ProgressReader<R>(pub R);

impl<R: Read> Read for ProgressReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let len = buffer.len().min(1 << 20);
        let result = self.0.read(&mut buffer[..len]);
        advance();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_large_read_counts() {
        let before = count();
        let mut bytes = Vec::new();
        ProgressReader(std::io::repeat(1).take(8 << 20)).read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() == 8 << 20 && count() - before >= 8);
    }
}
