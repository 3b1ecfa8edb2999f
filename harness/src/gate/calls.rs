//! Decodes system calls: number and arguments into what is asked for. Pure but for the target's memory, which the caller reads.

use nix::libc;

use super::CallKind;

/// A path argument: the folder it starts from, and where in the target's memory its text lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathArgument {
    pub(super) dir_fd: i32,
    pub(super) text_address: u64,
}

/// Where the bytes of a write or read lie in the target's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BufferArgument {
    Contiguous {
        address: u64,
        len_bytes: u64,
    },
    /// So many `iovec`s.
    Vectored {
        address: u64,
        iovec_count: u64,
    },
}

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallRequest {
    Open {
        path: PathArgument,
        flags: i32,
        mode: u32,
    },
    /// The struct `open_how` is still in the target's memory.
    Openat2 {
        path: PathArgument,
        how_address: u64,
    },
    Write {
        fd: i32,
        buffer: BufferArgument,
        offset: Option<u64>,
        append: bool,
        sync: bool,
    },
    Read {
        fd: i32,
        buffer: BufferArgument,
        offset: Option<u64>,
    },
    /// Bytes that come from another descriptor.
    Transfer {
        method: TransferMethod,
        out_fd: i32,
        in_fd: i32,
        args: [u64; 6],
    },
    Truncate {
        fd: i32,
        size_bytes: u64,
    },
    TruncatePath {
        path: PathArgument,
        size_bytes: u64,
    },
    Allocate {
        fd: i32,
        mode: i32,
        offset: u64,
        len_bytes: u64,
    },
    Rename {
        from: PathArgument,
        to: PathArgument,
        flags: u32,
    },
    Link {
        from: PathArgument,
        to: PathArgument,
        flags: i32,
    },
    Symlink {
        text_address: u64,
        path: PathArgument,
    },
    Unlink {
        path: PathArgument,
        is_dir: bool,
    },
    Mkdir {
        path: PathArgument,
        mode: u32,
    },
    /// Changes only attributes, or only looks: let through, or failed.
    ByPath {
        kind: CallKind,
        path: PathArgument,
    },
    ByFd {
        kind: CallKind,
        fd: i32,
    },
    Sync {
        fd: i32,
        data_only: bool,
    },
    SyncAll,
    Msync {
        address: u64,
        wait: bool,
    },
    Map {
        fd: i32,
    },
    Refused {
        feature: &'static str,
    },
}

/// Which call moves bytes between descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferMethod {
    Sendfile,
    CopyFileRange,
    Splice,
}

const CURRENT_DIR: i32 = libc::AT_FDCWD;
const RWF_DSYNC: u64 = 2;
const RWF_SYNC: u64 = 4;
const RWF_APPEND: u64 = 16;

