//! File system calls: kinds of call, errnos, and the errnos that each kind can plausibly return. Scenarios
//! name them, and the gate sees them. Knows no system call numbers.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::yaml::leaf::{LeafError, leaf_of};

/// What a file system call does. Calls with the same meaning, such as rename, renameat and renameat2, share a
/// kind.
///
/// The gate also sees kinds that no scenario can name. Those are left out when a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(description = "A kind of file system call.")]
pub enum CallKind {
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
    #[serde(skip_deserializing)]
    Chown,
    #[serde(skip_deserializing)]
    Utimens,
    #[serde(skip_deserializing)]
    SetXattr,
    /// Creates a file, pipe, socket or device.
    #[serde(skip_deserializing)]
    Mknod,
    #[serde(skip_deserializing)]
    SyncRange,
    #[serde(skip_deserializing)]
    Syncfs,
    #[serde(skip_deserializing)]
    Msync,
    #[serde(skip_deserializing)]
    Map,
}

impl CallKind {
    /// The kinds that a scenario can name.
    pub const IN_SCENARIOS: [CallKind; 18] = [
        CallKind::Open,
        CallKind::OpenToRead,
        CallKind::Read,
        CallKind::Write,
        CallKind::Truncate,
        CallKind::Allocate,
        CallKind::Rename,
        CallKind::Link,
        CallKind::Symlink,
        CallKind::Unlink,
        CallKind::Mkdir,
        CallKind::Rmdir,
        CallKind::Chmod,
        CallKind::Fsync,
        CallKind::Fdatasync,
        CallKind::Close,
        CallKind::Stat,
        CallKind::Access,
    ];

    /// The kinds that change files or make a change durable. Default for a trigger that names none.
    pub const MUTATING: [CallKind; 13] = [
        CallKind::Open,
        CallKind::Write,
        CallKind::Truncate,
        CallKind::Allocate,
        CallKind::Rename,
        CallKind::Link,
        CallKind::Symlink,
        CallKind::Unlink,
        CallKind::Mkdir,
        CallKind::Rmdir,
        CallKind::Chmod,
        CallKind::Fsync,
        CallKind::Fdatasync,
    ];

    /// The kinds that change the file tree or make a change durable, those that no scenario can name
    /// included.
    pub const CHANGES: [CallKind; 16] = [
        CallKind::Open,
        CallKind::Write,
        CallKind::Truncate,
        CallKind::Allocate,
        CallKind::Rename,
        CallKind::Link,
        CallKind::Symlink,
        CallKind::Unlink,
        CallKind::Mkdir,
        CallKind::Rmdir,
        CallKind::Chmod,
        CallKind::Fsync,
        CallKind::Fdatasync,
        CallKind::Mknod,
        CallKind::Syncfs,
        CallKind::Msync,
    ];

    /// Its name in scenario files.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::OpenToRead => "open-to-read",
            CallKind::Allocate => "allocate",
            _ => self.syscall_name(),
        }
    }

    /// The name of the system call, as in its manual page.
    pub fn syscall_name(self) -> &'static str {
        match self {
            CallKind::Open | CallKind::OpenToRead => "open",
            CallKind::Read => "read",
            CallKind::Write => "write",
            CallKind::Truncate => "truncate",
            CallKind::Allocate => "fallocate",
            CallKind::Rename => "rename",
            CallKind::Link => "link",
            CallKind::Symlink => "symlink",
            CallKind::Unlink => "unlink",
            CallKind::Mkdir => "mkdir",
            CallKind::Rmdir => "rmdir",
            CallKind::Chmod => "chmod",
            CallKind::Chown => "chown",
            CallKind::Utimens => "utimens",
            CallKind::SetXattr => "setxattr",
            CallKind::Fsync => "fsync",
            CallKind::Fdatasync => "fdatasync",
            CallKind::Mknod => "mknod",
            CallKind::SyncRange => "sync_file_range",
            CallKind::Syncfs => "syncfs",
            CallKind::Msync => "msync",
            CallKind::Map => "mmap",
            CallKind::Close => "close",
            CallKind::Stat => "stat",
            CallKind::Access => "access",
        }
    }

    /// Whether the call takes a path, so that the file at the path can be replaced between check and use.
    pub fn takes_path(self) -> bool {
        matches!(
            self,
            CallKind::Open
                | CallKind::OpenToRead
                | CallKind::Rename
                | CallKind::Link
                | CallKind::Unlink
                | CallKind::Stat
                | CallKind::Access
        )
    }

    /// The errnos that the call can return on a failing machine: a failing or full disk, an exceeded quota,
    /// too many open files, no memory, a read-only file system. From section 2 of the manual pages. EINTR is
    /// left out: a program that retries without an error is right then, so EINTR is tested by a scenario of
    /// its own.
    pub fn plausible_errnos(self) -> Vec<Errno> {
        let names: &[&str] = match self {
            CallKind::Open => &["EIO", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ENOMEM", "EROFS", "EACCES"],
            CallKind::OpenToRead => &["EIO", "EMFILE", "ENFILE", "ENOMEM", "EACCES", "ENOENT"],
            CallKind::Read => &["EIO"],
            CallKind::Write => &["EIO", "ENOSPC", "EDQUOT", "EFBIG"],
            CallKind::Truncate | CallKind::Allocate => &["EIO", "ENOSPC", "EDQUOT"],
            CallKind::Rename | CallKind::Link | CallKind::Symlink | CallKind::Mkdir => {
                &["EIO", "ENOSPC", "EDQUOT", "ENOMEM", "EROFS", "EACCES"]
            }
            CallKind::Unlink | CallKind::Rmdir => &["EIO", "ENOMEM", "EROFS", "EACCES", "EBUSY"],
            CallKind::Chmod => &["EIO", "ENOMEM", "EROFS", "EPERM"],
            CallKind::Fsync | CallKind::Fdatasync => &["EIO", "ENOSPC", "EDQUOT", "EROFS"],
            CallKind::Close => &["EIO", "ENOSPC", "EDQUOT"],
            CallKind::Stat | CallKind::Access => &["EIO", "ENOMEM", "EACCES", "ENOENT"],
            CallKind::Chown
            | CallKind::Utimens
            | CallKind::SetXattr
            | CallKind::Mknod
            | CallKind::SyncRange
            | CallKind::Syncfs
            | CallKind::Msync
            | CallKind::Map => &[],
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

    fn parse(text: &str) -> Result<Errno, LeafError> {
        Errno::from_name(text).ok_or_else(|| {
            let known: Vec<&str> = ERRNOS.iter().map(|(name, _)| *name).collect();
            LeafError::not(text, "a known errno").help(format!("known are: {}", known.join(", ")))
        })
    }
}

leaf_of!(Errno, Errno::parse, r"^E[A-Z0-9]+$", "An errno by its name: `EIO`, `ENOSPC`.");

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
