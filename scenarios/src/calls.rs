//! File system calls as scenarios name them: operations, errnos, and which errno an operation may plausibly return.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A kind of file system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Opening for writing, or creating.
    Open,
    /// Opening for reading only.
    OpenToRead,
    Read,
    Write,
    Truncate,
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

/// What a crash takes with it: a kill nothing that the kernel has, a power loss what a file system does not promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CrashOf {
    /// The target is killed; the machine runs on.
    Process,
    /// Power loss on ext4 (data=ordered).
    Ext4,
    /// Power loss on xfs.
    Xfs,
    /// Power loss on btrfs.
    Btrfs,
    /// Power loss where nothing is certain but what POSIX promises.
    Posix,
    /// Power loss with a disk that says `synced` and keeps it in a cache that the power takes: nothing is certain since the last
    /// save but one.
    LyingDisk,
}

impl CrashOf {
    /// What is meant where none is named: a lying disk is a broken one.
    pub const USUAL: [CrashOf; 5] =
        [CrashOf::Process, CrashOf::Ext4, CrashOf::Xfs, CrashOf::Btrfs, CrashOf::Posix];
}

impl Operation {
    /// Every one.
    pub const ALL: [Operation; 18] = [
        Operation::Open,
        Operation::OpenToRead,
        Operation::Read,
        Operation::Write,
        Operation::Truncate,
        Operation::Allocate,
        Operation::Rename,
        Operation::Link,
        Operation::Symlink,
        Operation::Unlink,
        Operation::Mkdir,
        Operation::Rmdir,
        Operation::Chmod,
        Operation::Fsync,
        Operation::Fdatasync,
        Operation::Close,
        Operation::Stat,
        Operation::Access,
    ];

    /// Those that change files or make a change durable: what a trigger means that names none.
    pub const CHANGES: [Operation; 13] = [
        Operation::Open,
        Operation::Write,
        Operation::Truncate,
        Operation::Allocate,
        Operation::Rename,
        Operation::Link,
        Operation::Symlink,
        Operation::Unlink,
        Operation::Mkdir,
        Operation::Rmdir,
        Operation::Chmod,
        Operation::Fsync,
        Operation::Fdatasync,
    ];

    /// As a scenario names it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Open => "open",
            Operation::OpenToRead => "open-to-read",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Truncate => "truncate",
            Operation::Allocate => "allocate",
            Operation::Rename => "rename",
            Operation::Link => "link",
            Operation::Symlink => "symlink",
            Operation::Unlink => "unlink",
            Operation::Mkdir => "mkdir",
            Operation::Rmdir => "rmdir",
            Operation::Chmod => "chmod",
            Operation::Fsync => "fsync",
            Operation::Fdatasync => "fdatasync",
            Operation::Close => "close",
            Operation::Stat => "stat",
            Operation::Access => "access",
        }
    }

    /// Whether the call is about a path, so that something can come between check and use.
    pub fn names_a_path(self) -> bool {
        matches!(
            self,
            Operation::Open
                | Operation::OpenToRead
                | Operation::Rename
                | Operation::Link
                | Operation::Unlink
                | Operation::Stat
                | Operation::Access
        )
    }

    /// What it may return on a machine in trouble: a failing disk, a full one, a quota, too many files, no memory, a
    /// file system that has become read-only. From the manual pages, section 2. EINTR is left out: to go on as if nothing
    /// had happened is right then, so it is a fault of its own.
    pub fn plausible(self) -> Vec<Errno> {
        let names: &[&str] = match self {
            Operation::Open => &["EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EROFS", "EACCES"],
            Operation::OpenToRead => &["EIO", "EMFILE", "ENFILE", "ENOMEM", "EACCES", "ENOENT"],
            Operation::Read => &["EIO"],
            Operation::Write => &["EIO", "ENOSPC", "EDQUOT", "EFBIG"],
            Operation::Truncate | Operation::Allocate => &["EIO", "ENOSPC", "EDQUOT"],
            Operation::Rename | Operation::Link | Operation::Symlink | Operation::Mkdir => {
                &["EIO", "ENOSPC", "EDQUOT", "ENOMEM", "EROFS", "EACCES"]
            }
            Operation::Unlink | Operation::Rmdir => &["EIO", "ENOMEM", "EROFS", "EACCES", "EBUSY"],
            Operation::Chmod => &["EIO", "ENOMEM", "EROFS", "EPERM"],
            Operation::Fsync | Operation::Fdatasync => &["EIO", "ENOSPC", "EDQUOT", "EROFS"],
            Operation::Close => &["EIO", "ENOSPC", "EDQUOT"],
            Operation::Stat | Operation::Access => &["EIO", "ENOMEM", "EACCES", "ENOENT"],
        };
        names.iter().filter_map(|name| Errno::named(name)).collect()
    }
}

/// Errnos that a scenario can name, with Linux's numbers (`asm-generic/errno-base.h`, `asm-generic/errno.h`).
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
    pub name: &'static str,
    pub number: i32,
}

impl Errno {
    pub fn named(name: &str) -> Option<Errno> {
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
