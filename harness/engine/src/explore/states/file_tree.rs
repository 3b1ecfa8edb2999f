//! The files that a crash leaves, without their bytes. Pure; knows no crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::explore::record::{AttributesId, FileContent, NodeId};

/// The attributes of an entry of a [`FileTree`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct EntryAttributes {
    /// All attributes but the modification time.
    pub set: AttributesId,
    /// Whether the modification time is that of the set. If not, it is the time of `last_change`.
    pub keeps_time: bool,
    /// The 1-based operation that last changed the content, the names in the directory, or the modification
    /// time; 0 for none.
    pub last_change: u32,
}

/// What a path of a [`FileTree`] refers to. Entries of one `node` are names of one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TreeEntry {
    Directory { attributes: EntryAttributes },
    File { node: NodeId, content: FileContent, attributes: EntryAttributes },
    Symlink { node: NodeId, target: PathBuf, attributes: EntryAttributes },
    Pipe { node: NodeId, attributes: EntryAttributes },
}

/// The files that a crash leaves, by the index of the watched directory and the path below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileTree {
    /// The attributes of the watched directories.
    pub roots: Vec<EntryAttributes>,
    /// In the order of the paths.
    pub entries: BTreeMap<(u32, PathBuf), TreeEntry>,
    /// Old names of renames that are half done. They are files of their own, not further names of the renamed
    /// files.
    pub leftover_names: BTreeSet<(u32, PathBuf)>,
}

impl TreeEntry {
    /// The attributes.
    pub fn attributes(&self) -> EntryAttributes {
        match self {
            TreeEntry::Directory { attributes }
            | TreeEntry::File { attributes, .. }
            | TreeEntry::Symlink { attributes, .. }
            | TreeEntry::Pipe { attributes, .. } => *attributes,
        }
    }
}

impl FileTree {
    /// The length of all files together, in bytes.
    pub fn len_bytes(&self) -> u64 {
        let len_bytes = |entry: &TreeEntry| match entry {
            TreeEntry::File { content, .. } => content.len(),
            TreeEntry::Directory { .. } | TreeEntry::Symlink { .. } | TreeEntry::Pipe { .. } => 0,
        };
        self.entries.values().map(len_bytes).sum()
    }

    /// Equal digests mean equal trees: names, bytes, attributes, and which names are names of one file. A
    /// modification time that follows from the operations does not count, nor whether that of a directory does.
    pub fn digest(&self) -> [u8; 16] {
        let mut digester = TreeDigester::new(&self.roots);
        for ((root, path), entry) in &self.entries {
            let is_leftover =
                !self.leftover_names.is_empty() && self.leftover_names.contains(&(*root, path.clone()));
            digester.add(DigestedName { root: *root, path, is_leftover }, entry.view());
        }
        digester.digest()
    }
}

/// What a path refers to, without a copy of its content.
#[derive(Clone, Copy)]
pub(super) enum EntryView<'e> {
    Directory,
    File { node: NodeId, content: &'e FileContent },
    Symlink { node: NodeId, target: &'e Path },
    Pipe { node: NodeId },
}

/// An entry with its attributes, without a copy of its content.
#[derive(Clone, Copy)]
pub(super) struct ViewedEntry<'e> {
    pub(super) attributes: EntryAttributes,
    pub(super) entry: EntryView<'e>,
}

impl TreeEntry {
    fn view(&self) -> ViewedEntry<'_> {
        let entry = match self {
            TreeEntry::Directory { .. } => EntryView::Directory,
            TreeEntry::File { node, content, .. } => EntryView::File { node: *node, content },
            TreeEntry::Symlink { node, target, .. } => EntryView::Symlink { node: *node, target },
            TreeEntry::Pipe { node, .. } => EntryView::Pipe { node: *node },
        };
        ViewedEntry { attributes: self.attributes(), entry }
    }
}

impl ViewedEntry<'_> {
    pub(super) fn to_entry(self) -> TreeEntry {
        let attributes = self.attributes;
        match self.entry {
            EntryView::Directory => TreeEntry::Directory { attributes },
            EntryView::File { node, content } => {
                TreeEntry::File { node, content: content.clone(), attributes }
            }
            EntryView::Symlink { node, target } => {
                TreeEntry::Symlink { node, target: target.to_path_buf(), attributes }
            }
            EntryView::Pipe { node } => TreeEntry::Pipe { node, attributes },
        }
    }
}

/// A name as it counts for a digest.
#[derive(Clone, Copy)]
pub(super) struct DigestedName<'n> {
    pub(super) root: u32,
    pub(super) path: &'n Path,
    /// Whether it is the old name of a rename that is half done.
    pub(super) is_leftover: bool,
}

/// Computes the digest of a tree, entry by entry in the order of the paths.
pub(super) struct TreeDigester {
    /// One hash over one buffer: many small updates cost several times as much.
    bytes: Vec<u8>,
    /// By node, the number of its first name. Numbers count from 1.
    first_names: Vec<u32>,
    names: u32,
}

impl TreeDigester {
    pub(super) fn new(roots: &[EntryAttributes]) -> TreeDigester {
        let mut digester =
            TreeDigester { bytes: Vec::with_capacity(4096), first_names: Vec::new(), names: 0 };
        roots.iter().for_each(|root| digester.append(&root.set.to_le_bytes()));
        digester
    }

    fn append(&mut self, part: &[u8]) {
        self.bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(part);
    }

    /// How many names ago the node had its first name.
    fn append_first_name(&mut self, node: NodeId, is_leftover: bool) {
        let node = node as usize;
        if self.first_names.len() <= node {
            self.first_names.resize(node + 1, 0);
        }
        let first = &mut self.first_names[node];
        if *first == 0 && !is_leftover {
            *first = self.names;
        }
        let distance = if is_leftover { 0 } else { self.names - *first };
        self.append(&distance.to_le_bytes());
    }

    fn append_attributes(&mut self, attributes: EntryAttributes) {
        let [a, b, c, d] = attributes.set.to_le_bytes();
        self.append(&[a, b, c, d, u8::from(attributes.keeps_time)]);
    }

    pub(super) fn add(&mut self, name: DigestedName<'_>, viewed: ViewedEntry<'_>) {
        use std::os::unix::ffi::OsStrExt;
        self.names += 1;
        self.append(&name.root.to_le_bytes());
        self.append(name.path.as_os_str().as_bytes());
        let node = match viewed.entry {
            EntryView::Directory => {
                self.append(b"d");
                return self.append(&viewed.attributes.set.to_le_bytes());
            }
            EntryView::Symlink { node, target } => {
                self.append(b"l");
                self.append(target.as_os_str().as_bytes());
                node
            }
            EntryView::Pipe { node } => {
                self.append(b"p");
                node
            }
            EntryView::File { node, content } => {
                self.append(b"f");
                self.append(&(content.pieces().len() as u64).to_le_bytes());
                content.append_structure(&mut self.bytes);
                node
            }
        };
        self.append_attributes(viewed.attributes);
        self.append_first_name(node, name.is_leftover);
    }

    pub(super) fn digest(self) -> [u8; 16] {
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(&self.bytes).as_bytes()[..16]);
        digest
    }
}
