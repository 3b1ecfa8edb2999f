//! Keeps the large files of crash states, so that a content is written once and not for each state that has it.
//! Knows no trees.
//!
//! A file of the pool is lent: it is moved into the tree of a state, and moved back when the tree is emptied, so
//! that a target sees a file with a single name. A file that the recovery has changed is not taken back.
//! inotify shows each change: a write, a change of attributes, and, for stores into a shared mapping, the close
//! of a descriptor that was open for writing. The kernel reports that close when the last mapping and the last
//! descriptor are gone, before the end of a killed process can be waited for. If inotify is not available, no
//! file is taken back.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::renameat;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// The pool's directory in the base directory.
const POOL_NAME: &str = "pool";

/// The files that no tree has now, and those that are lent.
pub(super) struct FilePool {
    /// Contains the directory of the pool. Paths of lent files are relative to it.
    base_dir: OwnedFd,
    max_bytes: u64,
    /// By key.
    kept: HashMap<String, PooledFile>,
    /// By inode number.
    lent: HashMap<u64, LentFile>,
    /// `None`: changes cannot be noticed.
    changes: Option<ChangeWatch>,
}

#[derive(Clone, Copy)]
struct PooledFile {
    ino: u64,
    len_bytes: u64,
    watch: Option<WatchDescriptor>,
}

struct LentFile {
    key: String,
    file: PooledFile,
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
        Ok(FilePool { base_dir, max_bytes, kept: HashMap::new(), lent: HashMap::new(), changes })
    }

    /// Moves the file with this key to a name below the base directory. Returns false if the pool does not have
    /// it.
    ///
    /// # Errors
    /// The file cannot be moved.
    pub(super) fn lend(&mut self, key: &str, name: &CStr) -> Result<bool, Error> {
        let Some(file) = self.kept.remove(key) else { return Ok(false) };
        renameat(&self.base_dir, pool_path(key)?.as_c_str(), &self.base_dir, name)?;
        self.lent.insert(file.ino, LentFile { key: key.into(), file });
        Ok(true)
    }

    /// Takes note of a new file of a tree, which comes into the pool when the tree is emptied. It must be
    /// complete.
    ///
    /// # Errors
    /// The metadata of the file cannot be read.
    pub(super) fn add_lent(&mut self, key: String, file: &File) -> Result<(), Error> {
        let metadata = file.metadata()?;
        let watch = self.changes.as_ref().and_then(|changes| changes.watch(file));
        let file = PooledFile { ino: metadata.ino(), len_bytes: metadata.len(), watch };
        self.lent.insert(file.ino, LentFile { key, file });
        Ok(())
    }

    /// Forgets all changes so far. Call it when the tree is complete and all its files are closed.
    pub(super) fn begin_recovery(&mut self) {
        if let Some(changes) = &mut self.changes {
            changes.take();
            changes.has_lost_events = false;
        }
    }

    /// Forgets the lent files that have been changed. Call it when the processes of the recovery have ended.
    pub(super) fn end_recovery(&mut self) {
        let changed = self.changes.as_mut().map(|changes| {
            let changed = changes.take();
            (!changes.has_lost_events).then_some(changed)
        });
        let Some(Some(changed)) = changed else { return self.lent.clear() };
        self.lent.retain(|_, lent| lent.file.watch.is_some_and(|watch| !changed.contains(&watch)));
    }

    /// Removes a file of a tree: takes it back if it is lent and unchanged, and deletes it otherwise.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn remove(&mut self, dir: &OwnedFd, name: &CStr, ino: u64) -> Result<(), Error> {
        if let Some(LentFile { key, file }) = self.lent.remove(&ino)
            && !self.kept.contains_key(&key)
            && self.make_room(file.len_bytes)
        {
            renameat(dir, name, &self.base_dir, pool_path(&key)?.as_c_str())?;
            self.kept.insert(key, file);
            return Ok(());
        }
        Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// The tree is empty: what is still lent was deleted by the recovery.
    pub(super) fn forget_lent(&mut self) {
        self.lent.clear();
    }

    /// Removes files from the pool until the needed bytes fit. Returns whether they do.
    fn make_room(&mut self, needed_bytes: u64) -> bool {
        let mut pooled_bytes: u64 = self.kept.values().map(|file| file.len_bytes).sum();
        while pooled_bytes.saturating_add(needed_bytes) > self.max_bytes {
            let Some(key) = self.kept.keys().next().cloned() else { return false };
            pooled_bytes -= self.kept.remove(&key).map_or(0, |file| file.len_bytes);
            // A file that cannot be removed here is removed with the directory of the run.
            let _ = pool_path(&key)
                .map(|path| unlinkat(&self.base_dir, path.as_c_str(), UnlinkatFlags::NoRemoveDir));
        }
        true
    }
}

impl ChangeWatch {
    /// Watches an open file. `None`: it cannot be watched.
    fn watch(&self, file: &File) -> Option<WatchDescriptor> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let changes = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_CLOSE_WRITE;
        self.inotify.add_watch(path.as_str(), changes).ok()
    }

    /// The files with changes since the last call.
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

fn pool_path(key: &str) -> Result<CString, Error> {
    CString::new(format!("{POOL_NAME}/{key}")).map_err(Error::other)
}