/// None: a number that the filter does not stop.
pub(super) fn decode(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, d, e, f] = args;
    let fd = a as i32;
    let at = |dir: u64, text: u64| PathArgument { dir_fd: dir as i32, text_address: text };
    let one = |at, length| BufferArgument::Contiguous { address: at, len_bytes: length };
    let many = |at, count| BufferArgument::Vectored { address: at, iovec_count: count };
    let write = |bytes, offset| CallRequest::Write { fd, buffer: bytes, offset, append: false, sync: false };
    let on_path = |kind, path| CallRequest::ByPath { kind, path };
    Some(match number {
        libc::SYS_openat => CallRequest::Open { path: at(a, b), flags: c as i32, mode: d as u32 },
        libc::SYS_openat2 => CallRequest::Openat2 { path: at(a, b), how_address: c },
        libc::SYS_write => write(one(b, c), None),
        libc::SYS_writev => write(many(b, c), None),
        libc::SYS_pwrite64 => write(one(b, c), Some(d)),
        libc::SYS_pwritev => write(many(b, c), Some(d)),
        libc::SYS_pwritev2 => CallRequest::Write {
            fd,
            buffer: many(b, c),
            offset: (d != u64::MAX).then_some(d),
            append: f & RWF_APPEND != 0,
            sync: f & (RWF_DSYNC | RWF_SYNC) != 0,
        },
        libc::SYS_read => CallRequest::Read { fd, buffer: one(b, c), offset: None },
        libc::SYS_pread64 => CallRequest::Read { fd, buffer: one(b, c), offset: Some(d) },
        libc::SYS_readv => CallRequest::Read { fd, buffer: many(b, c), offset: None },
        libc::SYS_preadv => CallRequest::Read { fd, buffer: many(b, c), offset: Some(d) },
        libc::SYS_sendfile => {
            CallRequest::Transfer { method: TransferMethod::Sendfile, out_fd: fd, in_fd: b as i32, args }
        }
        libc::SYS_copy_file_range => {
            CallRequest::Transfer { method: TransferMethod::CopyFileRange, out_fd: c as i32, in_fd: fd, args }
        }
        libc::SYS_splice => {
            CallRequest::Transfer { method: TransferMethod::Splice, out_fd: c as i32, in_fd: fd, args }
        }
        libc::SYS_ftruncate => CallRequest::Truncate { fd, size_bytes: b },
        libc::SYS_truncate => CallRequest::TruncatePath {
            path: PathArgument { dir_fd: CURRENT_DIR, text_address: a },
            size_bytes: b,
        },
        libc::SYS_fallocate => CallRequest::Allocate { fd, mode: b as i32, offset: c, len_bytes: d },
        libc::SYS_renameat => CallRequest::Rename { from: at(a, b), to: at(c, d), flags: 0 },
        libc::SYS_renameat2 => CallRequest::Rename { from: at(a, b), to: at(c, d), flags: e as u32 },
        libc::SYS_linkat => CallRequest::Link { from: at(a, b), to: at(c, d), flags: e as i32 },
        libc::SYS_symlinkat => CallRequest::Symlink { text_address: a, path: at(b, c) },
        libc::SYS_unlinkat => {
            CallRequest::Unlink { path: at(a, b), is_dir: c & libc::AT_REMOVEDIR as u64 != 0 }
        }
        libc::SYS_mkdirat => CallRequest::Mkdir { path: at(a, b), mode: c as u32 },
        libc::SYS_fchmod => CallRequest::ByFd { kind: CallKind::Chmod, fd },
        libc::SYS_fchmodat => on_path(CallKind::Chmod, at(a, b)),
        libc::SYS_utimensat => on_path(CallKind::Utimens, at(a, b)),
        libc::SYS_fsync => CallRequest::Sync { fd, data_only: false },
        libc::SYS_fdatasync => CallRequest::Sync { fd, data_only: true },
        libc::SYS_sync_file_range => CallRequest::ByFd { kind: CallKind::SyncRange, fd },
        libc::SYS_syncfs | libc::SYS_sync => CallRequest::SyncAll,
        libc::SYS_msync => CallRequest::Msync { address: a, wait: c & libc::MS_SYNC as u64 != 0 },
        libc::SYS_mmap => CallRequest::Map { fd: e as i32 },
        libc::SYS_close => CallRequest::ByFd { kind: CallKind::Close, fd },
        libc::SYS_newfstatat | libc::SYS_statx => on_path(CallKind::Stat, at(a, b)),
        libc::SYS_faccessat | libc::SYS_faccessat2 => on_path(CallKind::Access, at(a, b)),
        libc::SYS_io_uring_setup => CallRequest::Refused { feature: "io_uring" },
        libc::SYS_io_setup => CallRequest::Refused { feature: "libaio" },
        _ => return old(number, args),
    })
}

#[cfg(target_arch = "x86_64")]
fn old(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, ..] = args;
    let here = |text| PathArgument { dir_fd: CURRENT_DIR, text_address: text };
    let creating = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    Some(match number {
        libc::SYS_open => CallRequest::Open { path: here(a), flags: b as i32, mode: c as u32 },
        libc::SYS_creat => CallRequest::Open { path: here(a), flags: creating, mode: b as u32 },
        libc::SYS_rename => CallRequest::Rename { from: here(a), to: here(b), flags: 0 },
        libc::SYS_link => CallRequest::Link { from: here(a), to: here(b), flags: 0 },
        libc::SYS_symlink => CallRequest::Symlink { text_address: a, path: here(b) },
        libc::SYS_unlink => CallRequest::Unlink { path: here(a), is_dir: false },
        libc::SYS_rmdir => CallRequest::Unlink { path: here(a), is_dir: true },
        libc::SYS_mkdir => CallRequest::Mkdir { path: here(a), mode: b as u32 },
        libc::SYS_chmod => CallRequest::ByPath { kind: CallKind::Chmod, path: here(a) },
        libc::SYS_stat | libc::SYS_lstat => CallRequest::ByPath { kind: CallKind::Stat, path: here(a) },
        libc::SYS_access => CallRequest::ByPath { kind: CallKind::Access, path: here(a) },
        _ => return None,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn old(_number: i64, _args: [u64; 6]) -> Option<CallRequest> {
    None
}

/// Whether an open changes something or may.
pub(super) fn opens_for_writing(flags: i32) -> bool {
    flags & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) != 0
}
