//! Compares the tree that a recording yields with the tree that is really there after the run. A difference is a
//! change that no recorded operation explains. Changes nothing, and knows no crash states.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::geteuid;
use scenarios::ExplorationNote;

use super::attribute_changes::AttributeTracker;
use super::attributes::{CurrentTimes, FileAttributes, FileTime};
use super::content::{ContentReader, FileContent};
use super::content_difference::for_each_difference;
use super::initial_tree::{WatchedRoot, node_kind};
use super::recording::{FileNode, FileNodeKind, NodeId, Recording};
use crate::explore::tree_difference::{TreeDifference, TreeDifferenceKind};
use crate::gate::{FileId, file_id_of};

/// At most this many differences are listed.
const MAX_DIFFERENCES: usize = 20;

/// What the owner of a directory needs to list it and to reach its files.
const OWNER_ACCESS: u32 = 0o500;
/// The setuid and setgid bits of a mode.
const SET_ID_BITS: u32 = 0o6000;

/// The tree that a recording yields.
pub(super) struct ExpectedTree<'a> {
    pub(super) recording: &'a Recording,
    pub(super) names: &'a BTreeMap<NodeId, BTreeMap<OsString, NodeId>>,
    pub(super) contents: &'a HashMap<NodeId, FileContent>,
    pub(super) attributes: &'a AttributeTracker,
    /// When the recording began: the content of a file that did not change since is not read.
    pub(super) began: FileTime,
}

/// The result of a comparison.
pub(super) struct TreeComparison {
    /// Up to a bound.
    pub(super) differences: Vec<TreeDifference>,
    /// The accepted differences: one for each path that was named, in this order.
    pub(super) accepted: Vec<AcceptedDifferences>,
}

/// The differences at a path, and below it, that the user accepts.
pub(super) struct AcceptedDifferences {
    /// As the target sees it.
    pub(super) path: PathBuf,
    pub(super) count: u64,
    pub(super) first: Option<TreeDifference>,
}

impl AcceptedDifferences {
    /// What the user has to know. `has_calls`: calls were let through, so that the path may have been needed
    /// although nothing differs.
    pub(super) fn note(self, has_calls: bool) -> Option<ExplorationNote> {
        let path = self.path.to_string_lossy().into_owned();
        match self.first {
            Some(first) => {
                Some(ExplorationNote::Unfollowed { path, count: self.count, first: first.to_string() })
            }
            None => (!has_calls).then_some(ExplorationNote::UnfollowedNotNeeded { path }),
        }
    }
}

/// A comparison in progress.
struct Comparison<'a> {
    expected: &'a ExpectedTree<'a>,
    reader: ContentReader<'a>,
    /// Which file each node really is.
    files: HashMap<NodeId, FileId>,
    differences: Vec<TreeDifference>,
    accepted: Vec<AcceptedDifferences>,
    /// What had to be made readable to be compared.
    opened_up: Vec<OpenedUp>,
}

/// A file or directory that the target has closed to its own user, and its mode.
struct OpenedUp {
    path: PathBuf,
    mode: u32,
}

/// A directory that is not compared yet.
struct UncomparedDirectory {
    node: NodeId,
    path: PathBuf,
    shown: PathBuf,
}

impl ExpectedTree<'_> {
    /// Compares the tree with the files that lie below the roots now. Differences at the paths `accepted` and below
    /// them are counted apart.
    ///
    /// # Errors
    /// A file or directory cannot be read.
    pub(super) fn compare(
        &self,
        roots: &[WatchedRoot],
        accepted: &[PathBuf],
    ) -> Result<TreeComparison, Error> {
        let none_of = |path: &PathBuf| AcceptedDifferences { path: path.clone(), count: 0, first: None };
        let mut comparison = Comparison {
            expected: self,
            reader: ContentReader::new(self.recording)?,
            files: HashMap::new(),
            differences: Vec::new(),
            accepted: accepted.iter().map(none_of).collect(),
            opened_up: Vec::new(),
        };
        let mut pending: Vec<UncomparedDirectory> = (0..)
            .zip(roots)
            .map(|(node, root)| UncomparedDirectory {
                node,
                path: root.seen_by_harness.clone(),
                shown: root.seen_by_target.clone(),
            })
            .collect();
        for root in &pending {
            // The path may be a link of /proc to an open directory.
            let handle = open(&root.path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
            comparison.compare_attributes(root.node, &handle, &root.shown)?;
        }
        let mut compared = Ok(());
        while let Some(dir) = pending.pop() {
            compared = comparison.compare_directory(&dir, &mut pending);
            if compared.is_err() || comparison.differences.len() >= MAX_DIFFERENCES {
                break;
            }
        }
        let closed = comparison.close_again();
        compared.and(closed)?;
        Ok(TreeComparison { differences: comparison.differences, accepted: comparison.accepted })
    }
}

