//! Answers the kernel's requests to a pass-through file system. What is not answered here, such as `O_TMPFILE`, the
//! kernel refuses or does itself, as locks.

use std::ffi::OsStr;
use std::io::IoSlice;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, SeekFrom, XattrFlags, fallocate, fdatasync, fstatvfs, fsync,
    getxattr, listxattr, mkdirat, mknodat, readlinkat, removexattr, seek, setxattr, symlinkat,
};
use rustix::io::{Errno, pread, pwritev};

use super::file_system::{Asker, ChangedAttributes, FileSystem};
use crate::locks::LockExt;

/// How long the kernel may keep what it was told: not at all, because the harness changes files below, and a file has
/// several names.
const KEPT: Duration = Duration::ZERO;

/// Answers a request whose reply has no value, or one that this turns into an answer.
macro_rules! answer {
    ($reply:ident, $result:expr) => {
        match $result {
            Ok(()) => $reply.ok(),
            Err(error) => $reply.error(errno(error)),
        }
    };
    ($reply:ident, $result:expr, $value:pat => $answer:expr) => {
        match $result {
            Ok($value) => $answer,
            Err(error) => $reply.error(errno(error)),
        }
    };
}

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

/// The answer to a question for extended attributes: their size, or they themselves.
fn answer_attributes(reply: ReplyXattr, max_bytes: u32, value: Result<Vec<u8>, Errno>) {
    let len_bytes = value.as_ref().map_or(0, |value| u32::try_from(value.len()).unwrap_or(u32::MAX));
    match value {
        Ok(_) if max_bytes == 0 => reply.size(len_bytes),
        Ok(_) if len_bytes > max_bytes => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

/// Largest value of an extended attribute, and largest list of them, by xattr(7).
const MAX_XATTR_BYTES: usize = 64 << 10;

impl Filesystem for FileSystem {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.look_up(parent, name, Asker::of(request));
        answer!(reply, found, found => reply.entry(&KEPT, &found, Generation(0)));
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        self.inodes.forget(number.0, count);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let found = self.attributes(number, Asker::of(request));
        answer!(reply, found, found => reply.attr(&KEPT, &found));
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut changed = ChangedAttributes { mode, uid, gid, size, accessed, modified };
        // Who has opened a file may change its size, whatever its mode is now.
        let by_handle = handle.zip(size).map(|(handle, size)| {
            changed.size = None;
            rustix::fs::ftruncate(&self.handles.get(handle)?.fd, size)
        });
        let done = by_handle.unwrap_or(Ok(())).and_then(|()| self.change(number, &changed));
        let found = done.and_then(|()| self.attributes(number, Asker::of(request)));
        answer!(reply, found, found => reply.attr(&KEPT, &found));
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        let read = self.inodes.get(number.0).and_then(|inode| readlinkat(&inode.fd, "", Vec::new()));
        answer!(reply, read, target => reply.data(target.as_bytes()));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        device: u32,
        reply: ReplyEntry,
    ) {
        let kind = FileType::from_raw_mode(mode);
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let made = self.make(parent, name, Asker::of(request), |dir, name| {
            mknodat(dir, name, kind, mode, device.into())
        });
        answer!(reply, made, made => reply.entry(&KEPT, &made, Generation(0)));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let made = self.make(parent, name, Asker::of(request), |dir, name| mkdirat(dir, name, mode));
        answer!(reply, made, made => reply.entry(&KEPT, &made, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name, AtFlags::empty()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name, AtFlags::REMOVEDIR));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let made = self.make(parent, name, Asker::of(request), |dir, name| symlinkat(target, dir, name));
        answer!(reply, made, made => reply.entry(&KEPT, &made, Generation(0)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.rename_entry([parent, new_parent], [name, new_name], flags.bits()));
    }

    fn link(
        &self,
        request: &Request,
        number: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let made = self.link_to(number, new_parent, new_name, Asker::of(request));
        answer!(reply, made, made => reply.entry(&KEPT, &made, Generation(0)));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.create_file(parent, name, mode, flags, Asker::of(request));
        answer!(reply, made, (attributes, handle) => {
            reply.created(&KEPT, &attributes, Generation(0), handle, FopenFlags::empty());
        });
    }

    fn open(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.open_file(number, flags.0), handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.handles.get(handle).and_then(|handle| {
            let mut bytes = vec![0; size as usize];
            let mut filled = 0;
            // The kernel takes a short answer for the end of the file.
            while filled < bytes.len() {
                match pread(&handle.fd, &mut bytes[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        });
        answer!(reply, read, bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.handles.get(handle).and_then(|handle| {
            let mut written = 0;
            while written < data.len() {
                match pwritev(&handle.fd, &[IoSlice::new(&data[written..])], offset + written as u64) {
                    Ok(count) => written += count,
                    Err(Errno::INTR) => {}
                    // What is written counts. The next write gets the error.
                    Err(_) if written > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(u32::try_from(written).unwrap_or(u32::MAX))
        });
        answer!(reply, written, count => reply.written(count));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.remove(handle);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let synced = self.handles.get(handle).and_then(|handle| match data_only {
            true => fdatasync(&handle.fd),
            false => fsync(&handle.fd),
        });
        answer!(reply, synced);
    }

    fn opendir(&self, _: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.open_file(number, flags.0), handle => reply.opened(handle, FopenFlags::empty()));
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Ok(handle) = self.handles.get(handle) else { return reply.error(fuser::Errno::EBADF) };
        let mut entries = handle.entries.locked();
        if offset == 0 {
            match self.list(number) {
                Ok(listed) => *entries = listed,
                Err(error) => return reply.error(errno(error)),
            }
        }
        for (next, entry) in (1..).zip(entries.iter()).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if reply.add(INodeNo(entry.number), next, entry.kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.handles.remove(handle);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        request: &Request,
        number: INodeNo,
        handle: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(request, number, handle, data_only, reply);
    }

    fn statfs(&self, _: &Request, number: INodeNo, reply: ReplyStatfs) {
        let space = self.inodes.get(number.0).and_then(|inode| fstatvfs(&inode.fd));
        answer!(reply, space, space => {
            let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
            reply.statfs(
                space.f_blocks,
                space.f_bfree,
                space.f_bavail,
                space.f_files,
                space.f_ffree,
                small(space.f_bsize),
                small(space.f_namemax),
                small(space.f_frsize),
            );
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
        let inode = self.inodes.get(number.0);
        answer!(reply, inode.and_then(|inode| setxattr(inode.path(), name, value, flags)));
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let mut value = vec![0; MAX_XATTR_BYTES];
        let read = self.inodes.get(number.0).and_then(|inode| getxattr(inode.path(), name, &mut value[..]));
        answer_attributes(reply, size, read.map(|count| value[..count].to_vec()));
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let mut names = vec![0; MAX_XATTR_BYTES];
        let read = self.inodes.get(number.0).and_then(|inode| listxattr(inode.path(), &mut names[..]));
        answer_attributes(reply, size, read.map(|count| names[..count].to_vec()));
    }

    fn removexattr(&self, _: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.inodes.get(number.0).and_then(|inode| removexattr(inode.path(), name)));
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        len_bytes: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let handle = self.handles.get(handle);
        answer!(reply, handle.and_then(|handle| fallocate(&handle.fd, mode, offset, len_bytes)));
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let start = u64::try_from(offset).unwrap_or(u64::MAX);
        let from = match whence {
            nix::libc::SEEK_DATA => SeekFrom::Data(start),
            nix::libc::SEEK_HOLE => SeekFrom::Hole(start),
            _ => return reply.error(fuser::Errno::EINVAL),
        };
        let found = self.handles.get(handle).and_then(|handle| seek(&handle.fd, from));
        answer!(reply, found, found => reply.offset(found.cast_signed()));
    }
}
