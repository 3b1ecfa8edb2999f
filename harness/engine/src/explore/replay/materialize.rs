//! Materializes file trees in the directories that a sandbox shows as the watched ones. Knows no crash
//! models. What the next tree has too stays, if nothing has changed the tree in between. Other small files are written;
//! larger ones come from a pool that keeps each content.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Error, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fstatat, mkdirat, mknodat, utimensat};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, mkfifoat, symlinkat, unlinkat};

use super::file_pool::{FilePool, PoolFile, PoolKey};
use super::linked_names::LinkedNames;
use super::small_file_cache::{MAX_SMALL_FILE_BYTES, SmallFileCache};
use super::standing_tree::{Standing, StandingNames};
use crate::explore::record::{
    AttributesId, ContentPatch, ContentReader, FileAttributes, FileContent, Recording, empty_directory,
    open_subdirectory, set_times,
};
use crate::explore::states::{CrashCandidate, EntryAttributes, FileTree, LayerPlan, TreeEntry};

/// The owner may write.
const OWNER_WRITE_BIT: u32 = 0o200;
/// The kernel takes these bits away when a file is written.
const SET_ID_BITS: u32 = 0o6000;
/// The permission bits that `open` and `mkdir` take.
const CREATION_BITS: u32 = 0o777;
/// What this user needs in a directory while it is filled.
const OWNER_BITS: u32 = 0o700;
/// Trees with more directories are built from nothing each time.
const MAX_WATCHED_DIRECTORIES: usize = 256;

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
    materializer.materialize(candidate.tree(recording))
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
    /// Whether names are listed in the order in which they were created.
    is_in_memory: bool,
    /// The present tree, if the next one may take over what is the same and all its directories are watched.
    standing: Option<FileTree>,
}

