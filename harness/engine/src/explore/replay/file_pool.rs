//! Keeps the large files of crash states, so that a content is written once and not for each state that has
//! it. Knows no trees.
//!
//! A file of the pool is lent: it is moved into the tree of a state, and moved back when the tree is emptied,
//! so that a target sees a file with a single name. A file that the recovery has changed is not taken back. A
//! file that is in no tree can also be changed into a similar one. inotify shows each change: a write, a
//! change of attributes, and, for stores into a shared mapping, the close of a descriptor that was open for
//! writing. The kernel reports that close when the last mapping and the last descriptor are gone, before the
//! end of a killed process can be waited for. If inotify is not available, no file is taken back.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::explore::record::{AttributesId, ContentPatch, FileContent, NodeId};

/// The events of a file that has been changed.
const CHANGES: AddWatchFlags =
    AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_ATTRIB).union(AddWatchFlags::IN_CLOSE_WRITE);
/// The pool's directory in the base directory.
const POOL_NAME: &str = "pool";
/// At most this many files are kept. Those of one recorded file are compared with each other.
const MAX_KEPT_FILES: usize = 1024;
/// Disks and memory count blocks of this size, in bytes.
const COUNTED_BLOCK_BYTES: u64 = 512;

/// What a file of the pool is: a content with attributes, except for its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PoolKey {
    pub(super) digest: [u8; 16],
    pub(super) set: AttributesId,
}

/// A file that can be in the pool.
pub(super) struct PoolFile {
    pub(super) key: PoolKey,
    pub(super) node: NodeId,
    pub(super) content: FileContent,
}

/// The files that no tree has now, and those that are lent.
pub(super) struct FilePool {
    /// Contains the directory of the pool. Paths of lent files are relative to it.
    base_dir: OwnedFd,
    max_bytes: u64,
    /// Of all kept files.
    kept_bytes: u64,
    kept: HashMap<PoolKey, PooledFile>,
    /// The kept files of each recorded file.
    by_node: HashMap<NodeId, BTreeSet<PoolKey>>,
    /// By the number of the use: the oldest first.
    by_use: BTreeSet<(u64, PoolKey)>,
    /// How many times a file was kept.
    uses: u64,
    /// By inode number.
    lent: HashMap<u64, PooledFile>,
    /// `None`: changes cannot be noticed.
    changes: Option<ChangeWatch>,
}

struct PooledFile {
    file: PoolFile,
    ino: u64,
    /// Holes are not counted.
    allocated_bytes: u64,
    watch: Option<WatchDescriptor>,
    /// The number of its last use.
    last_use: u64,
}

/// Notices changes of files.
struct ChangeWatch {
    inotify: Inotify,
    /// Events were lost, so that every file may have been changed.
    has_lost_events: bool,
}

impl FilePool {
    /// An empty pool, which keeps at most `max_bytes` bytes in addition to the files that are lent.
    ///
    /// # Errors
    /// The directory of the pool cannot be created.
    pub(super) fn new(base_dir: OwnedFd, max_bytes: u64) -> Result<FilePool, Error> {
        match nix::sys::stat::mkdirat(&base_dir, POOL_NAME, nix::sys::stat::Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let changes = changes.map(|inotify| ChangeWatch { inotify, has_lost_events: false });
        Ok(FilePool {
            base_dir,
            max_bytes,
            kept_bytes: 0,
            kept: HashMap::new(),
            by_node: HashMap::new(),
            by_use: BTreeSet::new(),
            uses: 0,
            lent: HashMap::new(),
            changes,
        })
    }

    /// Moves the file with this key to a name below the base directory. Returns false if the pool does not
    /// have it.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub(super) fn lend(&mut self, key: PoolKey, name: &CStr) -> Result<bool, Error> {
        let Some(pooled) = self.take(key) else { return Ok(false) };
        renameat(&self.base_dir, pool_path(key)?.as_c_str(), &self.base_dir, name)?;
        self.lent.insert(pooled.ino, pooled);
        Ok(true)
    }

