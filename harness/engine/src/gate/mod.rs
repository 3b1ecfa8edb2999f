//! Intercepts the file system calls of a process tree with seccomp user notification (seccomp_unotify(2)) and
//! can alter them. Knows none of its neighbours.
//!
//! The caller starts a program behind the filter of `build_filter`. It passes the filter's listener and a
//! `CallHandler` to `serve_notifications`. The supervisor decodes each intercepted call (`calls`) and
//! resolves its paths and descriptors (`resolve_call`). If the call touches a watched mount, the handler
//! decides (`handler`): the call continues in the kernel, fails, or is performed here on behalf of the target
//! (`perform`), which makes its result known. Calls that touch no watched mount continue.
//!
//! Not covered: calls of 32-bit programs, and stores into shared mappings (`CallEffect::Mapped` reports such
//! mappings). io_uring and libaio fail with ENOSYS, so that programs fall back to ordinary calls.

mod call_rules;
mod calls;
mod filter;
mod handler;
mod perform;
mod resolve_call;
mod stat;
mod supervisor;
mod sys;
mod target_thread;

pub use call_rules::{CallRule, CallRules, RuleMatch};
pub use filter::{FilterOptions, build_filter};
pub use handler::{CallDecision, CallEffect, CallHandler, DirectoryEntry, InterceptedCall, Swap};
pub use stat::{FileId, WatchedMounts, file_id_of, mount_id};
pub use supervisor::{SupervisorThread, serve_notifications};

/// What a call does. Calls with the same meaning, such as rename, renameat and renameat2, share a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    /// Opens for writing, or creates or truncates.
    Open,
    /// Opens only for reading.
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
    /// The kinds that change the file tree or make a change durable.
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

    /// The name of the system call, as in its manual page.
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
