//! Materializes file trees in the directories that a sandbox shows as the watched ones. Knows no crash
//! models. Small files are written each time. Larger ones are hard links into a pool that holds each content
//! once; if a recovery writes into one, its modification time shows it, and the content is written again.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{BufWriter, Error, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, symlinkat};

use crate::explore::record::{ContentReader, FileContent, FileNode, Recording};
use crate::explore::states::{CrashCandidate, FileTree, TreeEntry};
use crate::locks::LockExt;

/// Up to this size, writing a file is as fast as linking it.
const MAX_SMALL_FILE_BYTES: u64 = 16 * 1024;
/// At most this many bytes of small contents are kept in memory.
const MAX_CACHED_BYTES: usize = 64 * 1024 * 1024;

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
    /// Modification times count from here, in seconds since 1970.
    pub began_unix_s: i64,
}

/// Materializes one crash state.
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
    /// Contains a directory for each watched one, and `pool`.
    base_dir: OwnedFd,
    place: MaterializePlace,
    /// The pool files that the current tree links.
    linked_files: Vec<LinkedFile>,
    /// The length of each file in the pool, by its key.
    pooled_len_bytes: HashMap<String, u64>,
    max_pool_bytes: u64,
}

/// A file of the pool that the current tree links, as it was before the recovery.
struct LinkedFile {
    key: String,
    /// Of its modification time.
    nanoseconds: i64,
    len_bytes: u64,
}

