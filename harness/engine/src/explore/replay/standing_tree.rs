//! What of a materialized tree stays for the next one, if nothing has changed it in between. Pure: looks at no file.
//!
//! A target must not see whether a tree was built from nothing. A file system in memory lists the names of a directory
//! by when they were created, so a name stays only if each one before it in its directory stays too: what follows the
//! first new name is created again, in the order of a tree that is built from nothing.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::small_file_cache::MAX_SMALL_FILE_BYTES;
use crate::explore::record::AttributesId;
use crate::explore::states::{FileTree, TreeEntry};

/// How a name stays. Its times are set again in any case: a recovery may have read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// As it is.
    Unchanged,
    /// A small file, with other bytes.
    Rewritten,
}

/// The names of the next tree that stay.
pub(super) struct StandingNames<'t> {
    /// By the number of the watched directory and the path below it.
    names: HashMap<(u32, &'t Path), Standing>,
}

impl<'t> StandingNames<'t> {
    /// Compares a tree with the next one. Both have one name for each file. `can_be_rewritten`: whether a file with these
    /// attributes can be written and still has them.
    pub(super) fn between(
        old: &FileTree,
        new: &'t FileTree,
        can_be_rewritten: impl Fn(AttributesId) -> bool,
    ) -> StandingNames<'t> {
        let mut standing = StandingNames { names: HashMap::new() };
        // The directories in which a name does not stay, so that none after it does.
        let mut changed: HashSet<(u32, &Path)> = HashSet::new();
        for (name, entry) in &new.entries {
            let (root, path) = (name.0, name.1.as_path());
            let parent = (root, path.parent().unwrap_or(Path::new("")));
            let is_in_new_directory = changed.contains(&parent);
            let stays = old.entries.get(name).filter(|_| !is_in_new_directory);
            match stays.and_then(|old| standing_of(old, entry, &can_be_rewritten)) {
                Some(how) => drop(standing.names.insert((root, path), how)),
                None => {
                    changed.insert(parent);
                    if let TreeEntry::Directory { .. } = entry {
                        changed.insert((root, path));
                    }
                }
            }
        }
        standing
    }

    /// How a name stays. `None`: it has to be created.
    pub(super) fn get(&self, root: u32, path: &Path) -> Option<Standing> {
        self.names.get(&(root, path)).copied()
    }
}

fn standing_of(
    old: &TreeEntry,
    new: &TreeEntry,
    can_be_rewritten: &impl Fn(AttributesId) -> bool,
) -> Option<Standing> {
    if old.attributes().set != new.attributes().set {
        return None;
    }
    match (old, new) {
        (TreeEntry::Directory { .. }, TreeEntry::Directory { .. }) => Some(Standing::Unchanged),
        (TreeEntry::File { content: old, .. }, TreeEntry::File { content, attributes, .. }) => {
            let are_small = old.len().max(content.len()) <= MAX_SMALL_FILE_BYTES;
            match old == content {
                true => Some(Standing::Unchanged),
                false => (are_small && can_be_rewritten(attributes.set)).then_some(Standing::Rewritten),
            }
        }
        // A target that follows a link changes when the link was last read, and no event shows it.
        _ => None,
    }
}
