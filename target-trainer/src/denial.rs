//! Says of a denied access to a file whether its owner and mode show why. If not, something may have denied it that a
//! listing does not show, such as a security policy. Knows no operation.

use std::fs::Metadata;
use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::unistd::{getegid, geteuid, getgroups};

const READ: u32 = 0o4;
const WRITE: u32 = 0o2;
/// To run a file, or to look for a name in a directory.
const SEARCH: u32 = 0o1;
const STICKY: u32 = 0o1000;
/// The bits of capabilities(7) with which modes don't count.
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_FOWNER: u64 = 1 << 3;
/// What the kernel shows for an owner or a group that the user namespace does not have.
const OVERFLOW_ID: u32 = 65534;

static IS_EXPLAINED: AtomicBool = AtomicBool::new(true);

/// Lets errors be as the operating system gives them.
pub(crate) fn leave_unexplained() {
    IS_EXPLAINED.store(false, Ordering::Relaxed);
}

/// What was to be done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It was to be read, or listed.
    Read,
    /// It was to be made, written, renamed or removed.
    Write,
}

/// A denied access that the owner and the mode of the path allow.
#[derive(Debug, thiserror::Error)]
#[error("{source}, although the owner and the mode of this path allow it: {suspects} may deny it")]
struct UnexplainedDenial {
    suspects: &'static str,
    source: Error,
}

/// The error of an access to `path`. If it is a denial that the owner and the mode of the path don't explain, it names
/// who may deny it. Its kind stays.
pub(crate) fn explained(error: Error, path: &Path, access: Access) -> Error {
    let suspects = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES) => {
            "a security policy (SELinux, AppArmor, Landlock), an access list or a file server"
        }
        Some(Errno::EPERM) => {
            "an attribute of the file (see `lsattr`) or a security policy (SELinux, AppArmor, Landlock)"
        }
        _ => return error,
    };
    if !IS_EXPLAINED.load(Ordering::Relaxed) || !Identity::of_process().may(path, access) {
        return error;
    }
    Error::new(error.kind(), UnexplainedDenial { suspects, source: error })
}

/// What the kernel compares with the owner and the mode of a file.
struct Identity {
    uid: u32,
    gids: Vec<u32>,
    capabilities: u64,
}

impl Identity {
    fn of_process() -> Identity {
        let groups = getgroups().unwrap_or_default();
        let gids = groups.into_iter().chain([getegid()]).map(nix::unistd::Gid::as_raw).collect();
        Identity { uid: geteuid().as_raw(), gids, capabilities: effective_capabilities().unwrap_or(0) }
    }

    /// Whether owners and modes allow the access. What can't be found out counts as not allowed.
    fn may(&self, path: &Path, access: Access) -> bool {
        let Ok(path) = std::path::absolute(path) else { return false };
        let Some(parent) = path.parent().and_then(|dir| dir.metadata().ok()) else { return false };
        let may_search = |dir: &Path| dir.metadata().is_ok_and(|dir| self.has(&dir, SEARCH));
        if !path.ancestors().skip(1).all(may_search) {
            return false;
        }
        let may_name = match access {
            Access::Read => true,
            Access::Write => self.has(&parent, WRITE),
        };
        may_name
            && match path.symlink_metadata() {
                Ok(found) => self.may_use(&found, &parent, access),
                Err(error) => access == Access::Write && error.kind() == std::io::ErrorKind::NotFound,
            }
    }

    /// The same for what has the path's name in the directory `parent`.
    fn may_use(&self, found: &Metadata, parent: &Metadata, access: Access) -> bool {
        let needed = match (access, found.is_dir()) {
            (Access::Read, false) => READ,
            (Access::Read, true) => READ | SEARCH,
            (Access::Write, false) => WRITE,
            (Access::Write, true) => READ | WRITE | SEARCH,
        };
        let is_own = |file: &Metadata| file.uid() == self.uid || self.capabilities & CAP_FOWNER != 0;
        let may_remove =
            access == Access::Read || parent.mode() & STICKY == 0 || is_own(parent) || is_own(found);
        // A link has all rights, and what it leads to is not known here.
        !found.is_symlink() && may_remove && self.has(found, needed)
    }

