//! Lays a tree out where a room shows it as the watched folders, and takes it away again.
//!
//! Small files are written anew each time. Larger ones are hard links to a pool that holds each content once; a
//! recovery that writes into such a file is noticed by its time of modification, and the content is made anew.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{BufWriter, Error, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, symlinkat};

use super::content::{ContentReader, FileContent};
use super::crash_candidate::{CrashCandidate, FileTree, TreeEntry};
use super::recording::{FileNode, Recording};

/// Up to this size writing a file costs no more than linking it.
const MAX_SMALL_FILE_BYTES: u64 = 16 * 1024;
/// Bytes of small contents that are kept in memory.
const MAX_CACHED_BYTES: usize = 64 * 1024 * 1024;

type CachedBytes = Arc<Vec<u8>>;

/// Contents of small files, shared by all who lay out.
#[derive(Default)]
pub(super) struct SmallFileCache {
    /// How many bytes, and each content by its digest.
    entries: Mutex<(usize, HashMap<[u8; 16], CachedBytes>)>,
}

/// Lays one state out, once: each watched folder in one of these, which exist in `base`. A folder `pool` is made beside them. Times are counted
/// from `began`, in seconds since 1970.
pub fn materialize(
    recording: &Recording,
    candidate: &CrashCandidate,
    (base, folders): (&Path, Vec<String>),
    began: i64,
) -> Result<(), Error> {
    let small = SmallFileCache::default();
    let mut layout = Materializer::new(recording, &small, base, folders, u64::MAX, began)?;
    layout.materialize(&candidate.tree(recording))
}

/// One worker's place.
pub(super) struct Materializer<'a> {
    recording: &'a Recording,
    reader: ContentReader<'a>,
    small_files: &'a SmallFileCache,
    /// Holds a folder for each watched one, and `pool`.
    base_dir: OwnedFd,
    base_path: PathBuf,
    dir_names: Vec<String>,
    linked_files: Vec<(String, i64, u64)>,
    pooled_len_bytes: HashMap<String, u64>,
    max_pool_bytes: u64,
    /// Seconds since 1970 at which the recording began.
    began_unix_s: i64,
}