impl Comparison<'_> {
    fn differ(&mut self, path: &Path, kind: TreeDifferenceKind) {
        let difference = TreeDifference { path: path.into(), kind };
        let naming = self.accepted.iter_mut().filter(|accepted| path.starts_with(&accepted.path));
        // The one that names it most closely.
        match naming.max_by_key(|accepted| accepted.path.components().count()) {
            Some(accepted) => {
                accepted.count += 1;
                accepted.first.get_or_insert(difference);
            }
            None => self.differences.push(difference),
        }
    }

    fn compare_directory(
        &mut self,
        dir: &UncomparedDirectory,
        pending: &mut Vec<UncomparedDirectory>,
    ) -> Result<(), Error> {
        let no_names = BTreeMap::new();
        let expected = self.expected.names.get(&dir.node).unwrap_or(&no_names);
        let mut found = BTreeSet::new();
        self.open_up(&dir.path)?;
        for entry in std::fs::read_dir(&dir.path)? {
            let name = entry?.file_name();
            let (path, shown) = (dir.path.join(&name), dir.shown.join(&name));
            let file = open_node(&path)?;
            let stat = fstat(&file)?;
            let Some(kind) = node_kind(&path, &stat)? else { continue };
            let Some(node) = expected.get(&name).copied() else {
                self.differ(&shown, TreeDifferenceKind::NotRecorded);
                continue;
            };
            found.insert(name);
            self.compare_node(node, &kind, &file, &path, &shown)?;
            if kind == FileNodeKind::Directory {
                pending.push(UncomparedDirectory { node, path, shown });
            }
        }
        for name in expected.keys().filter(|name| !found.contains(*name)) {
            self.differ(&dir.shown.join(name), TreeDifferenceKind::Gone);
        }
        Ok(())
    }

    fn compare_node(
        &mut self,
        node: NodeId,
        kind: &FileNodeKind,
        file: &OwnedFd,
        path: &Path,
        shown: &Path,
    ) -> Result<(), Error> {
        let file_id = file_id_of(file.as_fd())?;
        let first = *self.files.entry(node).or_insert(file_id);
        if first != file_id {
            self.differ(shown, TreeDifferenceKind::OtherFile);
            return Ok(());
        }
        let FileNode { kind: expected_kind, .. } = &self.expected.recording.nodes[node as usize];
        let same_kind = match (expected_kind, kind) {
            (FileNodeKind::File { .. }, FileNodeKind::File { .. }) => true,
            (expected, found) => expected == found,
        };
        if !same_kind {
            self.differ(shown, TreeDifferenceKind::OtherType);
            return Ok(());
        }
        self.compare_attributes(node, file, shown)?;
        match kind {
            FileNodeKind::File { .. } => self.compare_content(node, file, path, shown),
            _ => Ok(()),
        }
    }

    fn compare_attributes(&mut self, node: NodeId, file: &OwnedFd, shown: &Path) -> Result<(), Error> {
        let Some(expected) = self.expected.attributes.current(node) else { return Ok(()) };
        let found = FileAttributes::read_without_times(file.as_fd())?;
        // The kernel clears setuid and setgid when somebody writes to the file.
        let cleared = FileAttributes { mode: expected.mode & !SET_ID_BITS, ..expected.clone() };
        if !expected.is_same_without_times(&found) && !cleared.is_same_without_times(&found) {
            self.differ(shown, TreeDifferenceKind::OtherAttributes);
        }
        Ok(())
    }

    /// Makes a file or directory, which is no link of the target's, readable for its owner, if that is this user and
    /// the target has forbidden it.
    fn open_up(&mut self, path: &Path) -> Result<(), Error> {
        let mode = std::fs::metadata(path)?.permissions().mode() & 0o7777;
        if !geteuid().is_root() && mode & OWNER_ACCESS != OWNER_ACCESS {
            std::fs::set_permissions(path, Permissions::from_mode(mode | OWNER_ACCESS))?;
            self.opened_up.push(OpenedUp { path: path.into(), mode });
        }
        Ok(())
    }

    fn close_again(&mut self) -> Result<(), Error> {
        while let Some(OpenedUp { path, mode }) = self.opened_up.pop() {
            std::fs::set_permissions(path, Permissions::from_mode(mode))?;
        }
        Ok(())
    }

    fn compare_content(
        &mut self,
        node: NodeId,
        file: &OwnedFd,
        path: &Path,
        shown: &Path,
    ) -> Result<(), Error> {
        let empty = FileContent::default();
        let content = self.expected.contents.get(&node).unwrap_or(&empty);
        let stat = fstat(file)?;
        if stat.st_size as u64 != content.len() {
            let kind = TreeDifferenceKind::OtherSize { recorded: content.len(), found: stat.st_size as u64 };
            self.differ(shown, kind);
            return Ok(());
        }
        if CurrentTimes::of(&stat).changed < self.expected.began {
            return Ok(());
        }
        self.open_up(path)?;
        let mut first_difference = None;
        for_each_difference(content, &self.reader, &File::open(path)?, &mut |chunk| {
            first_difference.get_or_insert(chunk.first_difference());
            Ok(())
        })?;
        if let Some(offset) = first_difference {
            self.differ(shown, TreeDifferenceKind::OtherContent { offset });
        }
        Ok(())
    }
}

fn open_node(path: &Path) -> Result<OwnedFd, Error> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?)
}
