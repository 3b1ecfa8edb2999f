//! Sees and alters the file system calls of a process tree, by seccomp user notification. Knows none of its neighbours.
//!
//! A program is started behind a `filter`; whoever holds the listener that comes of it gives it to `attend` together
//! with an `Overseer`. Each call that the filter stops is decoded (`calls`), put into relation to the watched mounts
//! (`place`), shown to the overseer, and then let through, refused, or performed here on behalf of the target
//! (`perform`), so that its result is known. Calls that touch no watched mount are let through.
//!
//! Not seen: what 32-bit programs call, and stores into shared mappings (`Done::Mapped` tells of those mappings).
//! io_uring and libaio are answered with ENOSYS, whereupon programs use ordinary calls.

mod calls;
mod filter;
mod perform;
mod place;
mod rules;
mod serve;
mod subject;
mod sys;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

pub use filter::{Interest, filter};
pub use place::{Watched, key_of, mount_id};
pub use rules::{Hit, Rule, Rules};
pub use serve::{Attendance, attend};

/// Identity of a file while it exists: device and inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub dev: u64,
    pub ino: u64,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub dir: Key,
    pub name: OsString,
    /// As the target would name it.
    pub path: PathBuf,
}

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
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

impl Kind {
    /// Those that change a tree or make a change durable.
    pub const CHANGES: [Kind; 15] = [
        Kind::Open,
        Kind::Write,
        Kind::Truncate,
        Kind::Allocate,
        Kind::Rename,
        Kind::Link,
        Kind::Symlink,
        Kind::Unlink,
        Kind::Mkdir,
        Kind::Rmdir,
        Kind::Chmod,
        Kind::Fsync,
        Kind::Fdatasync,
        Kind::Syncfs,
        Kind::Msync,
    ];

    /// As a manual page would name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Open | Kind::OpenRead => "open",
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Truncate => "truncate",
            Kind::Allocate => "fallocate",
            Kind::Rename => "rename",
            Kind::Link => "link",
            Kind::Symlink => "symlink",
            Kind::Unlink => "unlink",
            Kind::Mkdir => "mkdir",
            Kind::Rmdir => "rmdir",
            Kind::Chmod => "chmod",
            Kind::Utimens => "utimens",
            Kind::Fsync => "fsync",
            Kind::Fdatasync => "fdatasync",
            Kind::SyncRange => "sync_file_range",
            Kind::Syncfs => "syncfs",
            Kind::Msync => "msync",
            Kind::Map => "mmap",
            Kind::Close => "close",
            Kind::Stat => "stat",
            Kind::Access => "access",
        }
    }
}

/// A call of the target on something watched, before it happens.
#[derive(Debug)]
pub struct Call {
    pub kind: Kind,
    /// The thread that makes it, as the harness sees it.
    pub tid: i32,
    /// What it is about, as the target would name it; of a rename the source.
    pub path: PathBuf,
    /// Destination of a rename or a link.
    pub to: Option<PathBuf>,
    /// Bytes asked for, of reads and writes.
    pub bytes: Option<u64>,
}

/// What an overseer makes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The kernel does it; its result stays unknown.
    Let,
    /// It is done here, and the result is told to the overseer.
    Perform,
    /// It fails and nothing happens.
    Fail(Errno),
    /// Only so many of the bytes of a write or read.
    Short(u64),
    /// It is done here, and fails all the same.
    PerformThenFail(Errno),
    /// Nothing happens until `Overseer::strike` has killed the target.
    StrikeBefore,
    /// So many of the bytes are written, then as above.
    StrikeInside(u64),
    /// It is done here, then as above.
    StrikeAfter,
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
pub enum Done {
    Opened {
        place: Place,
        node: Key,
        created: bool,
        truncated: bool,
    },
    /// A file without a name, which may get one by `Linked`.
    MadeNameless {
        node: Key,
    },
    /// The bytes were told by `Overseer::payload` before. `synced`: the descriptor makes writes synchronous.
    Wrote {
        node: Key,
        offset: u64,
        bytes: u64,
        synced: bool,
    },
    Truncated {
        node: Key,
        size: u64,
    },
    /// Allocation or punching: the size afterwards, and what now reads as zeroes.
    Allocated {
        node: Key,
        size: u64,
        zeroed: Option<(u64, u64)>,
    },
    Renamed {
        from: Place,
        to: Place,
        exchanged: bool,
    },
    Linked {
        node: Key,
        place: Place,
    },
    Symlinked {
        node: Key,
        place: Place,
        text: PathBuf,
    },
    Unlinked {
        place: Place,
    },
    MadeDir {
        node: Key,
        place: Place,
    },
    RemovedDir {
        place: Place,
    },
    Synced {
        node: Key,
        data_only: bool,
    },
    SyncedAll,
    /// A shared mapping that can be written to: from now on its content changes unseen.
    Mapped {
        node: Key,
        file: OwnedFd,
    },
    /// Bytes went into a pipe that the overseer asked to hear of, told by `Overseer::payload` before.
    Said {
        pipe: Key,
    },
    /// The program asked for something that can't be watched and was told that it does not exist.
    Refused {
        what: &'static str,
    },
    /// What the path stood for was changed, as decided.
    Swapped {
        path: PathBuf,
    },
    /// Something was opened for writing outside of what is watched.
    WroteOutside {
        path: PathBuf,
    },
}

/// Decides over calls. One call at a time.
pub trait Overseer: Send {
    fn decide(&mut self, call: &Call) -> Decision;

    /// A part of what is being written.
    fn payload(&mut self, _bytes: &[u8]) {}

    fn done(&mut self, _done: Done) {}

    /// Kills the whole target; returns when it is dead.
    fn strike(&mut self) {}

    /// Whether calls are to carry the paths of descriptors; costs a look-up each.
    fn wants_paths(&self) -> bool {
        true
    }

    /// False: what is performed here leaves out the syncing itself, and tells of it all the same.
    fn syncs_for_real(&self) -> bool {
        true
    }

    /// Whether what is said into this pipe is of interest.
    fn hears(&self, _pipe: Key) -> bool {
        false
    }
}