    fn has(&self, file: &Metadata, bits: u32) -> bool {
        // `nobody` itself has this number. In a user namespace it cannot tell its own files from those of unknown owners,
        // and most that it meets are its own.
        let is_unknown_owner = file.uid() == OVERFLOW_ID && self.uid != OVERFLOW_ID;
        let is_unknown_group = file.gid() == OVERFLOW_ID && !self.gids.contains(&OVERFLOW_ID);
        if is_unknown_owner || is_unknown_group {
            return false;
        }
        let shift = match () {
            () if file.uid() == self.uid => 6,
            () if self.gids.contains(&file.gid()) => 3,
            () => 0,
        };
        self.capabilities & CAP_DAC_OVERRIDE != 0 || (file.mode() >> shift) & bits == bits
    }
}

/// The capabilities with which this process accesses files.
fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read("/proc/self/status").ok()?;
    let mut lines = status.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| line.strip_prefix(b"CapEff:"))?;
    let text = std::str::from_utf8(value).ok()?;
    u64::from_str_radix(text.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn text(errno: Errno, path: &Path, access: Access) -> String {
        explained(Error::from(errno), path, access).to_string()
    }

    #[test]
    fn only_denials_that_owner_and_mode_allow_name_a_suspect() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for access in [Access::Read, Access::Write] {
            let denied = text(Errno::EACCES, &file, access);
            assert!(denied.contains("(os error 13), although") && denied.contains("SELinux"), "{denied}");
        }
        let denied = text(Errno::EPERM, &dir.path().join("new"), Access::Write);
        assert!(denied.contains("lsattr"), "{denied}");
        for errno in [Errno::EIO, Errno::ENOSPC, Errno::EROFS] {
            assert_eq!(text(errno, &file, Access::Write), Error::from(errno).to_string());
        }
        let gone = text(Errno::EACCES, &dir.path().join("no/file"), Access::Write);
        assert!(!gone.contains("SELinux"), "{gone}");
    }

    #[test]
    fn the_kind_stays_and_nothing_is_said_twice() {
        let dir = tempfile::tempdir().unwrap();
        let once = explained(Error::from(Errno::EACCES), dir.path(), Access::Write);
        assert_eq!(once.kind(), std::io::ErrorKind::PermissionDenied);
        let text = once.to_string();
        assert_eq!(explained(once, dir.path(), Access::Write).to_string(), text);
    }

    #[test]
    fn modes_that_deny_are_an_explanation() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let identity = |uid: u32, capabilities| Identity { uid, gids: vec![], capabilities };
        let owner = identity(file.metadata().unwrap().uid(), 0);
        let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let all = [Access::Read, Access::Write];
        let allowed = |who: &Identity| all.map(|access| who.may(&file, access));
        set(&file, 0o400);
        assert_eq!(allowed(&owner), [true, false]);
        set(&file, 0o200);
        assert_eq!(allowed(&owner), [false, true]);
        assert_eq!(allowed(&identity(owner.uid, CAP_DAC_OVERRIDE)), [true, true]);
        set(&file, 0o600);
        set(dir.path(), 0o500);
        assert_eq!(allowed(&owner), [true, false]);
        set(dir.path(), 0o600);
        assert_eq!(allowed(&owner), [false, false]);
        set(dir.path(), 0o777);
        set(&file, 0o666);
        let other = identity(owner.uid + 1, 0);
        assert_eq!(allowed(&other), [true, true]);
        set(dir.path(), 0o1777);
        assert_eq!(allowed(&other), [true, false]);
        assert_eq!(allowed(&owner), [true, true]);
    }

    #[test]
    fn nobody_knows_its_own_files_and_others_do_not_know_those_of_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        // Only root may give files away.
        let give = |path: &Path| std::os::unix::fs::chown(path, Some(OVERFLOW_ID), Some(OVERFLOW_ID));
        if give(&file).and_then(|()| give(dir.path())).is_err() {
            return;
        }
        let allowed = |uid: u32, gid: u32| {
            let identity = Identity { uid, gids: vec![gid], capabilities: 0 };
            identity.has(&file.metadata().unwrap(), READ | WRITE)
        };
        assert!(allowed(OVERFLOW_ID, OVERFLOW_ID));
        assert!(!allowed(1000, OVERFLOW_ID) && !allowed(OVERFLOW_ID, 1000) && !allowed(1000, 1000));
    }
}
