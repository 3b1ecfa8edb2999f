//! Materializes file trees in the directories that a sandbox shows as the watched ones. Knows no crash
//! models. Small files are written each time; larger ones come from a pool that keeps each content.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, mkfifoat, symlinkat};

use super::file_pool::{FilePool, PoolFile, PoolKey};
use crate::explore::record::{
    ContentPatch, ContentReader, FileAttributes, FileContent, NodeId, Recording, empty_directory,
    open_subdirectory, set_times,
};
use crate::explore::states::{CrashCandidate, EntryAttributes, FileTree, LayerPlan, TreeEntry};
use crate::locks::LockExt;

/// The owner may write.
const OWNER_WRITE_BIT: u32 = 0o200;
/// The kernel takes these bits away when a file is written.
const SET_ID_BITS: u32 = 0o6000;
/// Up to this size, writing a file is as fast as moving it.
const MAX_SMALL_FILE_BYTES: u64 = 16 * 1024;
/// At most this many bytes of small contents are kept in memory.
const MAX_CACHED_BYTES: usize = 64 * 1024 * 1024;
/// The permission bits that `open` and `mkdir` take.
const CREATION_BITS: u32 = 0o777;
/// What this user needs in a directory while it is filled.
const OWNER_BITS: u32 = 0o700;

type CachedBytes = Arc<Vec<u8>>;

/// The contents of small files, shared by all materializers.
#[derive(Default)]
pub(super) struct SmallFileCache {
    cached: Mutex<CachedFiles>,
}

#[derive(Default)]
struct CachedFiles {
    /// How many bytes all contents have.
    len_bytes: usize,
    by_digest: HashMap<[u8; 16], CachedBytes>,
}

/// Where crash states are materialized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaterializePlace {
    /// An existing directory. A directory `pool` is created in it.
    pub base: PathBuf,
    /// The names of existing directories in it, one for each watched directory.
    pub dir_names: Vec<String>,
    /// Modification times that the target did not set count from here, in seconds since 1970.
    pub began_unix_s: i64,
}

/// Materializes one crash state: of a directory that the recorded target saw as an overlay, only the upper layer.
///
/// # Errors
/// A recorded byte cannot be read, or a file cannot be written.
pub fn materialize(
    recording: &Recording,
    candidate: &CrashCandidate,
    place: MaterializePlace,
) -> Result<(), Error> {
    let small_files = SmallFileCache::default();
    let mut materializer = Materializer::new(recording, &small_files, place, u64::MAX)?;
    materializer.materialize(&candidate.tree(recording))
}

/// Materializes the trees of one worker, one after the other.
pub(super) struct Materializer<'a> {
    recording: &'a Recording,
    reader: ContentReader<'a>,
    small_files: &'a SmallFileCache,
    /// Contains a directory for each watched one, and the pool.
    base_dir: OwnedFd,
    place: MaterializePlace,
    pool: FilePool,
    /// The owner that a new file gets.
    new_file: FileAttributes,
    /// The permission bits that a new file does not get.
    umask: u32,
    /// `None`: each tree is whole.
    layers: Option<LayerPlan>,
    /// The large files of the current tree.
    needed: HashSet<PoolKey>,
    /// How many bytes of large files were written so far.
    pub(super) written_bytes: u64,
}

/// The names of a tree that are names of one file, as far as they are materialized.
struct LinkedNames {
    /// The nodes with several names.
    nodes: HashSet<NodeId>,
    first_names: HashMap<NodeId, CString>,
}

/// A directory whose attributes are set when everything in it is there.
struct FilledDirectory {
    name: CString,
    attributes: EntryAttributes,
    /// What it has until then.
    current: FileAttributes,
}

