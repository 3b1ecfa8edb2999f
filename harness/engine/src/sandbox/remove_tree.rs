//! Removes a directory with everything in it, whatever a target left there: follows no symbolic link, leaves
//! what is mounted below it, needs no permission that its owner can give, and bounds neither depth nor width.
//! Knows no run.
//!
//! A directory is emptied by moving its subdirectories up to the top, so that a few descriptors suffice for a
//! tree of any depth. A move across a mount fails, and so does opening a directory that is one.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::Permissions;
use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::error::SandboxError;

/// What a directory needs to be emptied, for its owner.
const OWNER_MAY_ALL: u32 = 0o700;

/// One name in a directory.
struct TreeName {
    name: CString,
    is_directory: bool,
}

/// The removal of one tree. Goes on after a failure, so that as little as possible is left.
struct TreeRemoval<'a> {
    /// Asked before each name. Once it returns `true`, the removal ends.
    is_cancelled: &'a dyn Fn() -> bool,
    path: PathBuf,
    top: OwnedFd,
    /// Names in the top directory that cannot be removed.
    kept: BTreeSet<CString>,
    /// The first failure.
    failure: Option<SandboxError>,
    /// Makes the names of directories that are moved up unique.
    moved: u64,
}

/// Removes a directory and everything in it. It is no error if it does not exist.
///
/// # Errors
/// If something in it cannot be removed. Everything else has been removed then.
pub fn remove_tree(path: &Path) -> Result<(), SandboxError> {
    remove_tree_keeping_last(path, None, &|| false)
}

