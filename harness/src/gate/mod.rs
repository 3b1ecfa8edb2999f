//! Sees and alters the file system calls of a process tree, by seccomp user notification. Knows none of its neighbours.
//!
//! A program is started behind a `filter`; whoever holds the listener that comes of it gives it to `attend` together
//! with an `Overseer`. Each call that the filter stops is decoded (`calls`), put into relation to the watched mounts
//! (`place`), shown to the overseer, and then let through, refused, or performed here on behalf of the target
//! (`perform`), so that its result is known. Calls that touch no watched mount are let through.
//!
//! Not seen: what 32-bit programs call, and stores into shared mappings (`Done::Mapped` tells of those mappings).
//! io_uring and libaio are answered with ENOSYS, whereupon programs use ordinary calls.

mod call_rules;
mod calls;
mod filter;
mod perform;
mod resolve_call;
mod supervisor;
mod sys;
mod target_thread;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

pub use call_rules::{CallRule, CallRules, RuleMatch};
pub use filter::{FilterOptions, build_filter};
pub use supervisor::{SupervisorThread, serve_notifications};
pub use target_thread::{WatchedMounts, file_id_of, mount_id};

/// Identity of a file while it exists: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub dir: FileId,
    pub name: OsString,
    /// As the target would name it.
    pub path: PathBuf,
}

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    /// For writing, or creating, or truncating.
    Open,
    /// Only for reading.
    OpenRead,
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
    Utimens,
    Fsync,
    Fdatasync,
    SyncRange,
    Syncfs,
    Msync,
    Map,
    Close,
    Stat,
    Access,
}

impl CallKind {
    /// Those that change a tree or make a change durable.
    pub const CHANGES: [CallKind; 15] = [
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
        CallKind::Syncfs,
        CallKind::Msync,
    ];

    /// As a manual page would name it.
    pub fn name(self) -> &'static str {
        match self {
            CallKind::Open | CallKind::OpenRead => "open",
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
            CallKind::Utimens => "utimens",
            CallKind::Fsync => "fsync",
            CallKind::Fdatasync => "fdatasync",
            CallKind::SyncRange => "sync_file_range",
            CallKind::Syncfs => "syncfs",
            CallKind::Msync => "msync",
            CallKind::Map => "mmap",
            CallKind::Close => "close",
            CallKind::Stat => "stat",
            CallKind::Access => "access",
        }
    }
}

/// A call of the target on something watched, before it happens.
#[derive(Debug)]
pub struct InterceptedCall {
    pub kind: CallKind,
    /// The thread that makes it, as the harness sees it.
    pub tid: i32,
    /// What it is about, as the target would name it; of a rename the source.
    pub path: PathBuf,
    /// Destination of a rename or a link.
    pub to: Option<PathBuf>,
    /// Bytes asked for, of reads and writes.
    pub requested_bytes: Option<u64>,
}

/// What an overseer makes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallDecision {
    /// The kernel does it; its result stays unknown.
    Continue,
    /// It is done here, and the result is told to the overseer.
    Perform,
    /// It fails and nothing happens.
    Fail(Errno),
    /// Only so many of the bytes of a write or read.
    Short(u64),
    /// It is done here, and fails all the same.
    PerformThenFail(Errno),
    /// Nothing happens until `Overseer::strike` has killed the target.
    KillBefore,
    /// So many of the bytes are written, then as above.
    KillDuring(u64),
    /// It is done here, then as above.
    KillAfter,
    /// It is let through after a while; other calls don't wait for it.
    Delay(Duration),
    /// What the path stands for is changed first, then it is let through: as if somebody came between check and use.
    Swap(Swap),
}

/// What a path stands for once somebody has come between check and use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    Nothing,
    EmptyFile,
    /// A link to a name that does not exist.
    DanglingLink,
}

/// What has happened, for those who record.
#[derive(Debug)]
pub enum CallEffect {
    Opened {
        entry: DirectoryEntry,
        file_id: FileId,
        created: bool,
        truncated: bool,
    },
    /// A file without a name, which may get one by `Linked`.
    CreatedUnnamed {
        file_id: FileId,
    },
    /// The bytes were told by `Overseer::payload` before. `synced`: the descriptor makes writes synchronous.
    Wrote {
        file_id: FileId,
        offset: u64,
        len_bytes: u64,
        synced: bool,
    },
    Truncated {
        file_id: FileId,
        size_bytes: u64,
    },
    /// Allocation or punching: the size afterwards, and what now reads as zeroes.
    Allocated {
        file_id: FileId,
        size_bytes: u64,
        zeroed: Option<(u64, u64)>,
    },
    Renamed {
        from: DirectoryEntry,
        to: DirectoryEntry,
        exchanged: bool,
    },
    Linked {
        file_id: FileId,
        entry: DirectoryEntry,
    },
    Symlinked {
        file_id: FileId,
        entry: DirectoryEntry,
        link_text: PathBuf,
    },
    Unlinked {
        entry: DirectoryEntry,
    },
    CreatedDir {
        file_id: FileId,
        entry: DirectoryEntry,
    },
    RemovedDir {
        entry: DirectoryEntry,
    },
    Synced {
        file_id: FileId,
        data_only: bool,
    },
    SyncedAll,
    /// A shared mapping that can be written to: from now on its content changes unseen.
    Mapped {
        file_id: FileId,
        file: OwnedFd,
    },
    /// Bytes went into a pipe that the overseer asked to hear of, told by `Overseer::payload` before.
    OutputWritten {
        pipe: FileId,
    },
    /// The program asked for something that can't be watched and was told that it does not exist.
    Refused {
        feature: &'static str,
    },
    /// What the path stood for was changed, as decided.
    Swapped {
        path: PathBuf,
    },
    /// Something was opened for writing outside of what is watched.
    OpenedOutside {
        path: PathBuf,
    },
}

/// Decides over calls. One call at a time.
pub trait CallHandler: Send {
    fn decide(&mut self, call: &InterceptedCall) -> CallDecision;

    /// A part of what is being written.
    fn on_payload(&mut self, _bytes: &[u8]) {}

    fn on_effect(&mut self, _done: CallEffect) {}

    /// Kills the whole target; returns when it is dead.
    fn kill_target(&mut self) {}

    /// Whether calls are to carry the paths of descriptors; costs a look-up each.
    fn needs_paths(&self) -> bool {
        true
    }

    /// False: what is performed here leaves out the syncing itself, and tells of it all the same.
    fn performs_syncs(&self) -> bool {
        true
    }

    /// Whether what is said into this pipe is of interest.
    fn observes_pipe(&self, _pipe: FileId) -> bool {
        false
    }
}
