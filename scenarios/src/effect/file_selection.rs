//! Which of a target's files a fault concerns: by pattern, and in the newest of several directories that each
//! hold one generation, such as checkpoints. Pure: it is told which files there are. Knows no fault.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::str::Chars;

use globset::GlobMatcher;

/// Files by pattern. Paths are relative to the target's root.
#[derive(Debug, Clone)]
pub struct FileSelection {
    /// The files. `None`: all files of the generations.
    pub files: Option<GlobMatcher>,
    /// Directories or files that each are one generation, such as `checkpoints/*/step-*`.
    pub generations: Option<GlobMatcher>,
}

impl FileSelection {
    /// The generations among these files: the newest `count` of each directory. The newest one is the last by
    /// name, where numbers count by their value. A directory without files is not seen.
    pub fn newest_generations(&self, files: &[String], count: usize) -> Vec<String> {
        let Some(pattern) = &self.generations else { return Vec::new() };
        let mut by_parent: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for path in files.iter().flat_map(|file| with_parents(file)).filter(|path| pattern.is_match(path)) {
            by_parent.entry(parent(path).unwrap_or_default()).or_default().insert(path);
        }
        let newest = by_parent.into_values().flat_map(|generations| {
            let mut generations: Vec<&str> = generations.into_iter().collect();
            generations.sort_by(|one, other| natural_order(one, other));
            generations.split_off(generations.len().saturating_sub(count))
        });
        newest.map(str::to_owned).collect()
    }

    /// How many generations the directory that has the most of them holds.
    pub fn most_generations(&self, files: &[String]) -> usize {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let all = self.newest_generations(files, usize::MAX);
        all.iter().for_each(|path| *counts.entry(parent(path).unwrap_or_default()).or_default() += 1);
        counts.into_values().max().unwrap_or(0)
    }

    /// The selected files, in natural order. `newest`: how many of the newest generations of each directory,
    /// if there are any.
    pub fn selected(&self, files: &[String], newest: usize) -> Vec<String> {
        let generations = self.newest_generations(files, newest);
        let is_selected = |file: &&String| {
            let is_in = |generation: &String| with_parents(file).any(|path| path == generation);
            self.files.as_ref().is_none_or(|pattern| pattern.is_match(file))
                && (self.generations.is_none() || generations.iter().any(is_in))
        };
        let mut selected: Vec<String> = files.iter().filter(is_selected).cloned().collect();
        selected.sort_by(|one, other| natural_order(one, other));
        selected
    }
}

/// The directory of a path.
fn parent(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(parent, _)| parent)
}

/// A path, and each directory above it.
fn with_parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| parent(path))
}

/// Compares texts so that `step-9` comes before `step-10`.
fn natural_order(one: &str, other: &str) -> Ordering {
    let (mut ones, mut others) = (one.chars().peekable(), other.chars().peekable());
    loop {
        let order = match (ones.peek(), others.peek()) {
            (Some(a), Some(b)) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let (a, b) = (number(&mut ones), number(&mut others));
                a.len().cmp(&b.len()).then(a.cmp(&b))
            }
            (None, None) => return one.cmp(other),
            _ => ones.next().cmp(&others.next()),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes the digits of a number, without leading zeros.
fn number(letters: &mut Peekable<Chars<'_>>) -> String {
    let digits: String = std::iter::from_fn(|| letters.next_if(char::is_ascii_digit)).collect();
    digits.trim_start_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use globset::GlobBuilder;
    use proptest::prelude::*;

    use super::*;

    fn selection(files: Option<&str>, generations: Option<&str>) -> FileSelection {
        // As in scenario files.
        let glob = |pattern: &str| GlobBuilder::new(pattern).literal_separator(true).build().unwrap();
        let matcher = |pattern: &str| glob(pattern).compile_matcher();
        FileSelection { files: files.map(matcher), generations: generations.map(matcher) }
    }

    fn tree() -> Vec<String> {
        let files =
            ["c/a/step-9/w", "c/a/step-10/w", "c/a/step-10/m", "c/a/step-10/d/x", "c/b/step-2/w", "log"];
        files.map(str::to_owned).to_vec()
    }

    #[test]
    fn the_newest_generation_of_each_directory_is_the_last_by_number() {
        let generations = selection(None, Some("c/*/step-*"));
        assert_eq!(generations.newest_generations(&tree(), 1), ["c/a/step-10", "c/b/step-2"]);
        assert_eq!(generations.most_generations(&tree()), 2);
        let files = generations.selected(&tree(), 1);
        assert_eq!(files, ["c/a/step-10/d/x", "c/a/step-10/m", "c/a/step-10/w", "c/b/step-2/w"]);
        assert_eq!(generations.selected(&tree(), 5).len(), 5, "all, but `log`");
    }

    #[test]
    fn both_patterns_must_match_a_file() {
        let weights = selection(Some("**/w"), Some("c/*/step-*"));
        assert_eq!(weights.selected(&tree(), 1), ["c/a/step-10/w", "c/b/step-2/w"]);
        assert_eq!(selection(Some("l*"), None).selected(&tree(), 1), ["log"]);
        assert!(selection(None, Some("nothing*")).selected(&tree(), 1).is_empty());
        assert_eq!(selection(None, Some("log")).selected(&tree(), 1), ["log"], "a file is a generation too");
    }

    proptest! {
        #[test]
        fn the_natural_order_is_an_order(texts in prop::collection::vec("[a0-9/]{0,6}", 3)) {
            let [a, b, c] = [&texts[0], &texts[1], &texts[2]];
            prop_assert_eq!(natural_order(a, b), natural_order(b, a).reverse());
            prop_assert_eq!(natural_order(a, b) == Ordering::Equal, a == b);
            if natural_order(a, b) == Ordering::Less && natural_order(b, c) == Ordering::Less {
                prop_assert_eq!(natural_order(a, c), Ordering::Less);
            }
        }

        #[test]
        fn numbers_count_by_their_value(one: u32, other: u32) {
            prop_assume!(one != other);
            let order = natural_order(&format!("step-{one}/w"), &format!("step-{other}/w"));
            prop_assert_eq!(order, one.cmp(&other));
        }
    }
}
