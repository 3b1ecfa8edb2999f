//! Descriptors of ours: of files that the target has open, and of files that only need a name (`O_PATH`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::stat::FileStat;

/// A descriptor with the metadata of its file: a duplicate of one of the target's, or one that only names a
/// file (`O_PATH`).
pub(super) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) stat: FileStat,
}

impl OpenFile {
    pub(super) fn new(fd: OwnedFd) -> Result<OpenFile, Errno> {
        let stat = FileStat::of_file(fd.as_fd())?;
        Ok(OpenFile { fd, stat })
    }

    pub(super) fn clone_node(&self) -> Result<OpenFile, Errno> {
        Ok(OpenFile { fd: clone_fd(self.fd.as_fd())?, stat: self.stat })
    }
}

/// Duplicates one of our own descriptors.
pub(super) fn clone_fd(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fd.try_clone_to_owned().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// The path of an open file, within the mounts that the descriptor was opened in.
pub(super) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// Opens the file of a descriptor anew, with `O_PATH`: without its locks and its file offset.
pub(super) fn reopen_path(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    open_path(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// Opens a path with `O_PATH`.
pub(super) fn open_path(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())
}
