//! Copies a directory tree exactly: contents with their holes, permission bits, owners, extended attributes,
//! times, hard links, named pipes. Knows nothing of recordings.
//!
//! Every step works relative to an open directory and never follows a symbolic link, so a tree that changes
//! meanwhile leads nowhere else. The directories above the current one are not kept open: a tree may be deeper
//! than this process may have files open.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::io::Error;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat};
use nix::libc;
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{linkat, mkfifoat, symlinkat};

use super::attributes::{FileAttributes, UnsetAttributes, set_times};
use super::copy_file::{copy_contents, open_to_read};
use super::directory_walk::{InodeId, parent_of};
use super::recording::{CountedPaths, RecordingGaps};
use crate::file_error::{FileError, file_error};
use crate::sandbox::is_interrupted;

/// What a copy lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Files and directories that belong to this user in the copy, because it may not set the real owner.
    pub owners_not_kept: CountedPaths,
    /// Files and directories that lack an extended attribute in the copy.
    pub xattrs_not_kept: CountedPaths,
    /// Sockets and devices, which are not in the copy.
    pub left_out: CountedPaths,
}

impl CopyReport {
    /// Adds what another copy lacks.
    pub fn add(&mut self, other: CopyReport) {
        merge(&mut self.owners_not_kept, other.owners_not_kept);
        merge(&mut self.xattrs_not_kept, other.xattrs_not_kept);
        merge(&mut self.left_out, other.left_out);
    }

    /// Adds what the copies lack to what the recording of a run on them does not cover.
    pub(super) fn add_to(self, gaps: &mut RecordingGaps) {
        merge(&mut gaps.owners_not_kept, self.owners_not_kept);
        merge(&mut gaps.xattrs_not_kept, self.xattrs_not_kept);
        merge(&mut gaps.files_left_out, self.left_out);
    }
}

fn merge(sum: &mut CountedPaths, other: CountedPaths) {
    sum.count += other.count;
    sum.first = sum.first.take().or(other.first);
}

/// Copies a directory with everything in it. `to` is created if it does not exist; what it contains has other
/// names than what is copied, apart from directories: what is copied goes into those.
///
/// # Errors
/// Something cannot be read or written; the error names it.
pub fn copy_tree(from: &Path, to: &Path) -> Result<CopyReport, FileError> {
    copy_tree_reporting(from, to, &mut |_| ())
}

/// The same. Calls `on_copied` with numbers of bytes that have been copied since the last call.
pub(super) fn copy_tree_reporting(
    from: &Path,
    to: &Path,
    on_copied: &mut dyn FnMut(u64),
) -> Result<CopyReport, FileError> {
    std::fs::create_dir_all(to).map_err(file_error::<FileError>("create", to))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open_top = |path: &Path| open(path, flags, Mode::empty()).map_err(Error::from);
    let source = open_top(from).map_err(file_error::<FileError>("read", from))?;
    let copy = open_top(to).map_err(file_error::<FileError>("write to", to))?;
    let top = copy.try_clone().map_err(file_error::<FileError>("write to", to))?;
    let mut tree_copy = TreeCopy {
        source,
        copy,
        top,
        below: PathBuf::new(),
        levels: Vec::new(),
        linked_files: HashMap::new(),
        report: CopyReport::default(),
        on_copied,
    };
    let copied = tree_copy.run();
    copied.map_err(|FailedStep { doing, below, source }| FileError {
        doing,
        path: from.join(below),
        source,
    })?;
    let CopyReport { owners_not_kept, xattrs_not_kept, left_out } = tree_copy.report;
    let below_from =
        |paths: CountedPaths| CountedPaths { first: paths.first.map(|first| from.join(first)), ..paths };
    Ok(CopyReport {
        owners_not_kept: below_from(owners_not_kept),
        xattrs_not_kept: below_from(xattrs_not_kept),
        left_out: below_from(left_out),
    })
}

