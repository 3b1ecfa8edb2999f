//! The attributes of a file besides its content: permission bits, owner, extended attributes, and times. Reads
//! and sets them. Knows no recordings.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, UtimensatFlags, fchmodat, fstat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, geteuid, getgroups};
use rustix::fs::XattrFlags;
use serde::{Deserialize, Serialize};

/// The bits of `st_mode` that chmod changes.
const PERMISSION_BITS: u32 = 0o7777;
/// The longest value of an extended attribute, and the longest list of names, that Linux allows.
const MAX_XATTR_BYTES: usize = 64 * 1024;
/// Names of extended attributes that belong to a file. Others, such as SELinux labels, belong to the machine's
/// policy.
const KEPT_XATTRS: [&[u8]; 4] = [b"user.", b"trusted.", b"system.posix_acl_", b"security.capability"];

/// A time that a file has, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileTime {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds after that.
    pub nanoseconds: i64,
}

/// The attributes of a file, directory, symbolic link or named pipe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileAttributes {
    /// The permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// The user id of the owner.
    pub uid: u32,
    /// The group id of the owner.
    pub gid: u32,
    /// The extended attributes that are kept.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The modification time. `None`: it follows from the operations.
    pub modified: Option<FileTime>,
    /// The access time. `None`: it follows from the operations.
    pub accessed: Option<FileTime>,
}

/// The times of a file as they are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CurrentTimes {
    pub(super) modified: FileTime,
    pub(super) accessed: FileTime,
    /// When the attributes changed last.
    pub(super) changed: FileTime,
}

/// What could not be set, because this user may not or the file system has no such attribute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnsetAttributes {
    /// The owner or the group.
    pub owner: bool,
    /// An extended attribute.
    pub xattrs: bool,
}

impl FileTime {
    /// The same time for system calls.
    pub fn spec(self) -> TimeSpec {
        TimeSpec::new(self.seconds, self.nanoseconds)
    }
}

impl FileAttributes {
    /// Permission bits, and this process as the owner.
    pub fn with_mode(mode: u32) -> FileAttributes {
        FileAttributes {
            mode,
            uid: geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            xattrs: BTreeMap::new(),
            modified: None,
            accessed: None,
        }
    }

    /// The attributes of an open file with its times. The descriptor may be one opened with `O_PATH`.
    ///
    /// # Errors
    /// The attributes cannot be read.
    pub fn read(file: BorrowedFd<'_>) -> Result<FileAttributes, Error> {
        let stat = fstat(file)?;
        let times = CurrentTimes::of(&stat);
        let without_times = FileAttributes::from_stat(file, &stat)?;
        Ok(FileAttributes { modified: Some(times.modified), accessed: Some(times.accessed), ..without_times })
    }

    /// The attributes of an open file without its times.
    ///
    /// # Errors
    /// The attributes cannot be read.
    pub fn read_without_times(file: BorrowedFd<'_>) -> Result<FileAttributes, Error> {
        FileAttributes::from_stat(file, &fstat(file)?)
    }

    fn from_stat(file: BorrowedFd<'_>, stat: &FileStat) -> Result<FileAttributes, Error> {
        Ok(FileAttributes {
            mode: stat.st_mode & PERMISSION_BITS,
            uid: stat.st_uid,
            gid: stat.st_gid,
            xattrs: read_xattrs(file)?,
            modified: None,
            accessed: None,
        })
    }

    /// Whether nothing but the times differs.
    pub fn is_same_without_times(&self, other: &FileAttributes) -> bool {
        self.mode == other.mode
            && (self.uid, self.gid) == (other.uid, other.gid)
            && self.xattrs == other.xattrs
    }

    /// Whether this process may give a file this owner.
    pub fn has_settable_owner(&self) -> bool {
        geteuid().is_root() || (self.uid == geteuid().as_raw() && own_groups().contains(&self.gid))
    }

