//! Decodes a system call: turns its number and arguments into a `CallRequest`.
//!
//! Pure. Pointers into the target's memory stay addresses here; the caller reads what they point to.

use nix::errno::Errno;
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

/// A struct `open_how`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenHow {
    pub(super) flags: u64,
    pub(super) mode: u64,
    pub(super) resolve: u64,
}

/// A decoded system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallRequest {
    Open {
        path: PathArgument,
        how: OpenHow,
        /// By openat2, which refuses unknown flags.
        strict: bool,
    },
    /// The arguments are in a struct `open_how`, which is still in the target's memory.
    Openat2 {
        path: PathArgument,
        how_address: u64,
        how_bytes: u64,
    },
    Write {
        fd: i32,
        buffer: BufferArgument,
        position: FilePosition,
    },
    Read {
        fd: i32,
        buffer: BufferArgument,
        position: FilePosition,
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
        flags: u32,
    },
    /// Shares the blocks of another file.
    Clone {
        fd: i32,
        source: CloneSource,
    },
    Truncate {
        fd: i32,
        size_bytes: i64,
    },
    TruncatePath {
        path: PathArgument,
        size_bytes: i64,
    },
    Allocate {
        fd: i32,
        mode: i32,
        offset: i64,
        len_bytes: i64,
    },
    /// Creates a file, pipe, socket or device.
    Mknod {
        path: PathArgument,
        mode: u32,
        device: u64,
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
    /// Syncs the file system of a descriptor, or all of them.
    SyncAll {
        fd: Option<i32>,
    },
    Msync {
        address: u64,
        len_bytes: u64,
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

/// Where a read or write begins, and the `RWF_*` flags of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FilePosition {
    /// `None`: at the descriptor's own offset.
    pub(super) offset: Option<i64>,
    pub(super) flags: i32,
}

impl FilePosition {
    const OWN: FilePosition = FilePosition { offset: None, flags: 0 };

    fn at(offset: u64) -> FilePosition {
        FilePosition { offset: Some(offset as i64), flags: 0 }
    }

    /// Where the call begins. `None`: at the descriptor's own offset.
    ///
    /// # Errors
    /// The offset is negative: the kernel refuses the call.
    pub(super) fn start(self) -> Result<Option<u64>, Errno> {
        self.offset.map(u64::try_from).transpose().map_err(|_| Errno::EINVAL)
    }

    /// The position of preadv2 and pwritev2, for which -1 stands for the descriptor's own offset.
    fn with_flags(offset: u64, flags: u64) -> FilePosition {
        FilePosition { offset: (offset != OWN_OFFSET).then_some(offset as i64), flags: flags as i32 }
    }
}

/// The source of a call that shares blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloneSource {
    /// A whole file (FICLONE).
    File { fd: i32 },
    /// The range described by a `file_clone_range` at this address (FICLONERANGE).
    Range { address: u64 },
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
/// The requests of ioctl that share blocks: `FICLONE` and `FICLONERANGE` of linux/fs.h.
pub(super) const FICLONE: u32 = 0x4004_9409;
pub(super) const FICLONERANGE: u32 = 0x4020_940d;

/// Decodes a call. Returns `None` for a number that the filter does not intercept, and for arguments with which
/// the call changes nothing.
pub(super) fn decode(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, d, e, _] = args;
    let fd = a as i32;
    let path = |dir_fd: u64, text_address| PathArgument { dir_fd: dir_fd as i32, text_address };
    let by_path = |kind, path| CallRequest::ByPath { kind, path };
    Some(match number {
        libc::SYS_openat => open(path(a, b), c, d),
        libc::SYS_openat2 => CallRequest::Openat2 { path: path(a, b), how_address: c, how_bytes: d },
        libc::SYS_ftruncate => CallRequest::Truncate { fd, size_bytes: b as i64 },
        libc::SYS_truncate => CallRequest::TruncatePath {
            path: PathArgument { dir_fd: CURRENT_DIR, text_address: a },
            size_bytes: b as i64,
        },
        libc::SYS_fallocate => {
            CallRequest::Allocate { fd, mode: b as i32, offset: c as i64, len_bytes: d as i64 }
        }
        libc::SYS_mknodat => CallRequest::Mknod { path: path(a, b), mode: c as u32, device: d },
        libc::SYS_renameat => CallRequest::Rename { from: path(a, b), to: path(c, d), flags: 0 },
        libc::SYS_renameat2 => CallRequest::Rename { from: path(a, b), to: path(c, d), flags: e as u32 },
        libc::SYS_linkat if has_only(e, libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) => {
            CallRequest::Link { from: path(a, b), to: path(c, d), flags: e as i32 }
        }
        libc::SYS_symlinkat => CallRequest::Symlink { text_address: a, path: path(b, c) },
        libc::SYS_unlinkat if has_only(c, libc::AT_REMOVEDIR) => {
            CallRequest::Unlink { path: path(a, b), is_dir: c & libc::AT_REMOVEDIR as u64 != 0 }
        }
        libc::SYS_mkdirat => CallRequest::Mkdir { path: path(a, b), mode: c as u32 },
        libc::SYS_close => CallRequest::ByFd { kind: CallKind::Close, fd },
        libc::SYS_newfstatat | libc::SYS_statx => by_path(CallKind::Stat, path(a, b)),
        libc::SYS_faccessat | libc::SYS_faccessat2 => by_path(CallKind::Access, path(a, b)),
        libc::SYS_io_uring_setup => CallRequest::Refused { feature: "io_uring" },
        libc::SYS_io_setup => CallRequest::Refused { feature: "libaio" },
        _ => {
            return decode_read_or_write(number, args)
                .or_else(|| decode_transfer(number, args))
                .or_else(|| decode_sync_or_map(number, args))
                .or_else(|| decode_attribute_call(number, args).map(CallRequest::SetAttributes))
                .or_else(|| decode_legacy(number, args));
        }
    })
}

