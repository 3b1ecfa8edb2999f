//! Decodes system calls: number and arguments into what is asked for. Pure but for the target's memory, which the caller reads.

use nix::libc;

use super::Kind;

/// A path argument: the folder it starts from, and where in the target's memory its text lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathAt {
    pub(super) dir: i32,
    pub(super) text: u64,
}

/// Where the bytes of a write or read lie in the target's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bytes {
    One {
        at: u64,
        length: u64,
    },
    /// So many `iovec`s.
    Many {
        at: u64,
        count: u64,
    },
}

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Open {
        path: PathAt,
        flags: i32,
        mode: u32,
    },
    /// The struct `open_how` is still in the target's memory.
    OpenHow {
        path: PathAt,
        how: u64,
    },
    Write {
        fd: i32,
        bytes: Bytes,
        offset: Option<u64>,
        append: bool,
        sync: bool,
    },
    Read {
        fd: i32,
        bytes: Bytes,
        offset: Option<u64>,
    },
    /// Bytes that come from another descriptor.
    Transfer {
        call: Transfer,
        out: i32,
        from: i32,
        args: [u64; 6],
    },
    Truncate {
        fd: i32,
        size: u64,
    },
    TruncatePath {
        path: PathAt,
        size: u64,
    },
    Allocate {
        fd: i32,
        mode: i32,
        offset: u64,
        length: u64,
    },
    Rename {
        from: PathAt,
        to: PathAt,
        flags: u32,
    },
    Link {
        from: PathAt,
        to: PathAt,
        flags: i32,
    },
    Symlink {
        text: u64,
        path: PathAt,
    },
    Unlink {
        path: PathAt,
        folder: bool,
    },
    Mkdir {
        path: PathAt,
        mode: u32,
    },
    /// Changes only attributes, or only looks: let through, or failed.
    OnPath {
        kind: Kind,
        path: PathAt,
    },
    OnFile {
        kind: Kind,
        fd: i32,
    },
    Sync {
        fd: i32,
        data_only: bool,
    },
    SyncAll,
    Msync {
        at: u64,
        wait: bool,
    },
    Map {
        fd: i32,
    },
    Refused {
        what: &'static str,
    },
}

/// Which call moves bytes between descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    Sendfile,
    CopyFileRange,
    Splice,
}

const HERE: i32 = libc::AT_FDCWD;
const RWF_DSYNC: u64 = 2;
const RWF_SYNC: u64 = 4;
const RWF_APPEND: u64 = 16;

