//! What a program leaves in a directory, to compare two runs of it: names, types, permissions, owners, hard links,
//! sizes, contents, extended attributes, and the modification times that a program has set. Must not know any test.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::sys::extended_attributes;

/// Seconds since 1970 that are later than every time that a program sets.
const BEGAN_UNIX_S: i64 = 1_700_000_000;

/// One line for each path below a directory.
pub(crate) type FileTree = BTreeMap<PathBuf, String>;

/// Reads a directory. Follows no link.
pub(crate) fn file_tree(top: &Path) -> FileTree {
    let mut tree = FileTree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        // An ordinary user may not read what the program has closed to itself.
        for entry in std::fs::read_dir(top.join(&relative)).into_iter().flatten().map(Result::unwrap) {
            let path = relative.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                pending.push(path.clone());
            }
            tree.insert(path, describe(&entry.path()));
        }
    }
    tree
}

fn describe(path: &Path) -> String {
    let metadata = path.symlink_metadata().unwrap();
    let kind = metadata.file_type();
    let content = if kind.is_symlink() {
        std::fs::read_link(path).unwrap().display().to_string()
    } else if kind.is_file() {
        std::fs::read(path)
            .map_or_else(|error| error.kind().to_string(), |bytes| blake3::hash(&bytes).to_string())
    } else {
        String::new()
    };
    let size = if kind.is_file() { metadata.len() } else { 0 };
    let links = if kind.is_dir() { 0 } else { metadata.nlink() };
    let mode = metadata.permissions().mode();
    let owner = (metadata.uid(), metadata.gid());
    let set_time = Some(metadata.mtime()).filter(|time| *time < BEGAN_UNIX_S);
    let attributes = extended_attributes(path);
    format!("{mode:o} {owner:?} {links} {size} {content} {set_time:?} {attributes:?}")
}

/// The paths at which two runs differ, one line each.
pub(crate) fn tree_differences(bare: &FileTree, gated: &FileTree) -> Vec<String> {
    let paths = bare.keys().chain(gated.keys().filter(|path| !bare.contains_key(*path)));
    let absent = "absent".to_owned();
    paths
        .filter(|path| bare.get(*path) != gated.get(*path))
        .map(|path| {
            let [bare, gated] = [bare, gated].map(|tree| tree.get(path).unwrap_or(&absent));
            format!("{}: bare {bare}, behind the gate {gated}", path.display())
        })
        .collect()
}