/// The same. `last`: the name of a file that is removed when everything else is gone, and stays otherwise.
/// `is_cancelled` is asked again and again; once it returns `true`, the rest stays, and the error is
/// [`SandboxError::Interrupted`].
pub(super) fn remove_tree_keeping_last(
    path: &Path,
    last: Option<&OsStr>,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<(), SandboxError> {
    let failed = |errno: Errno| SandboxError::file("remove", path)(errno.into());
    let top = match open_directory(nix::fcntl::AT_FDCWD, path.as_os_str(), Crossing::Allowed) {
        Ok(top) => top,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    let last = last.and_then(|last| CString::new(last.as_bytes()).ok());
    let mut removal = TreeRemoval {
        is_cancelled,
        path: path.to_path_buf(),
        top,
        kept: last.iter().cloned().collect(),
        failure: None,
        moved: 0,
    };
    removal.remove_contents();
    if let Some(failure) = removal.failure {
        return Err(failure);
    }
    if let Some(last) = last {
        match unlinkat(&removal.top, last.as_c_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(SandboxError::file("remove", &removal.path_of(&last))(errno.into())),
        }
    }
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SandboxError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Whether a directory may be opened that is the root of another mount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Crossing {
    Allowed,
    Refused,
}

impl TreeRemoval<'_> {
    fn path_of(&self, name: &CString) -> PathBuf {
        self.path.join(OsString::from_vec(name.as_bytes().to_vec()))
    }

    fn keep(&mut self, name: &CString, path: &Path, errno: Errno) {
        self.kept.insert(name.clone());
        self.failure.get_or_insert_with(|| SandboxError::file("remove", path)(errno.into()));
    }

    /// Until nothing is left but what cannot be removed. A round removes the files of the directories at the
    /// top, and moves up the directories in them.
    fn remove_contents(&mut self) {
        loop {
            let names = match read_names(&self.top) {
                Ok(names) => names,
                Err(errno) => {
                    let path = self.path.clone();
                    self.failure.get_or_insert_with(|| SandboxError::file("read", &path)(errno.into()));
                    return;
                }
            };
            let names: Vec<TreeName> =
                names.into_iter().filter(|entry| !self.kept.contains(&entry.name)).collect();
            if names.is_empty() {
                return;
            }
            for TreeName { name, is_directory } in names {
                if (self.is_cancelled)() {
                    self.failure = Some(SandboxError::Interrupted);
                    return;
                }
                let removed = match is_directory {
                    true => self.remove_directory(&name),
                    false => unlinkat(&self.top, name.as_c_str(), UnlinkatFlags::NoRemoveDir),
                };
                match removed {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => {
                        let path = self.path_of(&name);
                        self.keep(&name, &path, errno);
                    }
                }
            }
        }
    }

    /// Empties a directory at the top, and removes it. The directories in it are moved to the top.
    fn remove_directory(&mut self, name: &CString) -> Result<(), Errno> {
        let name_text = OsStr::from_bytes(name.as_bytes());
        let dir = open_directory(self.top.as_fd(), name_text, Crossing::Refused)?;
        for TreeName { name: inner, is_directory } in read_names(&dir)? {
            if (self.is_cancelled)() {
                return Ok(());
            }
            let removed = match is_directory {
                true => self.move_up(&dir, &inner),
                false => unlinkat(&dir, inner.as_c_str(), UnlinkatFlags::NoRemoveDir),
            };
            match removed {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    let path = self.path_of(name).join(OsStr::from_bytes(inner.as_bytes()));
                    self.keep(name, &path, errno);
                }
            }
        }
        if self.kept.contains(name) || (self.is_cancelled)() {
            return Ok(());
        }
        unlinkat(&self.top, name.as_c_str(), UnlinkatFlags::RemoveDir)
    }

    fn move_up(&mut self, dir: &OwnedFd, name: &CString) -> Result<(), Errno> {
        // An empty one needs no move.
        match unlinkat(dir, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            // EACCES and EPERM: a directory without permissions can be moved once its owner may write to it.
            Err(Errno::EACCES | Errno::EPERM) => {}
            other => return other,
        }
        drop(open_directory(dir.as_fd(), OsStr::from_bytes(name.as_bytes()), Crossing::Refused)?);
        loop {
            self.moved += 1;
            let new_name = CString::new(format!(".moved-{}", self.moved)).map_err(|_| Errno::EINVAL)?;
            match fstatat(&self.top, new_name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
                Err(Errno::ENOENT) => return renameat(dir, name.as_c_str(), &self.top, new_name.as_c_str()),
                Err(errno) => return Err(errno),
                // The target had a file of this name.
                Ok(_) => {}
            }
        }
    }
}

/// Opens a directory without following a link, and gives its owner the permissions to empty it.
fn open_directory(parent: BorrowedFd<'_>, name: &OsStr, crossing: Crossing) -> Result<OwnedFd, Errno> {
    // Opening only the path needs no permission on the directory itself.
    let path_only = open_below(parent, name, OFlag::O_PATH, crossing)?;
    let metadata = fstat(&path_only)?;
    if metadata.st_mode & OWNER_MAY_ALL != OWNER_MAY_ALL {
        let itself = format!("/proc/self/fd/{}", path_only.as_raw_fd());
        // If that is not permitted, neither is what follows, and that is reported.
        let _ = std::fs::set_permissions(itself, Permissions::from_mode(OWNER_MAY_ALL));
    }
    open_below(parent, name, OFlag::O_RDONLY, crossing)
}

fn open_below(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    access: OFlag,
    crossing: Crossing,
) -> Result<OwnedFd, Errno> {
    let flags = access | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    if crossing == Crossing::Allowed {
        return openat(parent, name, flags, Mode::empty());
    }
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_XDEV);
    match openat2(parent, name, how) {
        // A seccomp filter of a container may not know the call.
        Err(Errno::ENOSYS | Errno::EPERM) => {
            let opened = openat(parent, name, flags, Mode::empty())?;
            let is_same_device = fstat(&opened)?.st_dev == fstat(parent)?.st_dev;
            if is_same_device { Ok(opened) } else { Err(Errno::EXDEV) }
        }
        opened => opened,
    }
}

/// The names in a directory, without `.` and `..`.
fn read_names(dir: &OwnedFd) -> Result<Vec<TreeName>, Errno> {
    // A descriptor of its own, because the position in the directory belongs to the open file.
    let mut opened = Dir::openat(dir, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in opened.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_directory = match entry.file_type() {
            Some(kind) => kind == Type::Directory,
            None => {
                let metadata = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                metadata.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR
            }
        };
        names.push(TreeName { name: name.to_owned(), is_directory });
    }
    Ok(names)
}

