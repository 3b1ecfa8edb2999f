//! The files that the kernel knows of a pass-through file system: a number for each, with a descriptor of the file
//! below. Answers no request.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags, Stat, fstat, open, openat};
use rustix::io::Errno;

use crate::locks::LockExt;

/// The number of the root, by the FUSE protocol.
const ROOT: u64 = 1;
/// The first number of files whose own one is not free: that of the root, or of another file system.
const FIRST_OTHER_NUMBER: u64 = 1 << 63;

/// A file, whatever its name is now.
pub(super) struct Inode {
    /// Opened with `O_PATH`.
    pub(super) fd: OwnedFd,
    device: u64,
    number_below: u64,
}

impl Inode {
    /// A path that leads to the file. Valid in this process only.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// Opens the file itself.
    pub(super) fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        open(self.path(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    pub(super) fn stat(&self) -> Result<Stat, Errno> {
        fstat(&self.fd)
    }
}

struct Known {
    inode: Arc<Inode>,
    /// How often the kernel has got it and not forgotten it.
    lookups: u64,
}

#[derive(Default)]
struct Table {
    known: HashMap<u64, Known>,
    /// By device and number of the file below.
    numbers: HashMap<(u64, u64), u64>,
    others: u64,
}

/// The files that the kernel knows.
pub(super) struct Inodes {
    device: u64,
    table: Mutex<Table>,
}

impl Inodes {
    /// The files of a directory, which is the root.
    pub(super) fn below(root: OwnedFd) -> Result<Inodes, Errno> {
        let stat = fstat(&root)?;
        let mut table = Table::default();
        let inode = Arc::new(Inode { fd: root, device: stat.st_dev, number_below: stat.st_ino });
        table.numbers.insert((stat.st_dev, stat.st_ino), ROOT);
        table.known.insert(ROOT, Known { inode, lookups: 1 });
        Ok(Inodes { device: stat.st_dev, table: Mutex::new(table) })
    }

    /// The file of a number that the kernel has got.
    pub(super) fn get(&self, number: u64) -> Result<Arc<Inode>, Errno> {
        self.table.locked().known.get(&number).map(|known| Arc::clone(&known.inode)).ok_or(Errno::STALE)
    }

    /// Looks up the entry of a directory with exactly this name, and counts that the kernel gets it.
    pub(super) fn look_up(&self, dir: &Inode, name: &OsStr) -> Result<(u64, Stat), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&dir.fd, name, flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        let key = (stat.st_dev, stat.st_ino);
        let mut table = self.table.locked();
        if let Some(number) = table.numbers.get(&key).copied()
            && let Some(known) = table.known.get_mut(&number)
        {
            known.lookups += 1;
            return Ok((number, stat));
        }
        let is_free = stat.st_dev == self.device && stat.st_ino != ROOT && stat.st_ino < FIRST_OTHER_NUMBER;
        let number = if is_free { stat.st_ino } else { table.other_number() };
        table.numbers.insert(key, number);
        let inode = Arc::new(Inode { fd, device: stat.st_dev, number_below: stat.st_ino });
        table.known.insert(number, Known { inode, lookups: 1 });
        Ok((number, stat))
    }

    /// The kernel has forgotten a file so many times.
    pub(super) fn forget(&self, number: u64, count: u64) {
        let mut table = self.table.locked();
        let Some(known) = table.known.get_mut(&number) else { return };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 && number != ROOT {
            let key = (known.inode.device, known.inode.number_below);
            table.known.remove(&number);
            table.numbers.remove(&key);
        }
    }
}

impl Table {
    fn other_number(&mut self) -> u64 {
        self.others += 1;
        FIRST_OTHER_NUMBER + self.others
    }
}
