//! What a pass-through file system does with a directory below it: with its names, its files and their times. Answers
//! no request, starts no process and mounts nothing.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, Request, TimeOrNow};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType as Kind, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, chmod, chownat, ftruncate, linkat, openat, renameat_with, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::handles::{Handles, ListedEntry};
use super::inodes::{Inode, Inodes};
use super::names::is_same_name;
use super::traits::{AskedFile, FileSystemTraits, GivenTimes, folded_name};

/// The greatest number of a process that is none of the target's: init, or 0 for one outside of the sandbox.
const LAST_OTHER_PID: u32 = 1;

/// Flags of open(2) that the kernel has dealt with above this file system. Its offsets and buffers are not those of the
/// process that opened the file.
const DEALT_WITH: OFlags = OFlags::CREATE
    .union(OFlags::EXCL)
    .union(OFlags::NOCTTY)
    .union(OFlags::APPEND)
    .union(OFlags::DIRECT)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::TRUNC);

/// A file system that is another one's, but for its traits.
pub(super) struct FileSystem {
    pub(super) traits: FileSystemTraits,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    pub(super) given_times: GivenTimes,
    /// Takes what shows that a process of the target met one of the traits.
    pub(super) on_evidence: Box<dyn Fn(String) + Send + Sync>,
}

/// Who asks, as far as what is made belongs to them.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    uid: u32,
    gid: u32,
    is_target: bool,
}

impl Asker {
    pub(super) fn of(request: &Request) -> Asker {
        Asker { uid: request.uid(), gid: request.gid(), is_target: request.pid() > LAST_OTHER_PID }
    }
}

/// What a request changes of a file's attributes.
pub(super) struct ChangedAttributes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<TimeOrNow>,
    pub(super) modified: Option<TimeOrNow>,
}

impl FileSystem {
    /// The name of an entry as it is on disk. `None`: there is no such entry.
    fn find(&self, dir: &Inode, name: &OsStr) -> Result<Option<OsString>, Errno> {
        match statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(Some(name.to_owned())),
            Err(Errno::NOENT) if self.traits.folds_case => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        }
        for entry in Dir::new(dir.open(OFlags::RDONLY | OFlags::DIRECTORY)?)? {
            let found = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if is_same_name(&found, name) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The same for an entry that must exist.
    fn existing(&self, dir: &Inode, name: &OsStr) -> Result<OsString, Errno> {
        self.find(dir, name)?.ok_or(Errno::NOENT)
    }

    /// The name under which an entry is made: that of the entry that is there, if there is one.
    pub(super) fn name_to_make(&self, dir: &Inode, name: &OsStr) -> Result<OsString, Errno> {
        Ok(self.find(dir, name)?.unwrap_or_else(|| name.to_owned()))
    }

    /// Looks up an entry, and counts that the kernel gets it.
    pub(super) fn look_up(&self, parent: INodeNo, name: &OsStr, asker: Asker) -> Result<FileAttr, Errno> {
        let dir = self.inodes.get(parent.0)?;
        let found = self.existing(&dir, name)?;
        let (number, stat) = self.inodes.look_up(&dir, &found)?;
        if asker.is_target {
            folded_name(name, &found).into_iter().for_each(&self.on_evidence);
            self.note_time(AskedFile::Name(parent.0, found), &stat);
        }
        self.given(number, &stat, asker)
    }

    /// The attributes of a file.
    pub(super) fn attributes(&self, number: INodeNo, asker: Asker) -> Result<FileAttr, Errno> {
        let stat = self.inodes.get(number.0)?.stat()?;
        self.given(number.0, &stat, asker)
    }

    /// The attributes of a file that are given to somebody.
    fn given(&self, number: u64, stat: &Stat, asker: Asker) -> Result<FileAttr, Errno> {
        if asker.is_target {
            self.note_time(AskedFile::Number(number), stat);
        }
        attributes(number, stat, self.traits)
    }

    fn note_time(&self, file: AskedFile, stat: &Stat) {
        if Kind::from_raw_mode(stat.st_mode) == Kind::RegularFile {
            self.given_times.give(self.traits, file, stat).into_iter().for_each(&self.on_evidence);
        }
    }

    /// Makes an entry, gives it to the asker, and looks it up.
    pub(super) fn make(
        &self,
        parent: INodeNo,
        name: &OsStr,
        asker: Asker,
        make: impl FnOnce(&OwnedFd, &OsStr) -> Result<(), Errno>,
    ) -> Result<FileAttr, Errno> {
        let dir = self.inodes.get(parent.0)?;
        let name = self.name_to_make(&dir, name)?;
        make(&dir.fd, &name)?;
        give(&dir, &name, asker)?;
        self.look_up(parent, &name, asker)
    }

    /// Creates a file and opens it.
    pub(super) fn create_file(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        flags: i32,
        asker: Asker,
    ) -> Result<(FileAttr, fuser::FileHandle), Errno> {
        let dir = self.inodes.get(parent.0)?;
        let name = self.name_to_make(&dir, name)?;
        let kept = OFlags::from_bits_retain(flags.cast_unsigned()).difference(DEALT_WITH);
        let flags = kept | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o7777);
        let fd = match openat(&dir.fd, &name, flags | OFlags::EXCL, mode) {
            // Somebody else was faster.
            Err(Errno::EXIST) => openat(&dir.fd, &name, flags, mode)?,
            opened => {
                let fd = opened?;
                give(&dir, &name, asker)?;
                fd
            }
        };
        let attributes = self.look_up(parent, &name, asker)?;
        Ok((attributes, self.handles.add(fd)))
    }

