//! Errors of writes, classified by what people can do about them.

use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::space::is_out_of_inodes;
use crate::denial::{Access, explained};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} `{path}`", path = .path.display())]
pub struct DurableError {
    /// What was attempted, as an infinitive: `rename to`.
    pub action: &'static str,
    /// The file or the directory.
    pub path: PathBuf,
    /// Why the operating system refused it.
    pub source: DiskError,
}

/// Why the operating system refused a write. The text contains what to do next.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No bytes are free (`ENOSPC`).
    #[error("no space left; free some space, the write is retried")]
    NoSpace,
    /// No inodes are free (`ENOSPC` as well).
    #[error("no inodes left, although bytes may be free; remove small files, the write is retried")]
    NoInodes,
    /// The file system is read-only (`EROFS`).
    #[error("the file system is read-only; remount it writable")]
    ReadOnly,
    /// The quota is used up (`EDQUOT`).
    #[error("the disk quota is used up; free some space or raise the quota")]
    Quota,
    /// The process may not write so large a file (`EFBIG`).
    #[error("the limit on the size of files is reached; raise it (`ulimit -f`)")]
    FileTooLarge,
    /// Any other error.
    #[error(transparent)]
    Other(std::io::Error),
}

impl DiskError {
    /// Classifies the error of an operation on `path`.
    fn new(error: std::io::Error, path: &Path) -> DiskError {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC) if is_out_of_inodes(path) => DiskError::NoInodes,
            Some(Errno::ENOSPC) => DiskError::NoSpace,
            Some(Errno::EROFS) => DiskError::ReadOnly,
            Some(Errno::EDQUOT) => DiskError::Quota,
            Some(Errno::EFBIG) => DiskError::FileTooLarge,
            _ => DiskError::Other(explained(error, path, Access::Write)),
        }
    }
}

impl DurableError {
    /// Adds to an I/O error what was attempted, and on which file.
    pub(super) fn new(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DurableError {
        let path = path.to_path_buf();
        move |error| {
            let source = DiskError::new(error, &path);
            DurableError { action, path, source }
        }
    }

    /// Whether the file or the directory does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(&self.source, DiskError::Other(error) if error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Whether the file system does not allow so long a name.
    pub fn is_name_too_long(&self) -> bool {
        let DiskError::Other(error) = &self.source else { return false };
        error.raw_os_error() == Some(Errno::ENAMETOOLONG as i32)
    }
}
