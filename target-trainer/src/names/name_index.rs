//! The names that were seen, by what they look like: one look at a hash table for each new name, however many there are.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};

use super::look_alike::{NameKeys, TwinNames};

/// Names that are remembered, in about 16 MiB. Later ones are compared with these.
const MAX_NAMES: usize = 1 << 17;

/// The names that were seen.
#[derive(Default)]
pub struct NameIndex {
    /// Secret, so that nobody can choose names with one hash.
    hasher: RandomState,
    names: Vec<SeenName>,
    /// Hashes of all names.
    seen: HashSet<u64>,
    /// By the hash of each key, the first name that has it.
    first: HashMap<u64, usize>,
}

struct SeenName {
    name: OsString,
    is_new: bool,
}

impl NameIndex {
    /// Adds a name. Returns the twins that were there first, if the name was not seen before: at most one that is the
    /// same in another case or normal form, and one that looks the same. Not those of which both names are old: somebody
    /// was told earlier.
    pub fn add(&mut self, name: &OsStr, is_new: bool) -> Vec<TwinNames> {
        let hash = self.hasher.hash_one(name);
        if self.seen.contains(&hash) {
            return Vec::new();
        }
        let keys = NameKeys::of(name).hashes(&self.hasher);
        let mut indexes: Vec<usize> = keys.iter().filter_map(|key| self.first.get(key).copied()).collect();
        indexes.dedup();
        let others = indexes.iter().map(|index| &self.names[*index]).filter(|other| is_new || other.is_new);
        // Two different keys may have one hash.
        let twins = others.filter_map(|other| TwinNames::of(name, &other.name)).collect();
        if self.names.len() < MAX_NAMES {
            self.seen.insert(hash);
            for key in keys {
                self.first.entry(key).or_insert(self.names.len());
            }
            self.names.push(SeenName { name: name.to_owned(), is_new });
        }
        twins
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_twin_is_told_once_and_not_of_two_old_names() {
        let mut index = NameIndex::default();
        let mut add = |name: &str, is_new| {
            let twins = index.add(OsStr::new(name), is_new);
            twins.iter().map(|twins| twins.difference.to_string()).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(add("data", false), none);
        assert_eq!(add("Data", false), none);
        assert_eq!(add("DATA", true), ["case"]);
        assert_eq!([add("DATA", true), add("Data", true), add("other", true)], [none, none, none]);
        // The queue may be read after a file has come in.
        assert_eq!((add("0ther", false), add("Other", false)), (vec![], vec!["case".to_owned()]));
        // One of each kind.
        assert_eq!(add("D\u{430}ta", true), ["script (Cyrillic and Latin; Latin)"]);
        assert_eq!(add("l\u{430}b", true), none);
        assert_eq!(add("Lab", true), none);
        assert_eq!(add("lab", true), ["case", "script (Latin; Cyrillic and Latin)"]);
    }

    #[test]
    fn a_hundred_thousand_names_take_seconds_at_most_and_bounded_memory() {
        let mut index = NameIndex::default();
        let begin = Instant::now();
        for number in 0..MAX_NAMES + 1000 {
            let name = format!("d\u{e9}-{number:06}.jsonl");
            assert_eq!(index.add(OsStr::new(&name), true), []);
        }
        // As a comparison of all pairs, it would take hours.
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
        assert_eq!(index.names.len(), MAX_NAMES);
        assert_eq!(index.add(OsStr::new("D\u{c9}-000007.jsonl"), true).len(), 1);
    }
}