    /// Removes an entry.
    pub(super) fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Result<(), Errno> {
        let dir = self.inodes.get(parent.0)?;
        unlinkat(&dir.fd, self.existing(&dir, name)?, flags)
    }

    /// Renames an entry. What has the new name in another case is replaced, and keeps its case.
    pub(super) fn rename_entry(
        &self,
        [from, to]: [INodeNo; 2],
        [name, new_name]: [&OsStr; 2],
        flags: u32,
    ) -> Result<(), Errno> {
        let [from, to] = [self.inodes.get(from.0)?, self.inodes.get(to.0)?];
        let [name, new_name] = [self.existing(&from, name)?, self.name_to_make(&to, new_name)?];
        renameat_with(&from.fd, name, &to.fd, new_name, RenameFlags::from_bits_retain(flags))
    }

    /// Gives a file another name.
    pub(super) fn link_to(
        &self,
        number: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        asker: Asker,
    ) -> Result<FileAttr, Errno> {
        let (inode, dir) = (self.inodes.get(number.0)?, self.inodes.get(parent.0)?);
        let name = self.name_to_make(&dir, name)?;
        linkat(CWD, inode.path(), &dir.fd, &name, AtFlags::SYMLINK_FOLLOW)?;
        self.look_up(parent, &name, asker)
    }

    /// Opens a file or a directory.
    pub(super) fn open_file(&self, number: INodeNo, flags: i32) -> Result<fuser::FileHandle, Errno> {
        let flags = OFlags::from_bits_retain(flags.cast_unsigned()).difference(DEALT_WITH);
        Ok(self.handles.add(self.inodes.get(number.0)?.open(flags)?))
    }

    /// Lists a directory.
    pub(super) fn list(&self, number: INodeNo) -> Result<Vec<ListedEntry>, Errno> {
        let mut entries = Vec::new();
        for entry in Dir::new(self.inodes.get(number.0)?.open(OFlags::RDONLY | OFlags::DIRECTORY)?)? {
            let entry = entry?;
            let kind = file_type(entry.file_type()).unwrap_or(FileType::RegularFile);
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            entries.push(ListedEntry { number: entry.ino(), kind, name });
        }
        Ok(entries)
    }

    /// Changes attributes of a file.
    pub(super) fn change(&self, number: INodeNo, changed: &ChangedAttributes) -> Result<(), Errno> {
        let inode = self.inodes.get(number.0)?;
        if let Some(mode) = changed.mode {
            chmod(inode.path(), Mode::from_raw_mode(mode & 0o7777))?;
        }
        if changed.uid.is_some() || changed.gid.is_some() {
            chownat(&inode.fd, "", uid(changed.uid), gid(changed.gid), AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = changed.size {
            ftruncate(inode.open(OFlags::WRONLY)?, size)?;
        }
        if changed.accessed.is_some() || changed.modified.is_some() {
            let times = Timestamps {
                last_access: self.timespec(changed.accessed),
                last_modification: self.timespec(changed.modified),
            };
            utimensat(CWD, inode.path(), &times, AtFlags::empty())?;
        }
        Ok(())
    }

    fn timespec(&self, time: Option<TimeOrNow>) -> Timespec {
        let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        match time {
            None => special(UTIME_OMIT),
            Some(TimeOrNow::Now) => special(UTIME_NOW),
            Some(TimeOrNow::SpecificTime(time)) => {
                let (seconds, nanos) = since_1970(time);
                let (tv_sec, nanos) = self.traits.stored(seconds, nanos);
                Timespec { tv_sec, tv_nsec: nanos.into() }
            }
        }
    }
}

/// Seconds and nanoseconds since 1970.
fn since_1970(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs().cast_signed(), since.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let whole = -before.as_secs().cast_signed();
            match before.subsec_nanos() {
                0 => (whole, 0),
                nanos => (whole - 1, 1_000_000_000 - nanos),
            }
        }
    }
}

fn uid(raw: Option<u32>) -> Option<rustix::fs::Uid> {
    raw.map(rustix::fs::Uid::from_raw)
}

fn gid(raw: Option<u32>) -> Option<rustix::fs::Gid> {
    raw.map(rustix::fs::Gid::from_raw)
}

/// Lets a new entry belong to whoever has made it.
fn give(dir: &Inode, name: &OsStr, asker: Asker) -> Result<(), Errno> {
    let stat = statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let inherits_group = Mode::from_raw_mode(dir.stat()?.st_mode).contains(Mode::SGID);
    let new_uid = Some(asker.uid).filter(|uid| *uid != stat.st_uid);
    let new_gid = Some(asker.gid).filter(|gid| *gid != stat.st_gid && !inherits_group);
    if new_uid.is_none() && new_gid.is_none() {
        return Ok(());
    }
    chownat(&dir.fd, name, uid(new_uid), gid(new_gid), AtFlags::SYMLINK_NOFOLLOW)
}

fn file_type(kind: Kind) -> Result<FileType, Errno> {
    Ok(match kind {
        Kind::RegularFile => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharacterDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Unknown => return Err(Errno::IO),
    })
}

fn attributes(number: u64, stat: &Stat, traits: FileSystemTraits) -> Result<FileAttr, Errno> {
    let modified = traits.time(stat.st_mtime, stat.st_mtime_nsec);
    let number_of = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(FileAttr {
        ino: INodeNo(number),
        size: number_of(stat.st_size),
        blocks: number_of(stat.st_blocks),
        atime: traits.time(stat.st_atime, stat.st_atime_nsec),
        mtime: modified,
        ctime: traits.time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: modified,
        kind: file_type(Kind::from_raw_mode(stat.st_mode))?,
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: u32::try_from(stat.st_rdev).unwrap_or(0),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    })
}
