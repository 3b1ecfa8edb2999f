//! The threads of the target that made calls lately. Bounded: a target may have any number of threads.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::follow_error::FollowError;
use super::target_thread::TargetThread;

/// At most this many threads are kept. Each takes one descriptor.
const MAX_THREADS: usize = 128;

/// Threads by id, up to a bound.
#[derive(Default)]
pub(super) struct ThreadCache {
    threads: HashMap<i32, CachedThread>,
    /// Counts look-ups, so that the thread that was not used for the longest time is known.
    lookups: u64,
}

struct CachedThread {
    thread: TargetThread,
    last_lookup: u64,
}

impl ThreadCache {
    /// Returns the thread, from the cache if possible. A thread id can be reused after the thread has ended;
    /// its pidfd shows that, and the entry is replaced.
    ///
    /// # Errors
    /// The thread has ended, or cannot be accessed.
    pub(super) fn get(&mut self, tid: i32) -> Result<&TargetThread, FollowError> {
        self.lookups += 1;
        if self.threads.get(&tid).is_some_and(|cached| cached.thread.has_ended()) {
            self.threads.remove(&tid);
        }
        if self.threads.len() >= MAX_THREADS && !self.threads.contains_key(&tid) {
            self.drop_least_recent();
        }
        let cached = match self.threads.entry(tid) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert(CachedThread { thread: TargetThread::open(tid)?, last_lookup: 0 })
            }
        };
        cached.last_lookup = self.lookups;
        Ok(&cached.thread)
    }

    fn drop_least_recent(&mut self) {
        let oldest = self.threads.iter().min_by_key(|(_, cached)| cached.last_lookup).map(|(tid, _)| *tid);
        if let Some(tid) = oldest {
            self.threads.remove(&tid);
        }
    }
}
