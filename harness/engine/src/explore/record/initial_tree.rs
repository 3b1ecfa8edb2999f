//! Indexes the watched directories before the recorded run: their files, names and attributes. Changes nothing,
//! and knows no operations.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat};

use super::attribute_changes::AttributeTable;
use super::attributes::FileAttributes;
use super::content::FileContent;
use super::recording::{CountedPaths, FileNode, FileNodeKind, NodeId};
use crate::gate::{FileId, file_id_of};

/// A watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedRoot {
    /// Its path for the target.
    pub seen_by_target: PathBuf,
    /// Its path for the harness.
    pub seen_by_harness: PathBuf,
}

/// What lies in the watched directories. The directories themselves are the first nodes.
#[derive(Default)]
pub(super) struct InitialTree {
    pub(super) nodes: Vec<FileNode>,
    pub(super) attributes: AttributeTable,
    pub(super) node_by_file_id: HashMap<FileId, NodeId>,
    /// The names, by directory.
    pub(super) names: BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    pub(super) contents: HashMap<NodeId, FileContent>,
    /// Where the contents can be read.
    pub(super) paths: BTreeMap<NodeId, PathBuf>,
    pub(super) owners_not_kept: CountedPaths,
    pub(super) files_left_out: CountedPaths,
}

/// A directory that is not indexed yet.
struct PendingDirectory<'l> {
    node: NodeId,
    path: PathBuf,
    /// Its path below the watched directory.
    below: PathBuf,
    /// The layers of the watched directory.
    original_layers: &'l [PathBuf],
}

impl InitialTree {
    /// Indexes the roots. `originals`: for each, the unchanged, readable directories that it shows, the topmost
    /// first. Reads no file.
    ///
    /// # Errors
    /// A directory or the attributes of a file cannot be read.
    pub(super) fn index(roots: &[WatchedRoot], originals: &[Vec<PathBuf>]) -> Result<InitialTree, Error> {
        let mut tree = InitialTree::default();
        let mut pending = Vec::new();
        for (root, original_layers) in roots.iter().zip(originals) {
            let path = root.seen_by_harness.clone();
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let dir = open(&path, flags, Mode::empty())?;
            let node = tree.add_node(&dir, FileNodeKind::Directory, &path)?;
            pending.push(PendingDirectory { node, path, below: PathBuf::new(), original_layers });
        }
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(&dir.path)? {
                tree.add_entry(&dir, entry?.file_name(), &mut pending)?;
            }
        }
        Ok(tree)
    }

    fn add_entry<'l>(
        &mut self,
        dir: &PendingDirectory<'l>,
        name: OsString,
        pending: &mut Vec<PendingDirectory<'l>>,
    ) -> Result<(), Error> {
        let (path, below, original_layers) =
            (dir.path.join(&name), dir.below.join(&name), dir.original_layers);
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = open(&path, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        let Some(kind) = node_kind(&path, &stat)? else {
            self.files_left_out.add(|| path);
            return Ok(());
        };
        let known = self.node_by_file_id.get(&file_id_of(file.as_fd())?).copied();
        let is_directory = kind == FileNodeKind::Directory;
        let node = match known {
            Some(node) if !is_directory => node,
            _ => self.add_node(&file, kind.clone(), &path)?,
        };
        self.names.entry(dir.node).or_default().insert(name, node);
        match kind {
            FileNodeKind::Directory => {
                pending.push(PendingDirectory { node, path, below, original_layers });
            }
            FileNodeKind::File { initial_len_bytes } => {
                self.contents.insert(node, FileContent::initial(node, initial_len_bytes));
                self.paths.extend(original_path(original_layers, &below).map(|original| (node, original)));
            }
            FileNodeKind::Symlink { .. } | FileNodeKind::Pipe => {}
        }
        Ok(())
    }

    fn add_node(&mut self, file: &OwnedFd, kind: FileNodeKind, path: &Path) -> Result<NodeId, Error> {
        let attributes = FileAttributes::read(file.as_fd())?;
        if !attributes.has_settable_owner() {
            self.owners_not_kept.add(|| path.into());
        }
        let node = self.nodes.len() as NodeId;
        self.nodes.push(FileNode { attributes: self.attributes.id_of(attributes), kind });
        self.node_by_file_id.insert(file_id_of(file.as_fd())?, node);
        Ok(node)
    }
}

/// Where a file that the layers show can be read: in the topmost one that has it. One that hides it has nothing
/// of its name.
fn original_path(layers: &[PathBuf], below: &Path) -> Option<PathBuf> {
    let has_file = |path: &PathBuf| layers.len() == 1 || path.symlink_metadata().is_ok();
    layers.iter().map(|layer| layer.join(below)).find(has_file)
}

/// `None`: a socket or a device, which is part of no crash state.
pub(super) fn node_kind(path: &Path, stat: &FileStat) -> Result<Option<FileNodeKind>, Error> {
    Ok(Some(match stat.st_mode & libc::S_IFMT {
        libc::S_IFDIR => FileNodeKind::Directory,
        libc::S_IFREG => FileNodeKind::File { initial_len_bytes: stat.st_size as u64 },
        libc::S_IFLNK => FileNodeKind::Symlink { target: std::fs::read_link(path)? },
        libc::S_IFIFO => FileNodeKind::Pipe,
        _ => return Ok(None),
    }))
}
