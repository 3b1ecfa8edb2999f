//! Files of the inbox that keep failing, beyond those that are remembered one by one. Only hashes of their
//! names are kept, so that memory stays small whatever somebody puts there. Tries nothing itself.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Time after which all of them are tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
/// The same if some of them can be remembered one by one now.
const RETRY_INTERVAL_WITH_ROOM: Duration = Duration::from_secs(1);

/// Files that are passed over for a while.
#[derive(Default)]
pub(super) struct PutAside {
    hashes: HashSet<u64>,
    hasher: RandomState,
    since: Option<Instant>,
    /// The first of them has been reported.
    is_reported: bool,
}

impl PutAside {
    /// Adds a file. Returns whether it is the first one ever.
    pub(super) fn add(&mut self, name: &OsStr) -> bool {
        self.hashes.insert(self.hasher.hash_one(name));
        self.since.get_or_insert_with(Instant::now);
        !std::mem::replace(&mut self.is_reported, true)
    }

    /// Whether the file is passed over now.
    pub(super) fn contains(&self, name: &OsStr) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&self.hasher.hash_one(name))
    }

    /// Forgets all files if they have been passed over for long enough. `has_room`: some of them can be
    /// remembered one by one.
    pub(super) fn expire(&mut self, has_room: bool) {
        let interval = if has_room { RETRY_INTERVAL_WITH_ROOM } else { RETRY_INTERVAL };
        if self.since.is_some_and(|since| since.elapsed() > interval) {
            (self.hashes, self.since) = (HashSet::new(), None);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }
}