/// None: a number that the filter does not stop.
pub(super) fn decode(number: i64, args: [u64; 6]) -> Option<Asked> {
    let [a, b, c, d, e, f] = args;
    let fd = a as i32;
    let at = |dir: u64, text: u64| PathAt { dir: dir as i32, text };
    let one = |at, length| Bytes::One { at, length };
    let many = |at, count| Bytes::Many { at, count };
    let write = |bytes, offset| Asked::Write { fd, bytes, offset, append: false, sync: false };
    let on_path = |kind, path| Asked::OnPath { kind, path };
    Some(match number {
        libc::SYS_openat => Asked::Open { path: at(a, b), flags: c as i32, mode: d as u32 },
        libc::SYS_openat2 => Asked::OpenHow { path: at(a, b), how: c },
        libc::SYS_write => write(one(b, c), None),
        libc::SYS_writev => write(many(b, c), None),
        libc::SYS_pwrite64 => write(one(b, c), Some(d)),
        libc::SYS_pwritev => write(many(b, c), Some(d)),
        libc::SYS_pwritev2 => Asked::Write {
            fd,
            bytes: many(b, c),
            offset: (d != u64::MAX).then_some(d),
            append: f & RWF_APPEND != 0,
            sync: f & (RWF_DSYNC | RWF_SYNC) != 0,
        },
        libc::SYS_read => Asked::Read { fd, bytes: one(b, c), offset: None },
        libc::SYS_pread64 => Asked::Read { fd, bytes: one(b, c), offset: Some(d) },
        libc::SYS_readv => Asked::Read { fd, bytes: many(b, c), offset: None },
        libc::SYS_preadv => Asked::Read { fd, bytes: many(b, c), offset: Some(d) },
        libc::SYS_sendfile => Asked::Transfer { call: Transfer::Sendfile, out: fd, from: b as i32, args },
        libc::SYS_copy_file_range => {
            Asked::Transfer { call: Transfer::CopyFileRange, out: c as i32, from: fd, args }
        }
        libc::SYS_splice => Asked::Transfer { call: Transfer::Splice, out: c as i32, from: fd, args },
        libc::SYS_ftruncate => Asked::Truncate { fd, size: b },
        libc::SYS_truncate => Asked::TruncatePath { path: PathAt { dir: HERE, text: a }, size: b },
        libc::SYS_fallocate => Asked::Allocate { fd, mode: b as i32, offset: c, length: d },
        libc::SYS_renameat => Asked::Rename { from: at(a, b), to: at(c, d), flags: 0 },
        libc::SYS_renameat2 => Asked::Rename { from: at(a, b), to: at(c, d), flags: e as u32 },
        libc::SYS_linkat => Asked::Link { from: at(a, b), to: at(c, d), flags: e as i32 },
        libc::SYS_symlinkat => Asked::Symlink { text: a, path: at(b, c) },
        libc::SYS_unlinkat => Asked::Unlink { path: at(a, b), folder: c & libc::AT_REMOVEDIR as u64 != 0 },
        libc::SYS_mkdirat => Asked::Mkdir { path: at(a, b), mode: c as u32 },
        libc::SYS_fchmod => Asked::OnFile { kind: Kind::Chmod, fd },
        libc::SYS_fchmodat => on_path(Kind::Chmod, at(a, b)),
        libc::SYS_utimensat => on_path(Kind::Utimens, at(a, b)),
        libc::SYS_fsync => Asked::Sync { fd, data_only: false },
        libc::SYS_fdatasync => Asked::Sync { fd, data_only: true },
        libc::SYS_sync_file_range => Asked::OnFile { kind: Kind::SyncRange, fd },
        libc::SYS_syncfs | libc::SYS_sync => Asked::SyncAll,
        libc::SYS_msync => Asked::Msync { at: a, wait: c & libc::MS_SYNC as u64 != 0 },
        libc::SYS_mmap => Asked::Map { fd: e as i32 },
        libc::SYS_close => Asked::OnFile { kind: Kind::Close, fd },
        libc::SYS_newfstatat | libc::SYS_statx => on_path(Kind::Stat, at(a, b)),
        libc::SYS_faccessat | libc::SYS_faccessat2 => on_path(Kind::Access, at(a, b)),
        libc::SYS_io_uring_setup => Asked::Refused { what: "io_uring" },
        libc::SYS_io_setup => Asked::Refused { what: "libaio" },
        _ => return old(number, args),
    })
}

#[cfg(target_arch = "x86_64")]
fn old(number: i64, args: [u64; 6]) -> Option<Asked> {
    let [a, b, c, ..] = args;
    let here = |text| PathAt { dir: HERE, text };
    let creating = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    Some(match number {
        libc::SYS_open => Asked::Open { path: here(a), flags: b as i32, mode: c as u32 },
        libc::SYS_creat => Asked::Open { path: here(a), flags: creating, mode: b as u32 },
        libc::SYS_rename => Asked::Rename { from: here(a), to: here(b), flags: 0 },
        libc::SYS_link => Asked::Link { from: here(a), to: here(b), flags: 0 },
        libc::SYS_symlink => Asked::Symlink { text: a, path: here(b) },
        libc::SYS_unlink => Asked::Unlink { path: here(a), folder: false },
        libc::SYS_rmdir => Asked::Unlink { path: here(a), folder: true },
        libc::SYS_mkdir => Asked::Mkdir { path: here(a), mode: b as u32 },
        libc::SYS_chmod => Asked::OnPath { kind: Kind::Chmod, path: here(a) },
        libc::SYS_stat | libc::SYS_lstat => Asked::OnPath { kind: Kind::Stat, path: here(a) },
        libc::SYS_access => Asked::OnPath { kind: Kind::Access, path: here(a) },
        _ => return None,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn old(_number: i64, _args: [u64; 6]) -> Option<Asked> {
    None
}

/// Whether an open changes something or may.
pub(super) fn opens_for_writing(flags: i32) -> bool {
    flags & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) != 0
}
