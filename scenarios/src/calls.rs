//! File system calls as scenarios name them: kinds of call, errnos, and the errnos that each kind can
//! plausibly return. Knows no system call numbers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A kind of file system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileCallKind {
    /// Opening for writing, or creating.
    Open,
    /// Opening for reading only.
    OpenToRead,
    Read,
    Write,
    Truncate,
    /// `fallocate`.
    Allocate,
    Rename,
    Link,
    Symlink,
    Unlink,
    Mkdir,
    Rmdir,
    Chmod,
    Fsync,
    Fdatasync,
    Close,
    Stat,
    Access,
}

/// What is lost in a crash. A kill of the process loses nothing that the kernel has; a power loss loses what
/// the file system does not guarantee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CrashModel {
    /// The target is killed, and the machine keeps running.
    Process,
    /// Power loss on ext4 (data=ordered).
    Ext4,
    /// Power loss on xfs.
    Xfs,
    /// Power loss on btrfs.
    Btrfs,
    /// Power loss on a file system that guarantees only what POSIX requires.
    Posix,
    /// Power loss with a disk that acknowledges a sync and keeps the data in a volatile cache: nothing is
    /// guaranteed since the save before the last one.
    Lying,
}

impl CrashModel {
    /// The models that a scenario uses if it names none. Without `Lying`, which stands for broken hardware.
    pub const DEFAULTS: [CrashModel; 5] =
        [CrashModel::Process, CrashModel::Ext4, CrashModel::Xfs, CrashModel::Btrfs, CrashModel::Posix];

    /// Its name in scenario files and results.
    pub fn name(self) -> &'static str {
        match self {
            CrashModel::Process => "process",
            CrashModel::Ext4 => "ext4",
            CrashModel::Xfs => "xfs",
            CrashModel::Btrfs => "btrfs",
            CrashModel::Posix => "posix",
            CrashModel::Lying => "lying",
        }
    }
}

impl FileCallKind {
    /// All kinds.
    pub const ALL: [FileCallKind; 18] = [
        FileCallKind::Open,
        FileCallKind::OpenToRead,
        FileCallKind::Read,
        FileCallKind::Write,
        FileCallKind::Truncate,
        FileCallKind::Allocate,
        FileCallKind::Rename,
        FileCallKind::Link,
        FileCallKind::Symlink,
        FileCallKind::Unlink,
        FileCallKind::Mkdir,
        FileCallKind::Rmdir,
        FileCallKind::Chmod,
        FileCallKind::Fsync,
        FileCallKind::Fdatasync,
        FileCallKind::Close,
        FileCallKind::Stat,
        FileCallKind::Access,
    ];

    /// The kinds that change files or make a change durable. Default for a trigger that names none.
    pub const MUTATING: [FileCallKind; 13] = [
        FileCallKind::Open,
        FileCallKind::Write,
        FileCallKind::Truncate,
        FileCallKind::Allocate,
        FileCallKind::Rename,
        FileCallKind::Link,
        FileCallKind::Symlink,
        FileCallKind::Unlink,
        FileCallKind::Mkdir,
        FileCallKind::Rmdir,
        FileCallKind::Chmod,
        FileCallKind::Fsync,
        FileCallKind::Fdatasync,
    ];

    /// Its name in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            FileCallKind::Open => "open",
            FileCallKind::OpenToRead => "open-to-read",
            FileCallKind::Read => "read",
            FileCallKind::Write => "write",
            FileCallKind::Truncate => "truncate",
            FileCallKind::Allocate => "allocate",
            FileCallKind::Rename => "rename",
            FileCallKind::Link => "link",
            FileCallKind::Symlink => "symlink",
            FileCallKind::Unlink => "unlink",
            FileCallKind::Mkdir => "mkdir",
            FileCallKind::Rmdir => "rmdir",
            FileCallKind::Chmod => "chmod",
            FileCallKind::Fsync => "fsync",
            FileCallKind::Fdatasync => "fdatasync",
            FileCallKind::Close => "close",
            FileCallKind::Stat => "stat",
            FileCallKind::Access => "access",
        }
    }

    /// Whether the call takes a path, so that the file at the path can be replaced between check and use.
    pub fn takes_path(self) -> bool {
        matches!(
            self,
            FileCallKind::Open
                | FileCallKind::OpenToRead
                | FileCallKind::Rename
                | FileCallKind::Link
                | FileCallKind::Unlink
                | FileCallKind::Stat
                | FileCallKind::Access
        )
    }

    /// The errnos that the call can return on a failing machine: a failing or full disk, an exceeded quota,
    /// too many open files, no memory, a read-only file system. From section 2 of the manual pages. EINTR is
    /// left out: a program that retries without an error is right then, so EINTR is tested by a scenario of
    /// its own.
    pub fn plausible_errnos(self) -> Vec<Errno> {
        let names: &[&str] = match self {
            FileCallKind::Open => {
                &["EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EROFS", "EACCES"]
            }
            FileCallKind::OpenToRead => &["EIO", "EMFILE", "ENFILE", "ENOMEM", "EACCES", "ENOENT"],
            FileCallKind::Read => &["EIO"],
            FileCallKind::Write => &["EIO", "ENOSPC", "EDQUOT", "EFBIG"],
            FileCallKind::Truncate | FileCallKind::Allocate => &["EIO", "ENOSPC", "EDQUOT"],
            FileCallKind::Rename | FileCallKind::Link | FileCallKind::Symlink | FileCallKind::Mkdir => {
                &["EIO", "ENOSPC", "EDQUOT", "ENOMEM", "EROFS", "EACCES"]
            }
            FileCallKind::Unlink | FileCallKind::Rmdir => &["EIO", "ENOMEM", "EROFS", "EACCES", "EBUSY"],
            FileCallKind::Chmod => &["EIO", "ENOMEM", "EROFS", "EPERM"],
            FileCallKind::Fsync | FileCallKind::Fdatasync => &["EIO", "ENOSPC", "EDQUOT", "EROFS"],
            FileCallKind::Close => &["EIO", "ENOSPC", "EDQUOT"],
            FileCallKind::Stat | FileCallKind::Access => &["EIO", "ENOMEM", "EACCES", "ENOENT"],
        };
        names.iter().filter_map(|name| Errno::from_name(name)).collect()
    }
}

/// Errnos that a scenario can name, with their numbers on Linux (`asm-generic/errno-base.h`,
/// `asm-generic/errno.h`).
const ERRNOS: [(&str, i32); 24] = [
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EINTR", 4),
    ("EIO", 5),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EBUSY", 16),
    ("EEXIST", 17),
    ("EXDEV", 18),
    ("ENODEV", 19),
    ("ENOTDIR", 20),
    ("EISDIR", 21),
    ("EINVAL", 22),
    ("ENFILE", 23),
    ("EMFILE", 24),
    ("ETXTBSY", 26),
    ("EFBIG", 27),
    ("ENOSPC", 28),
    ("EROFS", 30),
    ("EMLINK", 31),
    ("ENAMETOOLONG", 36),
    ("ESTALE", 116),
    ("EDQUOT", 122),
];

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno {
    /// Such as `EIO`.
    pub name: &'static str,
    /// Its number on Linux.
    pub number: i32,
}

impl Errno {
    /// The errno with this name, if a scenario can name it.
    pub fn from_name(name: &str) -> Option<Errno> {
        ERRNOS.iter().find(|(known, _)| *known == name).map(|(name, number)| Errno { name, number: *number })
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        ERRNOS.iter().map(|(name, _)| *name)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
