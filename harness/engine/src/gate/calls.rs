//! Decodes a system call: turns its number and arguments into a `CallRequest`.
//!
//! Pure. Pointers into the target's memory stay addresses here; the caller reads what they point to.

use nix::libc;

use super::CallKind;
use super::attribute_calls::{AttributeCall, decode_attribute_call};

/// A path argument of a call: the descriptor of the directory it starts from, and the address of its text in
/// the target's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PathArgument {
    pub(super) dir_fd: i32,
    pub(super) text_address: u64,
}

/// The buffer argument of a read or write, in the target's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BufferArgument {
    Contiguous {
        address: u64,
        len_bytes: u64,
    },
    /// An array of `iovec` structures.
    Vectored {
        address: u64,
        iovec_count: u64,
    },
}

/// A decoded system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallRequest {
    Open {
        path: PathArgument,
        flags: i32,
        mode: u32,
    },
    /// The flags and the mode are in a struct `open_how`, which is still in the target's memory.
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
    /// Copies bytes from another descriptor. The offset arguments are addresses of an `off_t`; 0 means that
    /// none was passed.
    Transfer {
        method: TransferMethod,
        out_fd: i32,
        in_fd: i32,
        in_offset_address: u64,
        out_offset_address: u64,
        len_bytes: u64,
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
    /// A call that changes attributes of a file. The kernel performs it.
    SetAttributes(AttributeCall),
    /// A call on a path that changes nothing. The supervisor never performs it.
    ByPath {
        kind: CallKind,
        path: PathArgument,
    },
    /// A call on a descriptor that changes nothing. The supervisor never performs it.
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
    /// A call of an interface that can't be followed: it fails as if the kernel did not have it.
    Refused {
        feature: &'static str,
    },
}

/// The call that copies bytes between descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransferMethod {
    Sendfile,
    CopyFileRange,
    Splice,
}

const CURRENT_DIR: i32 = libc::AT_FDCWD;
/// The offset with which pwritev2 writes at the descriptor's own offset.
const OWN_OFFSET: u64 = u64::MAX;
/// Flags with which pwritev2 writes synchronously.
const RWF_ANY_SYNC: u64 = (libc::RWF_DSYNC | libc::RWF_SYNC) as u64;

/// Decodes a call. Returns `None` for a number that the filter does not intercept.
pub(super) fn decode(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, d, e, _] = args;
    let fd = a as i32;
    let path = |dir_fd: u64, text_address| PathArgument { dir_fd: dir_fd as i32, text_address };
    let by_path = |kind, path| CallRequest::ByPath { kind, path };
    let between_files = |method| CallRequest::Transfer {
        method,
        out_fd: c as i32,
        in_fd: fd,
        in_offset_address: b,
        out_offset_address: d,
        len_bytes: e,
    };
    Some(match number {
        libc::SYS_openat => CallRequest::Open { path: path(a, b), flags: c as i32, mode: d as u32 },
        libc::SYS_openat2 => CallRequest::Openat2 { path: path(a, b), how_address: c },
        libc::SYS_sendfile => CallRequest::Transfer {
            method: TransferMethod::Sendfile,
            out_fd: fd,
            in_fd: b as i32,
            in_offset_address: c,
            out_offset_address: 0,
            len_bytes: d,
        },
        libc::SYS_copy_file_range => between_files(TransferMethod::CopyFileRange),
        libc::SYS_splice => between_files(TransferMethod::Splice),
        libc::SYS_ftruncate => CallRequest::Truncate { fd, size_bytes: b },
        libc::SYS_truncate => CallRequest::TruncatePath {
            path: PathArgument { dir_fd: CURRENT_DIR, text_address: a },
            size_bytes: b,
        },
        libc::SYS_fallocate => CallRequest::Allocate { fd, mode: b as i32, offset: c, len_bytes: d },
        libc::SYS_renameat => CallRequest::Rename { from: path(a, b), to: path(c, d), flags: 0 },
        libc::SYS_renameat2 => CallRequest::Rename { from: path(a, b), to: path(c, d), flags: e as u32 },
        libc::SYS_linkat => CallRequest::Link { from: path(a, b), to: path(c, d), flags: e as i32 },
        libc::SYS_symlinkat => CallRequest::Symlink { text_address: a, path: path(b, c) },
        libc::SYS_unlinkat => {
            CallRequest::Unlink { path: path(a, b), is_dir: c & libc::AT_REMOVEDIR as u64 != 0 }
        }
        libc::SYS_mkdirat => CallRequest::Mkdir { path: path(a, b), mode: c as u32 },
        libc::SYS_fsync => CallRequest::Sync { fd, data_only: false },
        libc::SYS_fdatasync => CallRequest::Sync { fd, data_only: true },
        libc::SYS_sync_file_range => CallRequest::ByFd { kind: CallKind::SyncRange, fd },
        libc::SYS_syncfs | libc::SYS_sync => CallRequest::SyncAll,
        libc::SYS_msync => CallRequest::Msync { address: a, wait: c & libc::MS_SYNC as u64 != 0 },
        libc::SYS_mmap => CallRequest::Map { fd: e as i32 },
        libc::SYS_close => CallRequest::ByFd { kind: CallKind::Close, fd },
        libc::SYS_newfstatat | libc::SYS_statx => by_path(CallKind::Stat, path(a, b)),
        libc::SYS_faccessat | libc::SYS_faccessat2 => by_path(CallKind::Access, path(a, b)),
        libc::SYS_io_uring_setup => CallRequest::Refused { feature: "io_uring" },
        libc::SYS_io_setup => CallRequest::Refused { feature: "libaio" },
        _ => {
            return decode_read_or_write(number, args)
                .or_else(|| decode_attribute_call(number, args).map(CallRequest::SetAttributes))
                .or_else(|| decode_legacy(number, args));
        }
    })
}