    /// Moves a file with a similar content to a name below the base directory, if to change it is cheaper
    /// than to write a new one. Returns its content. It is not lent: a changed file is a new one. `needed`:
    /// those that the tree has too.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub(super) fn take_similar(
        &mut self,
        wanted: &PoolFile,
        needed: &HashSet<PoolKey>,
        name: &CStr,
    ) -> Result<Option<FileContent>, Error> {
        let anew = ContentPatch::between(&FileContent::default(), &wanted.content).written_bytes();
        let keys = self.by_node.get(&wanted.node).into_iter().flatten();
        let usable = keys.filter(|key| key.set == wanted.key.set && !needed.contains(key));
        let costs = usable.filter_map(|key| {
            let kept = self.kept.get(key)?;
            Some((ContentPatch::between(&kept.file.content, &wanted.content).changed_bytes(), *key))
        });
        let Some((cost, key)) = costs.min() else { return Ok(None) };
        if cost >= anew / 2 {
            return Ok(None);
        }
        let Some(pooled) = self.take(key) else { return Ok(None) };
        renameat(&self.base_dir, pool_path(key)?.as_c_str(), &self.base_dir, name)?;
        Ok(Some(pooled.file.content))
    }

    /// Takes note of a new file of a tree, which comes into the pool when the tree is emptied. It must be
    /// complete.
    ///
    /// # Errors
    /// The metadata of the file cannot be read.
    pub(super) fn add_lent(&mut self, file: PoolFile, opened: &File) -> Result<(), Error> {
        let metadata = opened.metadata()?;
        let watch = self.changes.as_ref().and_then(|changes| changes.watch(opened));
        let (ino, allocated_bytes) = (metadata.ino(), metadata.blocks() * COUNTED_BLOCK_BYTES);
        self.lent.insert(ino, PooledFile { file, ino, allocated_bytes, watch, last_use: 0 });
        Ok(())
    }

    /// Forgets all changes so far. Call it when the tree is complete and all its files are closed.
    pub(super) fn begin_recovery(&mut self) {
        if let Some(changes) = &mut self.changes {
            changes.take();
            changes.has_lost_events = false;
        }
    }

    /// Forgets the lent files that have been changed. Returns whether nothing that is watched has been changed. Call it
    /// when the processes of the recovery have ended.
    pub(super) fn end_recovery(&mut self) -> bool {
        let changed = self.changes.as_mut().map(|changes| {
            let changed = changes.take();
            (!changes.has_lost_events).then_some(changed)
        });
        let Some(Some(changed)) = changed else {
            self.lent.clear();
            return false;
        };
        self.lent.retain(|_, lent| lent.watch.is_some_and(|watch| !changed.contains(&watch)));
        changed.is_empty()
    }

    /// Watches the names in a directory, and what they are names of, until it is removed. Returns whether that is
    /// possible. `path`: below `base`.
    pub(super) fn watch_directory(&self, base: &Path, path: &CStr) -> bool {
        let path = base.join(OsStr::from_bytes(path.to_bytes()));
        self.changes.as_ref().is_some_and(|changes| changes.watch_directory(&path).is_ok())
    }

    /// Removes a file of a tree: takes it back if it is lent and unchanged, and deletes it otherwise.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn remove(&mut self, dir: &OwnedFd, name: &CStr, ino: u64) -> Result<(), Error> {
        if let Some(pooled) = self.lent.remove(&ino)
            && !self.kept.contains_key(&pooled.file.key)
            && self.make_room(pooled.allocated_bytes)
        {
            renameat(dir, name, &self.base_dir, pool_path(pooled.file.key)?.as_c_str())?;
            self.keep(pooled);
            return Ok(());
        }
        Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// The tree is empty: what is still lent was deleted by the recovery.
    pub(super) fn forget_lent(&mut self) {
        self.lent.clear();
    }

    fn keep(&mut self, mut pooled: PooledFile) {
        let PoolFile { key, node, .. } = pooled.file;
        self.uses += 1;
        pooled.last_use = self.uses;
        self.kept_bytes += pooled.allocated_bytes;
        self.by_use.insert((pooled.last_use, key));
        self.by_node.entry(node).or_default().insert(key);
        self.kept.insert(key, pooled);
    }

    /// Takes a file out of what is kept. It stays where it is.
    fn take(&mut self, key: PoolKey) -> Option<PooledFile> {
        let pooled = self.kept.remove(&key)?;
        self.kept_bytes -= pooled.allocated_bytes;
        self.by_use.remove(&(pooled.last_use, key));
        if let Some(keys) = self.by_node.get_mut(&pooled.file.node) {
            keys.remove(&key);
        }
        Some(pooled)
    }

    /// Removes the files that were not used for the longest time, until the needed bytes fit. Returns whether
    /// they do.
    fn make_room(&mut self, needed_bytes: u64) -> bool {
        let is_full = |pool: &FilePool| {
            pool.kept_bytes.saturating_add(needed_bytes) > pool.max_bytes || pool.kept.len() >= MAX_KEPT_FILES
        };
        while is_full(self) {
            let Some((_, oldest)) = self.by_use.first().copied() else { return false };
            self.take(oldest);
            // A file that cannot be removed here is removed with the directory of the run.
            let _ = pool_path(oldest)
                .map(|path| unlinkat(&self.base_dir, path.as_c_str(), UnlinkatFlags::NoRemoveDir));
        }
        true
    }
}

impl ChangeWatch {
    /// Watches an open file. `None`: it cannot be watched.
    fn watch(&self, file: &File) -> Option<WatchDescriptor> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        self.inotify.add_watch(path.as_str(), CHANGES).ok()
    }

    fn watch_directory(&self, path: &Path) -> Result<WatchDescriptor, Errno> {
        let names = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
        let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        let flags = AddWatchFlags::IN_ONLYDIR | AddWatchFlags::IN_DONT_FOLLOW;
        self.inotify.add_watch(path, CHANGES | names | itself | flags)
    }

    /// What has changed since the last call.
    fn take(&mut self) -> HashSet<WatchDescriptor> {
        let mut changed = HashSet::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    let is_lost = |mask: AddWatchFlags| mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                    self.has_lost_events |= events.iter().any(|event| is_lost(event.mask));
                    changed.extend(events.into_iter().map(|event| event.wd));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return changed,
                Err(_) => {
                    self.has_lost_events = true;
                    return changed;
                }
            }
        }
    }
}

fn pool_path(key: PoolKey) -> Result<CString, Error> {
    let digest: String = key.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    CString::new(format!("{POOL_NAME}/{digest}-{}", key.set)).map_err(Error::other)
}
