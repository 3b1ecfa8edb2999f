//! Everything about a directory tree that a user would miss, to compare it before and after: names, types,
//! contents, modes, owners, links, extended attributes, and times in nanoseconds. Not the access times.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::sys::extended_attributes;

/// How many differences are listed.
const MAX_LISTED: usize = 20;

/// A tree at one moment. A file that was replaced by an equal one has another inode and other times.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TreeSnapshot(BTreeMap<PathBuf, NodeFacts>);

/// What is known of one name in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NodeFacts {
    /// Type and permissions.
    mode: u32,
    uid: u32,
    gid: u32,
    inode: u64,
    hard_links: u64,
    len_bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
    attributes: BTreeMap<CString, Vec<u8>>,
    /// Digest of a file's bytes, text of a link, or nothing.
    content: String,
}

impl TreeSnapshot {
    /// Reads the tree without following links. What is below `excluded` is not read.
    pub(crate) fn of(top: &Path, excluded: &Path) -> TreeSnapshot {
        let mut nodes = BTreeMap::new();
        let mut paths = vec![top.to_path_buf()];
        while let Some(path) = paths.pop() {
            let facts = NodeFacts::of(&path);
            if path.symlink_metadata().unwrap().is_dir() {
                paths.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            nodes.insert(path, facts);
        }
        nodes.retain(|path, _| !path.starts_with(excluded));
        TreeSnapshot(nodes)
    }

    /// What is different in a later snapshot, one line each. Empty if nothing is.
    pub(crate) fn differences(&self, later: &TreeSnapshot) -> Vec<String> {
        let removed = self.0.keys().filter(|path| !later.0.contains_key(*path));
        let mut lines: Vec<String> = removed.map(|path| format!("removed: {}", path.display())).collect();
        for (path, facts) in &later.0 {
            match self.0.get(path) {
                None => lines.push(format!("new: {}", path.display())),
                Some(before) if before != facts => {
                    lines.push(format!("changed: {}: {}", path.display(), before.difference(facts)));
                }
                Some(_) => {}
            }
        }
        let unlisted = lines.len().saturating_sub(MAX_LISTED);
        lines.truncate(MAX_LISTED);
        lines.extend((unlisted > 0).then(|| format!("and {unlisted} more")));
        lines
    }

    /// Number of files, directories and links.
    pub(crate) fn node_count(&self) -> usize {
        self.0.len()
    }
}

impl NodeFacts {
    fn of(path: &Path) -> NodeFacts {
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            blake3::hash(&std::fs::read(path).unwrap()).to_string()
        } else if kind.is_symlink() {
            format!("{:?}", std::fs::read_link(path).unwrap())
        } else {
            format!("device {} fifo {}", metadata.rdev(), kind.is_fifo())
        };
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        NodeFacts {
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            inode: metadata.ino(),
            hard_links: metadata.nlink(),
            len_bytes: metadata.len(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
            attributes: extended_attributes(path),
            content,
        }
    }

    /// Which facts differ, in words.
    fn difference(&self, later: &NodeFacts) -> String {
        let facts = [
            ("mode", self.mode != later.mode),
            ("owner", (self.uid, self.gid) != (later.uid, later.gid)),
            ("inode", self.inode != later.inode),
            ("hard links", self.hard_links != later.hard_links),
            ("length", self.len_bytes != later.len_bytes),
            ("content", self.content != later.content),
            ("extended attributes", self.attributes != later.attributes),
            ("mtime", self.modified_ns != later.modified_ns),
            ("ctime", self.changed_ns != later.changed_ns),
        ];
        facts.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect::<Vec<_>>().join(", ")
    }
}