impl<'a> Materializer<'a> {
    /// The pool keeps at most `max_pool_bytes` bytes in addition to the current tree.
    pub(super) fn new(
        recording: &'a Recording,
        small_files: &'a SmallFileCache,
        place: MaterializePlace,
        max_pool_bytes: u64,
    ) -> Result<Materializer<'a>, Error> {
        let base_dir: OwnedFd = File::open(&place.base)?.into();
        let pool = FilePool::new(base_dir.try_clone()?, max_pool_bytes)?;
        let pool_dir = File::open(place.base.join("pool"))?;
        Ok(Materializer {
            recording,
            reader: ContentReader::new(recording)?,
            small_files,
            base_dir,
            place,
            pool,
            new_file: FileAttributes::read_without_times(pool_dir.as_fd())?,
            umask: own_umask()?,
            layers: LayerPlan::of(recording),
            needed: HashSet::new(),
            written_bytes: 0,
        })
    }

    /// Materializes a tree in place of the previous one: of a directory that the target sees as an overlay,
    /// only what lies above the lower layers.
    pub(super) fn materialize(&mut self, tree: &FileTree) -> Result<(), Error> {
        self.clear()?;
        match self.layers.as_ref().map(|layers| layers.upper_layer(tree)) {
            None => self.fill(tree, &[]),
            Some(upper) => self.fill(&upper.tree, &upper.hidden),
        }
    }

    /// Fills the directories, which are empty. `hidden`: names of lower layers that become invisible.
    fn fill(&mut self, tree: &FileTree, hidden: &[(u32, PathBuf)]) -> Result<(), Error> {
        let mut links = LinkedNames::of(tree);
        self.needed = tree.entries.values().filter_map(pool_key).collect();
        let mut dirs = self.watched_directories(tree)?;
        for ((root, path), entry) in &tree.entries {
            let name = entry_path(&self.place.dir_names[*root as usize], path)?;
            match entry {
                TreeEntry::Directory { attributes } => dirs.push(self.create_directory(name, *attributes)?),
                TreeEntry::Symlink { node, .. }
                | TreeEntry::File { node, .. }
                | TreeEntry::Pipe { node, .. } => {
                    if tree.leftover_names.contains(&(*root, path.clone())) {
                        self.create(&name, entry)?;
                        continue;
                    }
                    if let Some(first) = links.first_names.get(node) {
                        let base = &self.base_dir;
                        linkat(base, first.as_c_str(), base, name.as_c_str(), AtFlags::empty())?;
                        continue;
                    }
                    self.create(&name, entry)?;
                    if links.nodes.contains(node) {
                        links.first_names.insert(*node, name);
                    }
                }
            }
        }
        hidden.iter().try_for_each(|(root, path)| self.hide(*root, path))?;
        // The attributes of directories are set at the end: each new name in a directory changes its time, and
        // a directory may be read-only. Those below come first.
        dirs.iter().rev().try_for_each(|dir| self.finish_directory(dir))?;
        self.pool.begin_recovery();
        Ok(())
    }

    /// Makes a name of the lower layers invisible, as the kernel does: by a character device with number 0.
    fn hide(&self, root: u32, path: &Path) -> Result<(), Error> {
        let name = entry_path(&self.place.dir_names[root as usize], path)?;
        Ok(mknodat(&self.base_dir, name.as_c_str(), SFlag::S_IFCHR, Mode::empty(), 0)?)
    }

    /// Creates a file, a symbolic link or a pipe.
    fn create(&mut self, name: &CString, entry: &TreeEntry) -> Result<(), Error> {
        let attributes = entry.attributes();
        match entry {
            TreeEntry::File { node, content, .. } if content.len() > MAX_SMALL_FILE_BYTES => {
                let key = pool_key_of(content, attributes);
                let file = PoolFile { key, node: *node, content: content.clone() };
                self.create_large_file(name, file, attributes)
            }
            TreeEntry::File { content, .. } => self.create_small_file(name, content, attributes),
            TreeEntry::Symlink { target, .. } => self.create_symlink(name, target, attributes),
            TreeEntry::Pipe { .. } => self.create_pipe(name, attributes),
            TreeEntry::Directory { .. } => Ok(()),
        }
    }

    fn create_small_file(
        &mut self,
        name: &CStr,
        content: &FileContent,
        attributes: EntryAttributes,
    ) -> Result<(), Error> {
        let bytes = self.cached_bytes(content)?;
        let (file, current) = self.open_new(name, attributes)?;
        let mut file = File::from(file);
        file.write_all(&bytes)?;
        self.finish_file(&file, attributes, &current)
    }

    /// Takes the file with this content and these attributes from the pool, or changes a similar one, or writes it.
    fn create_large_file(
        &mut self,
        name: &CStr,
        wanted: PoolFile,
        attributes: EntryAttributes,
    ) -> Result<(), Error> {
        if self.pool.lend(wanted.key, name)? {
            // A recovery that has read the file has changed its access time.
            return self.set_times_at(name, attributes);
        }
        if self.can_be_changed(attributes)
            && let Some(similar) = self.pool.take_similar(&wanted, &self.needed, name)?
        {
            let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = File::from(openat(&self.base_dir, name, flags, Mode::empty())?);
            let patch = ContentPatch::between(&similar, &wanted.content);
            self.written_bytes += patch.written_bytes();
            patch.write_to_file(&mut self.reader, &file)?;
            let times = self.times(attributes);
            nix::sys::stat::futimens(&file, &times.accessed, &times.modified)?;
            return self.pool.add_lent(wanted, &file);
        }
        let (file, current) = self.open_new(name, attributes)?;
        let file = File::from(file);
        self.written_bytes += ContentPatch::between(&FileContent::default(), &wanted.content).written_bytes();
        wanted.content.write_to_file(&mut self.reader, &file)?;
        self.finish_file(&file, attributes, &current)?;
        self.pool.add_lent(wanted, &file)
    }

    /// Whether a file with these attributes can be written and then still has them.
    fn can_be_changed(&self, attributes: EntryAttributes) -> bool {
        let set = self.recording.attributes(attributes.set);
        set.xattrs.is_empty() && set.mode & OWNER_WRITE_BIT != 0 && set.mode & SET_ID_BITS == 0
    }

    /// Opens a new file to write it. Returns what it has until its attributes are set.
    fn open_new(&self, name: &CStr, attributes: EntryAttributes) -> Result<(OwnedFd, FileAttributes), Error> {
        let set = self.recording.attributes(attributes.set);
        // Only who may write a file may give it extended attributes.
        let mode = if set.xattrs.is_empty() { set.mode & CREATION_BITS } else { OWNER_BITS };
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.base_dir, name, flags, Mode::from_bits_truncate(mode))?;
        Ok((file, self.created_with(mode)))
    }

    fn created_with(&self, mode: u32) -> FileAttributes {
        FileAttributes { mode: mode & !self.umask, ..self.new_file.clone() }
    }

    fn finish_file(
        &self,
        file: &File,
        attributes: EntryAttributes,
        current: &FileAttributes,
    ) -> Result<(), Error> {
        self.recording.attributes(attributes.set).apply(file.as_fd(), current)?;
        let times = self.times(attributes);
        nix::sys::stat::futimens(file, &times.accessed, &times.modified)?;
        Ok(())
    }

    fn create_symlink(&self, name: &CStr, target: &Path, attributes: EntryAttributes) -> Result<(), Error> {
        symlinkat(target, &self.base_dir, name)?;
        let set = self.recording.attributes(attributes.set);
        if (set.uid, set.gid) != (self.new_file.uid, self.new_file.gid) {
            set.apply_to_link(self.open_path(name)?.as_fd(), &self.new_file)?;
        }
        if attributes.keeps_time { self.set_times_at(name, attributes) } else { Ok(()) }
    }

    fn create_pipe(&self, name: &CStr, attributes: EntryAttributes) -> Result<(), Error> {
        let set = self.recording.attributes(attributes.set);
        mkfifoat(&self.base_dir, name, Mode::from_bits_truncate(OWNER_BITS))?;
        let pipe = self.open_path(name)?;
        set.apply(pipe.as_fd(), &self.created_with(OWNER_BITS))?;
        let times = self.times(attributes);
        set_times(pipe.as_fd(), times.accessed, times.modified)
    }

    fn create_directory(&self, name: CString, attributes: EntryAttributes) -> Result<FilledDirectory, Error> {
        let mode = (self.recording.attributes(attributes.set).mode | OWNER_BITS) & CREATION_BITS;
        mkdirat(&self.base_dir, name.as_c_str(), Mode::from_bits_truncate(mode))?;
        Ok(FilledDirectory { name, attributes, current: self.created_with(mode) })
    }

    /// The directories that stand for the watched ones. They exist; what is created in them must inherit
    /// nothing from them.
    fn watched_directories(&self, tree: &FileTree) -> Result<Vec<FilledDirectory>, Error> {
        let mut dirs = Vec::new();
        for (name, attributes) in self.place.dir_names.iter().zip(&tree.roots) {
            let name = CString::new(name.as_str())?;
            let dir = self.open_directory(&name)?;
            let found = FileAttributes::read_without_times(dir.as_fd())?;
            let current = self.created_with(CREATION_BITS);
            if found != current {
                current.apply(dir.as_fd(), &found)?;
            }
            dirs.push(FilledDirectory { name, attributes: *attributes, current });
        }
        Ok(dirs)
    }

    fn finish_directory(&self, dir: &FilledDirectory) -> Result<(), Error> {
        let set = self.recording.attributes(dir.attributes.set);
        if !set.is_same_without_times(&dir.current) {
            set.apply(self.open_directory(&dir.name)?.as_fd(), &dir.current)?;
        }
        self.set_times_at(&dir.name, dir.attributes)
    }

    fn open_directory(&self, name: &CStr) -> Result<OwnedFd, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.base_dir, name, flags, Mode::empty())?)
    }

    fn open_path(&self, name: &CStr) -> Result<OwnedFd, Error> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&self.base_dir, name, flags, Mode::empty())?)
    }

    fn cached_bytes(&mut self, content: &FileContent) -> Result<CachedBytes, Error> {
        let digest = content.digest();
        if let Some(bytes) = self.small_files.cached.locked().by_digest.get(&digest) {
            return Ok(bytes.clone());
        }
        let bytes = Arc::new(content.head(&mut self.reader, MAX_SMALL_FILE_BYTES)?);
        let mut cached = self.small_files.cached.locked();
        if cached.len_bytes < MAX_CACHED_BYTES {
            cached.len_bytes += bytes.len();
            cached.by_digest.insert(digest, bytes.clone());
        }
        Ok(bytes)
    }

    fn set_times_at(&self, name: &CStr, attributes: EntryAttributes) -> Result<(), Error> {
        let FileTimes { accessed, modified } = self.times(attributes);
        utimensat(&self.base_dir, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }

    fn times(&self, attributes: EntryAttributes) -> FileTimes {
        let set = self.recording.attributes(attributes.set);
        let simulated = self.simulated_time(attributes.last_change);
        let modified = set.modified.filter(|_| attributes.keeps_time).map_or(simulated, |time| time.spec());
        FileTimes { accessed: set.accessed.map_or(simulated, |time| time.spec()), modified }
    }

    /// A modification time as if each operation had taken 10 ms, so that the order of the operations shows in
    /// the times. Times that files had before the run are earlier.
    fn simulated_time(&self, last_change: u32) -> TimeSpec {
        let hundredths = i64::from(last_change);
        TimeSpec::new(self.place.began_unix_s + 1 + hundredths / 100, hundredths % 100 * 10_000_000 + 1_234)
    }

    /// Empties the directories that stand for the watched ones. The recovery must have ended.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        self.pool.end_recovery();
        for name in &self.place.dir_names {
            let dir = open_subdirectory(&self.base_dir, &CString::new(name.as_str())?)?;
            empty_directory(dir, &mut |dir, name, ino| self.pool.remove(dir, name, ino))?;
        }
        self.pool.forget_lent();
        Ok(())
    }
}

