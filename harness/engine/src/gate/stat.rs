//! Identity and metadata of files, and which mounts are watched.

use std::collections::HashSet;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;

use super::sys;

/// Identifies a file while it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device number, major in the upper 32 bits and minor in the lower ones.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
}

/// Metadata of a file, from statx.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileStat {
    pub(super) file_id: FileId,
    pub(super) mount_id: u64,
    pub(super) size_bytes: u64,
    /// File type and permissions, as `st_mode`.
    pub(super) mode: u32,
    /// The group, as this process sees it.
    pub(super) gid: u32,
}

impl FileStat {
    /// Metadata of a name in a directory. Does not follow a symbolic link.
    pub(super) fn of_entry(dir: BorrowedFd<'_>, name: &CStr) -> Result<FileStat, Errno> {
        let raw_stat = sys::statx(dir, name)?;
        let dev = u64::from(raw_stat.stx_dev_major) << 32 | u64::from(raw_stat.stx_dev_minor);
        Ok(FileStat {
            file_id: FileId { dev, ino: raw_stat.stx_ino },
            mount_id: raw_stat.stx_mnt_id,
            size_bytes: raw_stat.stx_size,
            mode: u32::from(raw_stat.stx_mode),
            gid: raw_stat.stx_gid,
        })
    }

    /// Metadata of an open file.
    pub(super) fn of_file(file: BorrowedFd<'_>) -> Result<FileStat, Errno> {
        FileStat::of_entry(file, c"")
    }

    /// The file type, as one of the `S_IF*` constants.
    pub(super) fn file_type(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Whether a recording has files of this type: no sockets and devices.
    pub(super) fn has_recorded_type(&self) -> bool {
        matches!(self.file_type(), libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFIFO)
    }
}

/// The mounts whose files are watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchedMounts {
    mount_ids: HashSet<u64>,
    /// The device numbers of their file systems.
    devices: HashSet<u64>,
}

impl WatchedMounts {
    /// The mounts that contain these paths.
    ///
    /// # Errors
    /// A path can't be opened, or statx fails.
    pub fn of<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> std::io::Result<WatchedMounts> {
        let mut mounts = WatchedMounts::default();
        for path in paths {
            let file = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
            let stat = FileStat::of_file(file.as_fd())?;
            mounts.mount_ids.insert(stat.mount_id);
            mounts.devices.insert(stat.file_id.dev);
        }
        Ok(mounts)
    }

    /// Whether the file is in a watched mount.
    pub(super) fn contains(&self, stat: &FileStat) -> bool {
        self.mount_ids.contains(&stat.mount_id)
    }

    /// Whether the file is on the file system of a watched mount.
    pub(super) fn has_file_system_of(&self, stat: &FileStat) -> bool {
        self.devices.contains(&stat.file_id.dev)
    }

    /// Whether a file of which only its identity is known may be in a watched mount.
    pub(super) fn may_contain(&self, file_id: FileId) -> bool {
        self.devices.contains(&file_id.dev)
    }
}

/// The identity of an open file.
///
/// # Errors
/// If statx fails.
pub fn file_id_of(file: BorrowedFd<'_>) -> std::io::Result<FileId> {
    Ok(FileStat::of_file(file)?.file_id)
}