/// Decodes the calls that copy bytes between descriptors, or share blocks.
fn decode_transfer(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, d, e, f] = args;
    let fd = a as i32;
    let between_files = |method| CallRequest::Transfer {
        method,
        out_fd: c as i32,
        in_fd: fd,
        in_offset_address: b,
        out_offset_address: d,
        len_bytes: e,
        flags: f as u32,
    };
    Some(match number {
        libc::SYS_sendfile => CallRequest::Transfer {
            method: TransferMethod::Sendfile,
            out_fd: fd,
            in_fd: b as i32,
            in_offset_address: c,
            out_offset_address: 0,
            len_bytes: d,
            flags: 0,
        },
        libc::SYS_copy_file_range => between_files(TransferMethod::CopyFileRange),
        libc::SYS_splice => between_files(TransferMethod::Splice),
        libc::SYS_ioctl => CallRequest::Clone {
            fd,
            source: match b as u32 {
                FICLONE => CloneSource::File { fd: c as i32 },
                FICLONERANGE => CloneSource::Range { address: c },
                _ => return None,
            },
        },
        _ => return None,
    })
}

/// Decodes the calls that make changes durable, and mmap.
fn decode_sync_or_map(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, _, e, _] = args;
    let fd = a as i32;
    Some(match number {
        libc::SYS_fsync => CallRequest::Sync { fd, data_only: false },
        libc::SYS_fdatasync => CallRequest::Sync { fd, data_only: true },
        libc::SYS_sync_file_range => CallRequest::ByFd { kind: CallKind::SyncRange, fd },
        libc::SYS_syncfs => CallRequest::SyncAll { fd: Some(fd) },
        libc::SYS_sync => CallRequest::SyncAll { fd: None },
        libc::SYS_msync => {
            CallRequest::Msync { address: a, len_bytes: b, wait: c & libc::MS_SYNC as u64 != 0 }
        }
        libc::SYS_mmap => CallRequest::Map { fd: e as i32 },
        _ => return None,
    })
}

fn open(path: PathArgument, flags: u64, mode: u64) -> CallRequest {
    // openat takes an int and ignores what it does not know; openat2 takes 64 bits.
    let how = OpenHow { flags: u64::from(flags as u32), mode, resolve: 0 };
    CallRequest::Open { path, how, strict: false }
}

/// Whether no other bits than these are set.
fn has_only(flags: u64, known: i32) -> bool {
    flags as i32 & !known == 0
}

fn decode_read_or_write(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, d, _, f] = args;
    let fd = a as i32;
    let contiguous = |address, len_bytes| BufferArgument::Contiguous { address, len_bytes };
    let vectored = |address, iovec_count| BufferArgument::Vectored { address, iovec_count };
    let write = |buffer, position| CallRequest::Write { fd, buffer, position };
    let read = |buffer, position| CallRequest::Read { fd, buffer, position };
    let own = FilePosition::OWN;
    Some(match number {
        libc::SYS_write => write(contiguous(b, c), own),
        libc::SYS_writev => write(vectored(b, c), own),
        libc::SYS_pwrite64 => write(contiguous(b, c), FilePosition::at(d)),
        libc::SYS_pwritev => write(vectored(b, c), FilePosition::at(d)),
        libc::SYS_pwritev2 => write(vectored(b, c), FilePosition::with_flags(d, f)),
        libc::SYS_read => read(contiguous(b, c), own),
        libc::SYS_pread64 => read(contiguous(b, c), FilePosition::at(d)),
        libc::SYS_readv => read(vectored(b, c), own),
        libc::SYS_preadv => read(vectored(b, c), FilePosition::at(d)),
        libc::SYS_preadv2 => read(vectored(b, c), FilePosition::with_flags(d, f)),
        _ => return None,
    })
}

/// Decodes the calls that only older architectures have; later ones have their `*at` forms only.
#[cfg(target_arch = "x86_64")]
fn decode_legacy(number: i64, args: [u64; 6]) -> Option<CallRequest> {
    let [a, b, c, ..] = args;
    let relative_path = |text| PathArgument { dir_fd: CURRENT_DIR, text_address: text };
    let creat_flags = (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u64;
    Some(match number {
        libc::SYS_open => open(relative_path(a), b, c),
        libc::SYS_creat => open(relative_path(a), creat_flags, b),
        libc::SYS_mknod => CallRequest::Mknod { path: relative_path(a), mode: b as u32, device: c },
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
pub(super) fn opens_for_writing(flags: u64) -> bool {
    flags as i32 & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) != 0
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
            Some(CallRequest::Write { position, .. }) => position.offset,
            other => unreachable!("{other:?}"),
        };
        assert_eq!((offset(8), offset(u64::MAX)), (Some(8), None));
    }
}
