//! Whether a save deletes the newest checkpoint. Pure.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;

use crate::explore::record::{NodeId, OpKind, Recording};

/// The newest checkpoint was deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RemovedNewest {
    /// Older ones are still there.
    OlderStay,
    /// There was no other.
    NoneStay,
}

/// What is known of a name with a number in it: how new it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    /// The 1-based operation that made it; 0 if it was there before the run.
    made_by: usize,
    number: u64,
}

/// Names that differ only in their numbers, in one directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Family {
    dir: NodeId,
    pattern: String,
}

/// Whether one of the operations from `from` to before `to` deletes the newest of the names in a directory that
/// differ only in their numbers.
pub(super) fn removed_newest(recording: &Recording, from: usize, to: usize) -> Option<RemovedNewest> {
    let mut families = Families::default();
    for (dir, names) in &recording.initial_names {
        names.keys().for_each(|name| families.add(*dir, name, 0));
    }
    for (index, op) in recording.ops[..to].iter().enumerate() {
        for change in op.name_changes() {
            let is_deleted = change.node.is_none() && matches!(op.kind, OpKind::Unlink | OpKind::Rmdir);
            if is_deleted && index >= from {
                let (dir, name) = deleted_with(recording, index, change.dir)
                    .unwrap_or_else(|| (change.dir, change.name.clone()));
                match families.removed_newest(dir, &name) {
                    // What the save itself has made was no checkpoint yet.
                    Some(RemovedNewest::NoneStay) if families.made_by(dir, &name) > Some(from) => {}
                    Some(removed) => return Some(removed),
                    None => {}
                }
            }
            match change.node {
                Some(_) => families.add(change.dir, &change.name, index + 1),
                None => families.remove(change.dir, &change.name),
            }
        }
    }
    None
}

/// The name of the outermost directory around a deleted name that is deleted itself right after it, before
/// anything is created.
fn deleted_with(recording: &Recording, op: usize, dir: NodeId) -> Option<(NodeId, OsString)> {
    let mut outermost = None;
    let mut dir = dir;
    let later = recording.ops[op + 1..]
        .iter()
        .take_while(|op| !op.is_acknowledgement() && !matches!(op.kind, OpKind::Create | OpKind::Mkdir));
    for removal in later.filter(|op| op.kind == OpKind::Rmdir) {
        let Some(change) = removal.name_changes().first() else { continue };
        let Some(named) = recording.name_of(dir, op) else { break };
        if (change.dir, &change.name) == (named.0, &named.1) {
            dir = named.0;
            outermost = Some(named);
        }
    }
    outermost
}

#[derive(Default)]
struct Families {
    names: HashMap<Family, BTreeMap<OsString, Age>>,
}

impl Families {
    fn add(&mut self, dir: NodeId, name: &OsString, made_by: usize) {
        if let Some(numbered) = NumberedName::of(name) {
            let age = Age { made_by, number: numbered.number };
            self.names
                .entry(Family { dir, pattern: numbered.pattern })
                .or_default()
                .insert(name.clone(), age);
        }
    }

    fn remove(&mut self, dir: NodeId, name: &OsString) {
        if let Some(numbered) = NumberedName::of(name)
            && let Some(names) = self.names.get_mut(&Family { dir, pattern: numbered.pattern })
        {
            names.remove(name);
        }
    }

    /// The 1-based operation that made this name.
    fn made_by(&self, dir: NodeId, name: &OsString) -> Option<usize> {
        let pattern = NumberedName::of(name)?.pattern;
        Some(self.names.get(&Family { dir, pattern })?.get(name)?.made_by)
    }

    /// What is left of a family without this name, if it is the newest one.
    fn removed_newest(&self, dir: NodeId, name: &OsString) -> Option<RemovedNewest> {
        let numbered = NumberedName::of(name)?;
        let names = self.names.get(&Family { dir, pattern: numbered.pattern })?;
        let age = names.get(name)?;
        let mut others = names.iter().filter(|(other, _)| *other != name).map(|(_, age)| age).peekable();
        match others.peek() {
            None => Some(RemovedNewest::NoneStay),
            Some(_) => others.all(|other| other < age).then_some(RemovedNewest::OlderStay),
        }
    }
}

/// A name with a number in it.
struct NumberedName {
    /// The name with `#` for each number.
    pattern: String,
    /// The last number.
    number: u64,
}

impl NumberedName {
    fn of(name: &OsString) -> Option<NumberedName> {
        let name = name.to_str()?;
        let mut pattern = String::new();
        let mut number = None;
        let mut rest = name;
        while let Some(start) = rest.find(|letter: char| letter.is_ascii_digit()) {
            let digits = &rest[start..];
            let len = digits.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(digits.len());
            pattern += &rest[..start];
            pattern.push('#');
            number = Some(digits[..len].parse().unwrap_or(u64::MAX));
            rest = &digits[len..];
        }
        pattern += rest;
        Some(NumberedName { pattern, number: number? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(names: &[&str], deleted: &str) -> Option<RemovedNewest> {
        let mut families = Families::default();
        names.iter().enumerate().for_each(|(index, name)| families.add(0, &OsString::from(name), index + 1));
        families.removed_newest(0, &OsString::from(deleted))
    }

    #[test]
    fn the_newest_of_the_names_that_differ_in_numbers_counts() {
        assert_eq!(removed(&["c-8", "c-9", "c-10"], "c-10"), Some(RemovedNewest::OlderStay));
        assert_eq!(removed(&["c-8", "c-9", "c-10"], "c-8"), None);
        assert_eq!(removed(&["c-8", "other-9", "latest"], "c-8"), Some(RemovedNewest::NoneStay));
        assert_eq!(removed(&["a", "b"], "b"), None);
        assert_eq!(removed(&["c-8-of-2", "c-9-of-2"], "c-9-of-2"), Some(RemovedNewest::OlderStay));
    }
}
