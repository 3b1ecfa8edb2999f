//! Keeps files of overlays open, so that they keep their identity. Knows no operations.
//!
//! A file of a lower layer gets its place in the upper layer when it is first changed. It keeps its inode number
//! only as long as the kernel remembers it, which it does while somebody has it open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::initial_tree::WatchedRoot;
use super::recording::NodeId;

/// At most this many files are kept open. The identity of further ones is lost only if memory is short.
const MAX_PINNED: usize = 256;

/// The files that are kept open.
pub(super) struct PinnedFiles {
    /// The watched directories that are overlays.
    overlays: Vec<WatchedRoot>,
    /// How many nodes were there before the run.
    initial_count: NodeId,
    pinned: HashMap<NodeId, Option<OwnedFd>>,
}

impl PinnedFiles {
    /// Keeps none open yet. `initial_count`: the nodes from 0 to this are from before the run.
    pub(super) fn new(roots: &[WatchedRoot], initial_count: usize) -> PinnedFiles {
        let is_overlay = |root: &&WatchedRoot| {
            statfs(&root.seen_by_harness).is_ok_and(|stat| stat.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
        };
        let overlays = roots.iter().filter(is_overlay).cloned().collect();
        PinnedFiles { overlays, initial_count: initial_count as NodeId, pinned: HashMap::new() }
    }

    /// Whether a file that is changed now should be kept open.
    pub(super) fn wants(&self, node: NodeId) -> bool {
        !self.overlays.is_empty()
            && node < self.initial_count
            && self.pinned.len() < MAX_PINNED
            && !self.pinned.contains_key(&node)
    }

    /// Keeps a file open. `path`: where the target sees it.
    pub(super) fn pin(&mut self, node: NodeId, path: &Path) {
        let below = |root: &WatchedRoot| {
            path.strip_prefix(&root.seen_by_target).ok().map(|below| root.seen_by_harness.join(below))
        };
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            self.overlays.iter().find_map(below).and_then(|path| open(&path, flags, Mode::empty()).ok());
        self.pinned.insert(node, file);
    }
}