    /// Sets everything but the times on an open file, directory or named pipe. `current`: what it has now.
    ///
    /// # Errors
    /// The permission bits cannot be set, or an attribute for another reason than a missing permission.
    pub fn apply(&self, file: BorrowedFd<'_>, current: &FileAttributes) -> Result<UnsetAttributes, Error> {
        let mut unset = UnsetAttributes::default();
        let path = proc_path(file);
        if (self.uid, self.gid) != (current.uid, current.gid) {
            unset.owner = set_owner(file, self.uid, self.gid)?;
        }
        for name in current.xattrs.keys().filter(|name| !self.xattrs.contains_key(*name)) {
            let removed = rustix::fs::removexattr(path.as_c_str(), name.as_os_str());
            is_forbidden(removed.map_err(Error::from))?;
        }
        for (name, value) in &self.xattrs {
            if current.xattrs.get(name) != Some(value) {
                let set = rustix::fs::setxattr(path.as_c_str(), name.as_os_str(), value, XattrFlags::empty());
                unset.xattrs |= is_forbidden(set.map_err(Error::from))?;
            }
        }
        // Changing the owner clears the setuid and setgid bits, and an access list changes the bits of the
        // group, so the mode is set last.
        if !self.is_same_without_times(current) {
            fchmodat(AT_FDCWD, path.as_c_str(), mode_of(self.mode), FchmodatFlags::FollowSymlink)?;
        }
        Ok(unset)
    }

    /// Sets the owner of a symbolic link, which has no other attributes.
    ///
    /// # Errors
    /// The owner cannot be set, for another reason than a missing permission.
    pub fn apply_to_link(
        &self,
        link: BorrowedFd<'_>,
        current: &FileAttributes,
    ) -> Result<UnsetAttributes, Error> {
        let is_same = (self.uid, self.gid) == (current.uid, current.gid);
        let owner = !is_same && set_owner(link, self.uid, self.gid)?;
        Ok(UnsetAttributes { owner, xattrs: false })
    }
}

impl CurrentTimes {
    /// The times of an open file.
    pub(super) fn read(file: BorrowedFd<'_>) -> Result<CurrentTimes, Error> {
        Ok(CurrentTimes::of(&fstat(file)?))
    }

    pub(super) fn of(stat: &FileStat) -> CurrentTimes {
        let time = |seconds, nanoseconds| FileTime { seconds, nanoseconds };
        CurrentTimes {
            modified: time(stat.st_mtime, stat.st_mtime_nsec),
            accessed: time(stat.st_atime, stat.st_atime_nsec),
            changed: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// Sets the times of an open file, directory, link or pipe.
///
/// # Errors
/// The times cannot be set.
pub(in crate::explore) fn set_times(
    file: BorrowedFd<'_>,
    accessed: TimeSpec,
    modified: TimeSpec,
) -> Result<(), Error> {
    let path = proc_path(file);
    Ok(utimensat(AT_FDCWD, path.as_c_str(), &accessed, &modified, UtimensatFlags::FollowSymlink)?)
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode)
}

/// Returns whether this user may not set the owner.
fn set_owner(file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<bool, Error> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    is_forbidden(fchownat(file, c"", uid, gid, AtFlags::AT_EMPTY_PATH).map_err(Error::from))
}

/// Whether an attribute was not set because this user may not (`EPERM`), the id does not exist here
/// (`EINVAL`, `EOVERFLOW`), or the file system has no such attribute (`EOPNOTSUPP`).
fn is_forbidden(set: Result<(), Error>) -> Result<bool, Error> {
    match set {
        Ok(()) => Ok(false),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EINVAL | Errno::EOVERFLOW | Errno::EOPNOTSUPP) => Ok(true),
            _ => Err(error),
        },
    }
}

fn own_groups() -> Vec<u32> {
    let others = getgroups().unwrap_or_default();
    others.into_iter().chain([nix::unistd::getegid()]).map(Gid::as_raw).collect()
}

fn read_xattrs(file: BorrowedFd<'_>) -> Result<BTreeMap<OsString, Vec<u8>>, Error> {
    let path = proc_path(file);
    let mut xattrs = BTreeMap::new();
    let length = match rustix::fs::listxattr_query(path.as_c_str()) {
        // The file system has none.
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(xattrs),
        length => length?,
    };
    if length == 0 {
        return Ok(xattrs);
    }
    let mut names = vec![0; MAX_XATTR_BYTES];
    let length = rustix::fs::listxattr(path.as_c_str(), &mut names[..])?;
    for name in names[..length].split(|byte| *byte == 0) {
        if !KEPT_XATTRS.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut value = vec![0; MAX_XATTR_BYTES];
        match rustix::fs::getxattr(path.as_c_str(), OsStr::from_bytes(name), &mut value[..]) {
            Ok(length) => value.truncate(length),
            // It was removed in between.
            Err(rustix::io::Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        }
        xattrs.insert(OsString::from_vec(name.to_vec()), value);
    }
    Ok(xattrs)
}

/// A path of an open file that works for descriptors opened with `O_PATH` too.
fn proc_path(file: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap_or_default()
}