/// Creates a directory with the attributes of another one, and copies nothing that is in it.
///
/// # Errors
/// One of them cannot be opened, or an attribute cannot be read or set.
pub(super) fn copy_directory_alone(from: &Path, to: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(to).map_err(file_error::<FileError>("create", to))?;
    let open_directory = |path: &Path| {
        open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(Error::from)
    };
    let original = open_directory(from).map_err(file_error::<FileError>("read", from))?;
    let attributes = FileAttributes::read(original.as_fd()).map_err(file_error::<FileError>("read", from))?;
    let applied = open_directory(to).and_then(|copy| apply(&attributes, &copy));
    applied.map(drop).map_err(file_error::<FileError>("set the attributes of", to))
}

/// A step of a copy that failed.
struct FailedStep {
    doing: &'static str,
    /// The path below the top.
    below: PathBuf,
    source: Error,
}

/// A directory between the top and the current one.
struct CopyLevel {
    /// Subdirectories that are not copied yet.
    subdirectories: Vec<CString>,
    attributes: FileAttributes,
    source_id: InodeId,
    copy_id: InodeId,
}

/// A copy in progress: the current directory on both sides, and the levels above it.
struct TreeCopy<'c> {
    source: OwnedFd,
    copy: OwnedFd,
    /// The directory into which everything is copied.
    top: OwnedFd,
    /// The path of the current directory below the top.
    below: PathBuf,
    levels: Vec<CopyLevel>,
    /// Where the first name of each file with several names is, below the top.
    linked_files: HashMap<InodeId, PathBuf>,
    report: CopyReport,
    on_copied: &'c mut dyn FnMut(u64),
}