/// What the pool has to have for an entry. `None`: it is no large file.
fn pool_key(entry: &TreeEntry) -> Option<PoolKey> {
    match entry {
        TreeEntry::File { content, attributes, .. } if content.len() > MAX_SMALL_FILE_BYTES => {
            Some(pool_key_of(content, *attributes))
        }
        _ => None,
    }
}

fn pool_key_of(content: &FileContent, attributes: EntryAttributes) -> PoolKey {
    PoolKey { digest: content.digest(), set: attributes.set }
}

/// The times that a file gets.
struct FileTimes {
    accessed: TimeSpec,
    modified: TimeSpec,
}

impl LinkedNames {
    fn of(tree: &FileTree) -> LinkedNames {
        let (mut seen, mut nodes) = (HashSet::new(), HashSet::new());
        for entry in tree.entries.values() {
            if let TreeEntry::File { node, .. }
            | TreeEntry::Symlink { node, .. }
            | TreeEntry::Pipe { node, .. } = entry
                && !seen.insert(*node)
            {
                nodes.insert(*node);
            }
        }
        LinkedNames { nodes, first_names: HashMap::new() }
    }
}

/// The permission bits that this process does not give to new files. Reading them in another way would change
/// them for other threads.
fn own_umask() -> Result<u32, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    umask.ok_or_else(|| Error::other("`/proc/self/status` does not tell the umask"))
}

/// The path of a tree entry relative to the base directory.
fn entry_path(dir_name: &str, path: &Path) -> Result<CString, Error> {
    let mut name = dir_name.as_bytes().to_vec();
    name.push(b'/');
    name.extend(path.as_os_str().as_bytes());
    CString::new(name).map_err(Error::other)
}