/// A directory whose attributes are set when everything in it is there.
struct FilledDirectory {
    name: CString,
    attributes: EntryAttributes,
    /// What it has until then.
    current: FileAttributes,
    /// Whether it is not yet watched.
    is_new: bool,
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
        let is_in_memory = fstatfs(&base_dir)?.filesystem_type() == TMPFS_MAGIC;
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
            is_in_memory,
            standing: None,
        })
    }

    /// Materializes a tree in place of the previous one: of a directory that the target sees as an overlay,
    /// only what lies above the lower layers. The recovery must have ended.
    pub(super) fn materialize(&mut self, tree: FileTree) -> Result<(), Error> {
        let is_unchanged = self.pool.end_recovery();
        let old = self.standing.take().filter(|_| is_unchanged);
        if let Some(upper) = self.layers.as_ref().map(|layers| layers.upper_layer(&tree)) {
            self.clear()?;
            let dirs = self.fill(&upper.tree, LinkedNames::of(&upper.tree), None)?;
            upper.hidden.iter().try_for_each(|(root, path)| self.hide(*root, path))?;
            return self.finish(&dirs);
        }
        let links = LinkedNames::of(&tree);
        let can_stand = self.can_stand(&tree, &links);
        let sets = |tree: &FileTree| tree.roots.iter().map(|root| root.set).collect::<Vec<_>>();
        let dirs = match old.filter(|old| can_stand && sets(old) == sets(&tree)) {
            Some(old) => {
                let standing = StandingNames::between(&old, &tree, |set| self.can_be_changed(set));
                self.remove_others(&old, &standing)?;
                self.fill(&tree, links, Some(&standing))?
            }
            None => {
                self.clear()?;
                self.fill(&tree, links, None)?
            }
        };
        self.finish(&dirs)?;
        let mut new_dirs = dirs.iter().filter(|dir| dir.is_new);
        if can_stand && new_dirs.all(|dir| self.pool.watch_directory(&self.place.base, &dir.name)) {
            self.standing = Some(tree);
        }
        Ok(())
    }

    /// Whether the next tree may take over what is the same. Not if names are names of one file, or a directory would
    /// give something of its own to what is created in it.
    fn can_stand(&self, tree: &FileTree, links: &LinkedNames) -> bool {
        let is_directory = |entry: &&TreeEntry| matches!(entry, TreeEntry::Directory { .. });
        let directories = tree.entries.values().filter(is_directory).map(TreeEntry::attributes);
        let directories = tree.roots.iter().copied().chain(directories);
        self.is_in_memory
            && links.nodes.is_empty()
            && tree.leftover_names.is_empty()
            && directories.clone().all(|attributes| self.gives_nothing(attributes.set))
            && directories.count() <= MAX_WATCHED_DIRECTORIES
    }

    /// Whether this process may create files in a directory with these attributes, and they inherit nothing.
    fn gives_nothing(&self, set: AttributesId) -> bool {
        let set = self.recording.attributes(set);
        set.xattrs.is_empty()
            && set.mode & SET_ID_BITS == 0
            && set.mode & OWNER_BITS == OWNER_BITS
            && (set.uid, set.gid) == (self.new_file.uid, self.new_file.gid)
    }

    /// Removes the names of a tree that do not stay.
    fn remove_others(&mut self, old: &FileTree, standing: &StandingNames<'_>) -> Result<(), Error> {
        for ((root, path), entry) in old.entries.iter().rev() {
            if standing.get(*root, path).is_some() {
                continue;
            }
            let name = self.name_of(*root, path)?;
            let base = &self.base_dir;
            match entry {
                TreeEntry::Directory { .. } => unlinkat(base, name.as_c_str(), UnlinkatFlags::RemoveDir)?,
                TreeEntry::File { content, .. } if content.len() > MAX_SMALL_FILE_BYTES => {
                    let found = fstatat(base, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                    self.pool.remove(base, &name, found.st_ino)?;
                }
                _ => unlinkat(base, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?,
            }
        }
        Ok(())
    }

    /// Creates what is not there yet. `None`: nothing is. Returns the directories, of which the attributes are still to be
    /// set.
    fn fill(
        &mut self,
        tree: &FileTree,
        mut links: LinkedNames,
        standing: Option<&StandingNames<'_>>,
    ) -> Result<Vec<FilledDirectory>, Error> {
        self.needed = tree.entries.values().filter_map(pool_key).collect();
        let mut dirs = self.watched_directories(tree, standing.is_some())?;
        for ((root, path), entry) in &tree.entries {
            let name = self.name_of(*root, path)?;
            match (standing.and_then(|standing| standing.get(*root, path)), entry) {
                (Some(_), TreeEntry::Directory { attributes }) => {
                    dirs.push(self.standing_directory(name, *attributes));
                }
                (Some(Standing::Rewritten), TreeEntry::File { content, attributes, .. }) => {
                    self.rewrite_small_file(&name, content, *attributes)?;
                }
                (Some(_), entry) => self.set_times_at(&name, entry.attributes())?,
                (None, TreeEntry::Directory { attributes }) => {
                    dirs.push(self.create_directory(name, *attributes)?);
                }
                (None, TreeEntry::Symlink { node, .. })
                | (None, TreeEntry::File { node, .. })
                | (None, TreeEntry::Pipe { node, .. }) => {
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
        Ok(dirs)
    }

    /// Sets the attributes of directories, at the end: each new name in a directory changes its time, and a directory
    /// may be read-only. Those below come first.
    fn finish(&mut self, dirs: &[FilledDirectory]) -> Result<(), Error> {
        dirs.iter().rev().try_for_each(|dir| self.finish_directory(dir))?;
        self.pool.begin_recovery();
        Ok(())
    }

    /// The name of a tree entry below the base directory.
    fn name_of(&self, root: u32, path: &Path) -> Result<CString, Error> {
        let mut name = self.place.dir_names[root as usize].clone().into_bytes();
        name.push(b'/');
        name.extend(path.as_os_str().as_bytes());
        CString::new(name).map_err(Error::other)
    }

    /// Makes a name of the lower layers invisible, as the kernel does: by a character device with number 0.
    fn hide(&self, root: u32, path: &Path) -> Result<(), Error> {
        let name = self.name_of(root, path)?;
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
        let bytes = self.small_files.bytes(content, &mut self.reader)?;
        let (file, current) = self.open_new(name, attributes)?;
        let mut file = File::from(file);
        file.write_all(&bytes)?;
        self.finish_file(&file, attributes, &current)
    }

    /// Gives a file that stays other bytes.
    fn rewrite_small_file(
        &mut self,
        name: &CStr,
        content: &FileContent,
        attributes: EntryAttributes,
    ) -> Result<(), Error> {
        let bytes = self.small_files.bytes(content, &mut self.reader)?;
        let flags = OFlag::O_WRONLY | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.base_dir, name, flags, Mode::empty())?);
        file.write_all(&bytes)?;
        let times = self.times(attributes);
        Ok(nix::sys::stat::futimens(&file, &times.accessed, &times.modified)?)
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
        if self.can_be_changed(attributes.set)
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
    fn can_be_changed(&self, set: AttributesId) -> bool {
        let set = self.recording.attributes(set);
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
        Ok(FilledDirectory { name, attributes, current: self.created_with(mode), is_new: true })
    }

    /// A directory that has stayed, with all its attributes but the times.
    fn standing_directory(&self, name: CString, attributes: EntryAttributes) -> FilledDirectory {
        let current = self.recording.attributes(attributes.set).clone();
        FilledDirectory { name, attributes, current, is_new: false }
    }

    /// The directories that stand for the watched ones. They exist; what is created in them must inherit
    /// nothing from them. `have_stayed`: they have what the tree before gave them.
    fn watched_directories(&self, tree: &FileTree, have_stayed: bool) -> Result<Vec<FilledDirectory>, Error> {
        let mut dirs = Vec::new();
        for (name, attributes) in self.place.dir_names.iter().zip(&tree.roots) {
            let name = CString::new(name.as_str())?;
            if have_stayed {
                dirs.push(self.standing_directory(name, *attributes));
                continue;
            }
            let dir = self.open_directory(&name)?;
            let found = FileAttributes::read_without_times(dir.as_fd())?;
            let current = self.created_with(CREATION_BITS);
            if found != current {
                current.apply(dir.as_fd(), &found)?;
            }
            dirs.push(FilledDirectory { name, attributes: *attributes, current, is_new: true });
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
        self.standing = None;
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

/// The permission bits that this process does not give to new files. Reading them in another way would change
/// them for other threads.
fn own_umask() -> Result<u32, Error> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
    umask.ok_or_else(|| Error::other("`/proc/self/status` does not tell the umask"))
}