/// What a user can do about something that could not be removed.
pub(super) fn remedy(path: &Path, source: &Error) -> String {
    let owner = path.symlink_metadata().map(|metadata| metadata.uid());
    let own = nix::unistd::geteuid().as_raw();
    match (source.raw_os_error().map(Errno::from_raw), owner) {
        (_, Ok(owner)) if owner != own && own != 0 => {
            format!("it belongs to user {owner}, who can remove it")
        }
        (Some(Errno::EPERM), _) => {
            "is it immutable? Run `chattr -R -i` on it as root, then `trainwreck recover`".into()
        }
        (Some(Errno::EXDEV | Errno::EBUSY), _) => {
            "something is mounted there; unmount it, then run `trainwreck recover`".into()
        }
        (Some(Errno::EROFS), _) => {
            "its file system is read-only; remount it, then run `trainwreck recover`".into()
        }
        _ => "remove it by hand, or run `trainwreck recover` once the cause is gone".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn hostile_trees_are_removed_and_what_links_point_to_stays() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let users = dir.path().join("users");
        std::fs::create_dir_all(users.join("checkpoints"))?;
        std::fs::write(users.join("checkpoints/step-9"), "precious")?;
        let tree = dir.path().join("run");
        std::fs::create_dir_all(tree.join("a/b"))?;
        symlink(&users, tree.join("link"))?;
        symlink(users.join("checkpoints"), tree.join("a/b/link"))?;
        symlink("..", tree.join("a/up"))?;
        std::fs::write(tree.join(".moved-1"), "a target's own file")?;
        std::fs::create_dir_all(tree.join("locked/inner/deep"))?;
        std::fs::write(tree.join("locked/inner/deep/file"), "x")?;
        for locked in ["locked/inner/deep", "locked/inner", "locked"] {
            std::fs::set_permissions(tree.join(locked), Permissions::from_mode(0o000))?;
        }
        // Deeper than a path may be long, and than there may be descriptors.
        let mut deep =
            open_below(nix::fcntl::AT_FDCWD, tree.as_os_str(), OFlag::O_RDONLY, Crossing::Allowed)?;
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&deep, "deeper", Mode::S_IRWXU)?;
            deep = openat(&deep, "deeper", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        }
        remove_tree(&tree)?;
        assert!(!tree.exists());
        assert_eq!(std::fs::read_to_string(users.join("checkpoints/step-9"))?, "precious");
        remove_tree(&tree)?;
        Ok(())
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_not_followed() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("users"))?;
        std::fs::write(dir.path().join("users/file"), "precious")?;
        symlink(dir.path().join("users"), dir.path().join("run"))?;
        assert!(remove_tree(&dir.path().join("run")).is_err());
        assert!(dir.path().join("users/file").exists());
        Ok(())
    }

    #[test]
    fn a_cancelled_removal_ends_early_and_can_be_repeated() -> Result<(), std::io::Error> {
        let dir = tempfile::tempdir()?;
        let tree = dir.path().join("run");
        std::fs::create_dir_all(tree.join("many"))?;
        for number in 0..100 {
            std::fs::write(tree.join(format!("many/{number}")), "")?;
        }
        let asked = std::cell::Cell::new(0);
        let is_cancelled = || asked.replace(asked.get() + 1) > 10;
        let removed = remove_tree_keeping_last(&tree, None, &is_cancelled);
        assert!(matches!(removed, Err(SandboxError::Interrupted)), "{removed:?}");
        let left = std::fs::read_dir(tree.join("many"))?.count();
        assert!((80..100).contains(&left), "{left} of 100 are left");
        assert!(remove_tree(&tree).is_ok() && !tree.exists());
        Ok(())
    }

    #[test]
    fn what_cannot_be_removed_is_named_and_everything_else_is_removed() -> Result<(), std::io::Error> {
        let dir = tempfile::tempdir()?;
        let tree = dir.path().join("run");
        std::fs::create_dir_all(tree.join("a/b"))?;
        std::fs::write(tree.join("a/b/file"), "x")?;
        std::fs::write(tree.join("owner"), "")?;
        let removed = remove_tree_keeping_last(&tree, Some(OsStr::new("owner")), &|| false);
        assert!(removed.is_ok() && !tree.exists(), "{removed:?}");
        // No directory can be removed while it is the working directory of nobody: use a name that is one.
        std::fs::write(dir.path().join("file"), "x")?;
        let failure = remove_tree(&dir.path().join("file"));
        assert!(failure.is_err_and(|error| error.to_string().contains("file")));
        Ok(())
    }
}
