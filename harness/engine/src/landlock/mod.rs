//! Rules of Landlock (landlock(7)): which rights to files a thread, and what it starts, keep. A sandbox starts programs
//! under them, and the gate makes calls under them for a program; neither knows the other.

mod sys;

use std::ops::BitOr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

/// The first version with all rights that are denied here: Linux 6.2.
pub const NEEDED_VERSION: u32 = 3;

/// Rights to files: the `LANDLOCK_ACCESS_FS_*` bits of linux/landlock.h.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileRights(u64);

impl FileRights {
    /// To open a file for writing.
    pub const WRITE_FILE: FileRights = FileRights(1 << 1);
    /// To open a file for reading.
    pub const READ_FILE: FileRights = FileRights(1 << 2);
    /// To open a directory, in order to list it.
    pub const READ_DIR: FileRights = FileRights(1 << 3);
    /// To remove a directory, or rename it away.
    pub const REMOVE_DIR: FileRights = FileRights(1 << 4);
    /// To remove a file, or rename it away.
    pub const REMOVE_FILE: FileRights = FileRights(1 << 5);
    /// To make a directory, or rename one to a name.
    pub const MAKE_DIR: FileRights = FileRights(1 << 7);
    /// To make a regular file, or link or rename one to a name.
    pub const MAKE_FILE: FileRights = FileRights(1 << 8);
    /// To make a socket.
    pub const MAKE_SOCKET: FileRights = FileRights(1 << 9);
    /// To make a named pipe.
    pub const MAKE_PIPE: FileRights = FileRights(1 << 10);
    /// To make a symbolic link.
    pub const MAKE_LINK: FileRights = FileRights(1 << 12);
    /// To rename or link into another directory. Denied by every ruleset that does not grant it.
    pub const REFER: FileRights = FileRights(1 << 13);
    /// To set the size of a file.
    pub const TRUNCATE: FileRights = FileRights(1 << 14);

    /// Those that concern a file, and not the names in a directory.
    const OF_FILES: u64 = Self::WRITE_FILE.0 | Self::READ_FILE.0 | Self::TRUNCATE.0;

    /// Whether some are in both.
    pub fn intersects(self, other: FileRights) -> bool {
        self.0 & other.0 != 0
    }

    fn of_files(self) -> FileRights {
        FileRights(self.0 & Self::OF_FILES)
    }
}

impl BitOr for FileRights {
    type Output = FileRights;

    fn bitor(self, other: FileRights) -> FileRights {
        FileRights(self.0 | other.0)
    }
}

/// What rights are granted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantedPath {
    /// A directory, and everything below it.
    Directory,
    /// Something that is no directory.
    File,
}

/// The version of Landlock that the kernel has.
///
/// # Errors
/// If it has none, if it is switched off, or if this process may not ask.
pub fn landlock_version() -> Result<u32, Errno> {
    sys::version()
}

/// A ruleset. Its copies share the rules.
#[derive(Debug, Clone)]
pub struct LandlockRules {
    ruleset: Arc<OwnedFd>,
    handled: FileRights,
}

impl LandlockRules {
    /// Rules that deny these rights, and [`REFER`](FileRights::REFER), everywhere until they are granted.
    ///
    /// # Errors
    /// If the kernel has no Landlock, or one that does not know a right.
    pub fn denying(rights: FileRights) -> Result<LandlockRules, Errno> {
        let handled = rights | FileRights::REFER;
        Ok(LandlockRules { ruleset: Arc::new(sys::create_ruleset(handled.0)?), handled })
    }

    /// Grants all rights that are denied otherwise.
    ///
    /// # Errors
    /// If the kernel refuses the path.
    pub fn grant(&self, path: BorrowedFd<'_>, kind: GrantedPath) -> Result<(), Errno> {
        self.grant_some(
            path,
            match kind {
                GrantedPath::Directory => self.handled,
                GrantedPath::File => self.handled.of_files(),
            },
        )
    }

    /// Grants some of them. A rule that grants nothing is left out.
    ///
    /// # Errors
    /// If the kernel refuses the path.
    pub fn grant_some(&self, path: BorrowedFd<'_>, rights: FileRights) -> Result<(), Errno> {
        match rights {
            FileRights(0) => Ok(()),
            FileRights(rights) => sys::add_rule(self.ruleset.as_fd(), path, rights),
        }
    }

    /// The descriptor that stands for them, also in another process.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.ruleset.as_fd()
    }

    /// Calls the function in a thread of its own that is under these rules. It has the umask and the identity of the
    /// calling thread.
    ///
    /// # Errors
    /// If the thread can't be put under the rules.
    pub fn call_under<T: Send>(&self, call: impl FnOnce() -> T + Send) -> Result<T, Errno> {
        let confined = || {
            sys::restrict_thread(self.as_fd())?;
            Ok(call())
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, confined);
            let thread =
                thread.map_err(|error| error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw))?;
            thread.join().unwrap_or(Err(Errno::ECANCELED))
        })
    }
}

/// Puts the calling thread, and what it starts, under the rules for which this descriptor stands.
///
/// # Errors
/// If the kernel refuses it.
pub fn confine_thread(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    sys::restrict_thread(ruleset)
}