impl<'a> Materializer<'a> {
    /// `base` exists and has the folders in it, one for each watched one. At most `pool_most` bytes are kept in the pool beside the current state.
    pub(super) fn new(
        recording: &'a Recording,
        small: &'a SmallFileCache,
        base: &Path,
        folders: Vec<String>,
        pool_most: u64,
        began: i64,
    ) -> Result<Materializer<'a>, Error> {
        std::fs::create_dir_all(base.join("pool"))?;
        Ok(Materializer {
            recording,
            reader: ContentReader::new(recording)?,
            small_files: small,
            base_dir: File::open(base)?.into(),
            base_path: base.into(),
            dir_names: folders,
            linked_files: Vec::new(),
            pooled_len_bytes: HashMap::new(),
            max_pool_bytes: pool_most,
            began_unix_s: began,
        })
    }

    /// Lays it out; what was there before is gone.
    pub(super) fn materialize(&mut self, tree: &FileTree) -> Result<(), Error> {
        self.clear()?;
        let mut folders = Vec::new();
        for ((root, path), leaf) in &tree.entries {
            let name = entry_path(&self.dir_names[*root as usize], path)?;
            match leaf {
                TreeEntry::Directory { last_change: touched } => {
                    nix::sys::stat::mkdirat(
                        &self.base_dir,
                        name.as_c_str(),
                        Mode::from_bits_truncate(0o755),
                    )?;
                    folders.push((name, *touched));
                }
                TreeEntry::Symlink(text) => symlinkat(text.as_path(), &self.base_dir, name.as_c_str())?,
                TreeEntry::File { node, content, last_change: touched } => {
                    self.create_file(&name, *node, content, *touched)?
                }
            }
        }
        // Afterwards, since each name in a folder changes its time.
        for (name, touched) in folders.iter().rev() {
            self.set_times(name, *touched)?;
        }
        Ok(())
    }

    fn create_file(
        &mut self,
        name: &CString,
        node: u32,
        content: &FileContent,
        touched: u32,
    ) -> Result<(), Error> {
        if content.len() > MAX_SMALL_FILE_BYTES {
            return self.link_from_pool(name, content, touched);
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
        let time = self.simulated_time(touched);
        nix::sys::stat::futimens(&file, &time, &time)?;
        Ok(())
    }

    fn cached_bytes(&mut self, content: &FileContent) -> Result<CachedBytes, Error> {
        let digest = content.digest();
        let lock = || self.small_files.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = lock().1.get(&digest) {
            return Ok(bytes.clone());
        }
        let bytes = Arc::new(content.head(&mut self.reader, MAX_SMALL_FILE_BYTES)?);
        let mut known = lock();
        if known.0 < MAX_CACHED_BYTES {
            known.0 += bytes.len();
            known.1.insert(digest, bytes.clone());
        }
        Ok(bytes)
    }

    /// The content's file in the pool is linked; made first where it is not there.
    fn link_from_pool(&mut self, name: &CString, content: &FileContent, touched: u32) -> Result<(), Error> {
        let key: String = content.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{key}-{touched}");
        if !self.pooled_len_bytes.contains_key(&key) {
            self.evict_from_pool(content.len());
            let path = self.base_path.join("pool").join(&key);
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
            content.write_to(&mut self.reader, &mut file)?;
            let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            let time = self.simulated_time(touched);
            nix::sys::stat::futimens(&file, &time, &time)?;
            self.pooled_len_bytes.insert(key.clone(), content.len());
        }
        let from = CString::new(format!("pool/{key}"))?;
        linkat(&self.base_dir, from.as_c_str(), &self.base_dir, name.as_c_str(), AtFlags::empty())?;
        self.linked_files.push((key, self.simulated_time(touched).tv_nsec(), content.len()));
        Ok(())
    }

    fn evict_from_pool(&mut self, bytes: u64) {
        let mut held: u64 = self.pooled_len_bytes.values().sum();
        let needed: Vec<String> = self.linked_files.iter().map(|(key, ..)| key.clone()).collect();
        let spare: Vec<String> =
            self.pooled_len_bytes.keys().filter(|key| !needed.contains(key)).cloned().collect();
        for key in spare {
            if held + bytes <= self.max_pool_bytes {
                return;
            }
            held -= self.pooled_len_bytes.remove(&key).unwrap_or(0);
            // What can't be removed is removed with the run's folder.
            let _ = std::fs::remove_file(self.base_path.join("pool").join(&key));
        }
    }

    /// Contents that the recovery has written into, in place, are made anew next time.
    pub(super) fn drop_modified(&mut self) {
        for (key, nanoseconds, bytes) in std::mem::take(&mut self.linked_files) {
            let path = self.base_path.join("pool").join(&key);
            let same = std::fs::metadata(&path).is_ok_and(|facts| {
                facts.len() == bytes
                    && facts.mtime_nsec() == nanoseconds
                    && facts.mtime() <= self.began_unix_s + 100_000
            });
            if !same {
                let _ = std::fs::remove_file(&path);
                self.pooled_len_bytes.remove(&key);
            }
        }
    }

    fn set_times(&self, name: &CString, touched: u32) -> Result<(), Error> {
        let time = self.simulated_time(touched);
        utimensat(&self.base_dir, name.as_c_str(), &time, &time, UtimensatFlags::NoFollowSymlink)?;
        Ok(())
    }

    /// As if each operation had taken a hundredth of a second: what goes by times sees the order that there was.
    fn simulated_time(&self, touched: u32) -> TimeSpec {
        let hundredths = i64::from(touched);
        TimeSpec::new(self.began_unix_s + hundredths / 100, hundredths % 100 * 10_000_000 + 1_234)
    }

    /// Empties the watched folders.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        self.drop_modified();
        for folder in &self.dir_names {
            let folder = openat(
                self.base_dir.as_fd(),
                folder.as_str(),
                OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )?;
            empty_directory(folder)?;
        }
        Ok(())
    }
}

fn empty_directory(folder: OwnedFd) -> Result<(), Error> {
    use nix::dir::{Dir, Type};
    use nix::unistd::{UnlinkatFlags, unlinkat};
    let again = folder.try_clone()?;
    let mut dir = Dir::from_fd(folder)?;
    let mut entries = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            entries.push((entry.file_name().to_owned(), entry.file_type() == Some(Type::Directory)));
        }
    }
    for (name, is_folder) in entries {
        if is_folder {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            empty_directory(openat(&again, name.as_c_str(), flags, Mode::empty())?)?;
            unlinkat(&again, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        } else {
            unlinkat(&again, name.as_c_str(), UnlinkatFlags::NoRemoveDir)?;
        }
    }
    Ok(())
}

fn entry_path(folder: &str, path: &Path) -> Result<CString, Error> {
    let mut name = folder.as_bytes().to_vec();
    name.push(b'/');
    name.extend(path.as_os_str().as_bytes());
    CString::new(name).map_err(Error::other)
}