impl<'a> Materializer<'a> {
    /// The pool keeps at most `max_pool_bytes` bytes in addition to the current tree.
    pub(super) fn new(
        recording: &'a Recording,
        small_files: &'a SmallFileCache,
        place: MaterializePlace,
        max_pool_bytes: u64,
    ) -> Result<Materializer<'a>, Error> {
        std::fs::create_dir_all(place.base.join("pool"))?;
        Ok(Materializer {
            recording,
            reader: ContentReader::new(recording)?,
            small_files,
            base_dir: File::open(&place.base)?.into(),
            place,
            linked_files: Vec::new(),
            pooled_len_bytes: HashMap::new(),
            max_pool_bytes,
        })
    }

    /// Materializes a tree in place of the previous one.
    pub(super) fn materialize(&mut self, tree: &FileTree) -> Result<(), Error> {
        self.clear()?;
        let mut dirs = Vec::new();
        for ((root, path), entry) in &tree.entries {
            let name = entry_path(&self.place.dir_names[*root as usize], path)?;
            match entry {
                TreeEntry::Directory { last_change } => {
                    nix::sys::stat::mkdirat(
                        &self.base_dir,
                        name.as_c_str(),
                        Mode::from_bits_truncate(0o755),
                    )?;
                    dirs.push((name, *last_change));
                }
                TreeEntry::Symlink(target) => symlinkat(target.as_path(), &self.base_dir, name.as_c_str())?,
                TreeEntry::File { node, content, last_change } => {
                    self.create_file(&name, *node, content, *last_change)?
                }
            }
        }
        // The times of directories are set at the end, because each new name in a directory changes its time.
        for (name, last_change) in dirs.iter().rev() {
            self.set_times(name, *last_change)?;
        }
        Ok(())
    }

    fn create_file(
        &mut self,
        name: &CString,
        node: u32,
        content: &FileContent,
        last_change: u32,
    ) -> Result<(), Error> {
        if content.len() > MAX_SMALL_FILE_BYTES {
            return self.link_from_pool(name, content, last_change);
        }
        let mode = match self.recording.nodes[node as usize] {
            FileNode::File { mode, .. } => mode,
            _ => 0o644,
        };
        let bytes = self.cached_bytes(content)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.base_dir, name.as_c_str(), flags, Mode::from_bits_truncate(mode))?;
        let mut file = File::from(file);
        file.write_all(&bytes)?;
        let time = self.simulated_time(last_change);
        nix::sys::stat::futimens(&file, &time, &time)?;
        Ok(())
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

    /// Links the file of the pool with this content. Writes it first if the pool does not have it.
    fn link_from_pool(
        &mut self,
        name: &CString,
        content: &FileContent,
        last_change: u32,
    ) -> Result<(), Error> {
        let key: String = content.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{key}-{last_change}");
        if !self.pooled_len_bytes.contains_key(&key) {
            self.evict_from_pool(content.len());
            let path = self.pool_path(&key);
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
            content.write_to(&mut self.reader, &mut file)?;
            let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            let time = self.simulated_time(last_change);
            nix::sys::stat::futimens(&file, &time, &time)?;
            self.pooled_len_bytes.insert(key.clone(), content.len());
        }
        let from = CString::new(format!("pool/{key}"))?;
        linkat(&self.base_dir, from.as_c_str(), &self.base_dir, name.as_c_str(), AtFlags::empty())?;
        let nanoseconds = self.simulated_time(last_change).tv_nsec();
        self.linked_files.push(LinkedFile { key, nanoseconds, len_bytes: content.len() });
        Ok(())
    }

    fn pool_path(&self, key: &str) -> PathBuf {
        self.place.base.join("pool").join(key)
    }

    /// Removes unused files from the pool until the needed bytes fit.
    fn evict_from_pool(&mut self, needed_bytes: u64) {
        let mut pooled_bytes: u64 = self.pooled_len_bytes.values().sum();
        let is_linked = |key: &&String| self.linked_files.iter().any(|linked| linked.key == **key);
        let unused: Vec<String> =
            self.pooled_len_bytes.keys().filter(|key| !is_linked(key)).cloned().collect();
        for key in unused {
            if pooled_bytes + needed_bytes <= self.max_pool_bytes {
                return;
            }
            pooled_bytes -= self.pooled_len_bytes.remove(&key).unwrap_or(0);
            // A file that cannot be removed here is removed with the directory of the run.
            let _ = std::fs::remove_file(self.pool_path(&key));
        }
    }

    /// Drops the pool files that the recovery has written into, so that they are written again when needed.
    pub(super) fn drop_modified(&mut self) {
        for linked in std::mem::take(&mut self.linked_files) {
            let path = self.pool_path(&linked.key);
            let is_unchanged = std::fs::metadata(&path).is_ok_and(|metadata| {
                metadata.len() == linked.len_bytes
                    && metadata.mtime_nsec() == linked.nanoseconds
                    && metadata.mtime() <= self.place.began_unix_s + 100_000
            });
            if !is_unchanged {
                let _ = std::fs::remove_file(&path);
                self.pooled_len_bytes.remove(&linked.key);
            }
        }
    }

    fn set_times(&self, name: &CString, last_change: u32) -> Result<(), Error> {
        let time = self.simulated_time(last_change);
        utimensat(&self.base_dir, name.as_c_str(), &time, &time, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }

    /// A modification time as if each operation had taken 10 ms, so that the order of the operations shows in
    /// the times.
    fn simulated_time(&self, last_change: u32) -> TimeSpec {
        let hundredths = i64::from(last_change);
        TimeSpec::new(self.place.began_unix_s + hundredths / 100, hundredths % 100 * 10_000_000 + 1_234)
    }

    /// Empties the directories that stand for the watched ones.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        self.drop_modified();
        for name in &self.place.dir_names {
            let dir = openat(
                self.base_dir.as_fd(),
                name.as_str(),
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            empty_directory(dir)?;
        }
        Ok(())
    }
}

fn empty_directory(directory: OwnedFd) -> Result<(), Error> {
    use nix::dir::{Dir, Type};
    use nix::unistd::{UnlinkatFlags, unlinkat};
    let directory_fd = directory.try_clone()?;
    let mut dir = Dir::from_fd(directory)?;
    let mut entries = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push((entry.file_name().to_owned(), entry.file_type() == Some(Type::Directory)));
        }
    }
    for (name, is_dir) in entries {
        if is_dir {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            empty_directory(openat(&directory_fd, name.as_c_str(), flags, Mode::empty())?)?;
            unlinkat(&directory_fd, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        } else {
            unlinkat(&directory_fd, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}

/// The path of a tree entry relative to the base directory.
fn entry_path(dir_name: &str, path: &Path) -> Result<CString, Error> {
    let mut name = dir_name.as_bytes().to_vec();
    name.push(b'/');
    name.extend(path.as_os_str().as_bytes());
    CString::new(name).map_err(Error::other)
}