impl TreeCopy<'_> {
    fn run(&mut self) -> Result<(), FailedStep> {
        self.copy_entries()?;
        while let Some(level) = self.levels.last_mut() {
            let below = self.below.clone();
            match level.subdirectories.pop() {
                Some(name) => {
                    let below = below.join(OsStr::from_bytes(name.as_bytes()));
                    let entered = self.enter(&name);
                    if entered.map_err(|source| FailedStep { doing: "copy", below, source })? {
                        self.copy_entries()?;
                    }
                }
                None => self.leave().map_err(|source| FailedStep { doing: "copy", below, source })?,
            }
        }
        Ok(())
    }

    /// Copies everything but the subdirectories, which wait on a new level.
    fn copy_entries(&mut self) -> Result<(), FailedStep> {
        let failed = |below: &Path| {
            let below = below.to_path_buf();
            move |source| FailedStep { doing: "read", below, source }
        };
        let names = names_in(&self.source).map_err(failed(&self.below))?;
        let mut subdirectories = Vec::new();
        for name in names {
            let is_directory = self.copy_entry(&name).map_err(|source| {
                let below = self.below.join(OsStr::from_bytes(name.as_bytes()));
                FailedStep { doing: "copy", below, source }
            })?;
            if is_directory {
                subdirectories.push(name);
            }
        }
        let level = CopyLevel::of(&self.source, &self.copy, subdirectories).map_err(failed(&self.below))?;
        self.levels.push(level);
        Ok(())
    }

    /// Goes down into a subdirectory. Returns false if it is no longer there.
    fn enter(&mut self, name: &CStr) -> Result<bool, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let source = match openat(&self.source, name, flags, Mode::empty()) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(false),
            source => source?,
        };
        match mkdirat(&self.copy, name, Mode::S_IRWXU) {
            // A mount point. If it is something else, it cannot be opened.
            Err(Errno::EEXIST) => {}
            made => made?,
        }
        self.copy = openat(&self.copy, name, flags, Mode::empty())?;
        self.source = source;
        self.below.push(OsStr::from_bytes(name.to_bytes()));
        Ok(true)
    }

    /// Completes the current directory and goes up.
    fn leave(&mut self) -> Result<(), Error> {
        let Some(left) = self.levels.pop() else { return Ok(()) };
        let directories = match self.levels.last() {
            Some(level) => {
                Some([parent_of(&self.source, level.source_id)?, parent_of(&self.copy, level.copy_id)?])
            }
            None => None,
        };
        let unset = apply(&left.attributes, &self.copy)?;
        self.note_unset(unset, self.below.clone());
        if let Some([source, copy]) = directories {
            (self.source, self.copy) = (source, copy);
            self.below.pop();
        }
        Ok(())
    }

    /// Copies an entry that is no directory. Returns whether it is one.
    fn copy_entry(&mut self, name: &CStr) -> Result<bool, Error> {
        // A large directory takes minutes.
        if is_interrupted() {
            return Err(Error::from(std::io::ErrorKind::Interrupted));
        }
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = match openat(&self.source, name, flags, Mode::empty()) {
            // It has disappeared since its name was read.
            Err(Errno::ENOENT) => return Ok(false),
            file => file?,
        };
        let stat = fstat(&file)?;
        let kind = stat.st_mode & libc::S_IFMT;
        let below = self.below.join(OsStr::from_bytes(name.to_bytes()));
        match kind {
            libc::S_IFDIR => return Ok(true),
            libc::S_IFREG | libc::S_IFLNK | libc::S_IFIFO => {}
            _ => {
                self.report.left_out.add(|| below);
                return Ok(false);
            }
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked_files.get(&InodeId::of(&stat)) {
                self.link(first, name)?;
                return Ok(false);
            }
            self.linked_files.insert(InodeId::of(&stat), below.clone());
        }
        let attributes = FileAttributes::read(file.as_fd())?;
        match kind {
            libc::S_IFREG => self.copy_file(name, &file, stat.st_size as u64)?,
            libc::S_IFLNK => symlinkat(readlinkat(&file, c"")?.as_os_str(), &self.copy, name)?,
            _ => mkfifoat(&self.copy, name, Mode::S_IRUSR | Mode::S_IWUSR)?,
        }
        let unset = apply(&attributes, &openat(&self.copy, name, flags, Mode::empty())?)?;
        self.note_unset(unset, below);
        Ok(false)
    }

    fn copy_file(&mut self, name: &CStr, file: &OwnedFd, len_bytes: u64) -> Result<(), Error> {
        let source = open_to_read(file.as_fd())?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let copy = openat(&self.copy, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        copy_contents(source, copy, len_bytes, self.on_copied)
    }

    /// Makes a name in the current directory another name of a file that is copied already. `first`: its path
    /// below the top.
    fn link(&self, first: &Path, name: &CStr) -> Result<(), Error> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut dir = self.top.try_clone()?;
        // One component at a time, because the whole path may be longer than a path may be.
        for component in first.parent().into_iter().flat_map(Path::components) {
            dir = openat(&dir, component.as_os_str(), flags, Mode::empty())?;
        }
        let first_name = first.file_name().unwrap_or_default();
        Ok(linkat(&dir, first_name, &self.copy, name, AtFlags::empty())?)
    }

    fn note_unset(&mut self, unset: UnsetAttributes, below: PathBuf) {
        if unset.owner {
            self.report.owners_not_kept.add(|| below.clone());
        }
        if unset.xattrs {
            self.report.xattrs_not_kept.add(|| below);
        }
    }
}

impl CopyLevel {
    fn of(source: &OwnedFd, copy: &OwnedFd, subdirectories: Vec<CString>) -> Result<CopyLevel, Error> {
        Ok(CopyLevel {
            subdirectories,
            attributes: FileAttributes::read(source.as_fd())?,
            source_id: InodeId::of(&fstat(source)?),
            copy_id: InodeId::of(&fstat(copy)?),
        })
    }
}

/// Gives an entry of the copy the attributes of its source.
fn apply(attributes: &FileAttributes, copy: &OwnedFd) -> Result<UnsetAttributes, Error> {
    let current = FileAttributes::read_without_times(copy.as_fd())?;
    let unset = if fstat(copy)?.st_mode & libc::S_IFMT == libc::S_IFLNK {
        attributes.apply_to_link(copy.as_fd(), &current)?
    } else {
        attributes.apply(copy.as_fd(), &current)?
    };
    if let (Some(accessed), Some(modified)) = (attributes.accessed, attributes.modified) {
        set_times(copy.as_fd(), accessed.spec(), modified.spec())?;
    }
    Ok(unset)
}

/// The names in a directory, without `.` and `..`.
fn names_in(dir: &OwnedFd) -> Result<Vec<CString>, Error> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(open_to_read(dir.as_fd())?)?.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}