fn decode_read_or_write(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, d, _, f] = args;
    let fd = a as i32;
    let contiguous = |address, len_bytes| BufferArgument::Contiguous { address, len_bytes };
    let vectored = |address, iovec_count| BufferArgument::Vectored { address, iovec_count };
    let write = |buffer, offset| CallRequest::Write { fd, buffer, offset, append: false, sync: false };
    Some(match number {
        libc::SYS_write => write(contiguous(b, c), None),
        libc::SYS_writev => write(vectored(b, c), None),
        libc::SYS_pwrite64 => write(contiguous(b, c), Some(d)),
        libc::SYS_pwritev => write(vectored(b, c), Some(d)),
        libc::SYS_pwritev2 => CallRequest::Write {
            fd,
            buffer: vectored(b, c),
            offset: (d != OWN_OFFSET).then_some(d),
            append: f & libc::RWF_APPEND as u64 != 0,
            sync: f & RWF_ANY_SYNC != 0,
        },
        libc::SYS_read => CallRequest::Read { fd, buffer: contiguous(b, c), offset: None },
        libc::SYS_pread64 => CallRequest::Read { fd, buffer: contiguous(b, c), offset: Some(d) },
        libc::SYS_readv => CallRequest::Read { fd, buffer: vectored(b, c), offset: None },
        libc::SYS_preadv => CallRequest::Read { fd, buffer: vectored(b, c), offset: Some(d) },
        _ => return None,
    })
}

/// Decodes the calls that only older architectures have; later ones have their `*at` forms only.
#[cfg(target_arch = "x86_64")]
fn decode_legacy(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, ..] = args;
    let relative_path = |text| PathArgument { dir_fd: CURRENT_DIR, text_address: text };
    let creat_flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
    Some(match number {
        libc::SYS_open => CallRequest::Open { path: relative_path(a), flags: b as i32, mode: c as u32 },
        libc::SYS_creat => CallRequest::Open { path: relative_path(a), flags: creat_flags, mode: b as u32 },
        libc::SYS_rename => CallRequest::Rename { from: relative_path(a), to: relative_path(b), flags: 0 },
        libc::SYS_link => CallRequest::Link { from: relative_path(a), to: relative_path(b), flags: 0 },
        libc::SYS_symlink => CallRequest::Symlink { text_address: a, path: relative_path(b) },
        libc::SYS_unlink => CallRequest::Unlink { path: relative_path(a), is_dir: false },
        libc::SYS_rmdir => CallRequest::Unlink { path: relative_path(a), is_dir: true },
        libc::SYS_mkdir => CallRequest::Mkdir { path: relative_path(a), mode: b as u32 },
        libc::SYS_stat | libc::SYS_lstat => {
            CallRequest::ByPath { kind: CallKind::Stat, path: relative_path(a) }
        }
        libc::SYS_access => CallRequest::ByPath { kind: CallKind::Access, path: relative_path(a) },
        _ => return None,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn decode_legacy(_number: i64, _args: [u64; 6]) -> Option<CallRequest> {
    None
}

/// Whether an open with these flags changes a file or allows changing one.
pub(super) fn opens_for_writing(flags: i32) -> bool {
    flags & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_transfer_has_its_files_offsets_and_byte_count() {
        let transfer = |number| match decode(number, [3, 4, 5, 6, 7, 0]) {
            Some(CallRequest::Transfer {
                out_fd,
                in_fd,
                in_offset_address,
                out_offset_address,
                len_bytes,
                ..
            }) => (out_fd, in_fd, in_offset_address, out_offset_address, len_bytes),
            other => unreachable!("{other:?}"),
        };
        assert_eq!(transfer(libc::SYS_sendfile), (3, 4, 5, 0, 6));
        assert_eq!(transfer(libc::SYS_copy_file_range), (5, 3, 4, 6, 7));
        assert_eq!(transfer(libc::SYS_splice), (5, 3, 4, 6, 7));
    }

    #[test]
    fn the_largest_offset_of_pwritev2_stands_for_the_descriptors_own() {
        let offset = |offset| match decode(libc::SYS_pwritev2, [3, 0, 1, offset, 0, 0]) {
            Some(CallRequest::Write { offset, .. }) => offset,
            other => unreachable!("{other:?}"),
        };
        assert_eq!((offset(8), offset(u64::MAX)), (Some(8), None));
    }
}
