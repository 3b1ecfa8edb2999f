//! The files of a target as the harness reaches them: below its root, and never through a link, which could lead
//! out of the sandbox. Knows no fault.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK, O_PATH};

use crate::sandbox::OpenDirectory;

/// Most files that are listed.
pub(super) const MAX_LISTED_FILES: usize = 100_000;
/// Lets the owner write.
const OWNER_MAY_WRITE: u32 = 0o200;

/// All regular files below `root`, by their paths relative to it. Names that are not UTF-8 are left out, as are
/// directories that cannot be read. `None`: there are too many.
pub(crate) fn list_files(root: &Path) -> Option<Vec<String>> {
    let mut files = Vec::new();
    let mut dirs = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        // What the target has just removed, or has made unreadable, holds no file that could be reached.
        let opened = OpenDirectory::beneath(root, &dir).and_then(|opened| std::fs::read_dir(opened.path()));
        for entry in opened.into_iter().flatten().flatten() {
            let path = dir.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(path),
                Ok(kind) if kind.is_file() => files.extend(path.to_str().map(str::to_owned)),
                _ => {}
            }
            if files.len() > MAX_LISTED_FILES {
                return None;
            }
        }
    }
    files.sort();
    Some(files)
}

/// The place of a file or directory of the target: a directory that is held open, and a name in it.
#[derive(Debug)]
pub(super) struct TargetPlace {
    dir: OpenDirectory,
    name: PathBuf,
}

impl TargetPlace {
    /// The place of `path`, which is relative to `root`.
    ///
    /// # Errors
    /// If a part of the path has gone, or is a link.
    pub(super) fn of(root: &Path, path: &str) -> Result<TargetPlace, Error> {
        let path = Path::new(path);
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.into();
        let dir = OpenDirectory::beneath(root, path.parent().unwrap_or(Path::new("")))?;
        Ok(TargetPlace { dir, name })
    }

    /// A path to it. If a link is there by now, whoever uses the path must not follow it.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join(&self.name)
    }

    /// A path beside it.
    pub(super) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Opens the file to read it and to write to it, whatever its mode permits.
    ///
    /// # Errors
    /// If it is not a regular file, or cannot be opened.
    pub(super) fn open_file(&self) -> Result<File, Error> {
        let mut options = OpenOptions::new();
        // Without O_NONBLOCK a named pipe would be waited for.
        options.read(true).write(true).custom_flags(O_NOFOLLOW | O_NONBLOCK);
        let opened = match options.open(self.path()) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => self.open_protected(&options)?,
            opened => opened?,
        };
        if opened.metadata()?.is_file() { Ok(opened) } else { Err(ErrorKind::InvalidInput.into()) }
    }

    /// Opens a file that its mode protects. The mode stays.
    fn open_protected(&self, options: &OpenOptions) -> Result<File, Error> {
        let held = OpenOptions::new().read(true).custom_flags(O_PATH | O_NOFOLLOW).open(self.path())?;
        let metadata = held.metadata()?;
        if !metadata.is_file() {
            return Err(ErrorKind::InvalidInput.into());
        }
        // Leads to the file itself, whatever has its name by now.
        let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        let mode = metadata.permissions().mode();
        std::fs::set_permissions(&path, Permissions::from_mode(mode | OWNER_MAY_WRITE | 0o400))?;
        let mut options = options.clone();
        let opened = options.custom_flags(O_NONBLOCK).open(&path);
        std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_special_files_are_no_files() -> Result<(), Error> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b"))?;
        std::fs::write(dir.path().join("outside"), "kept")?;
        for file in ["a/b/one", "two"] {
            std::fs::write(root.join(file), "x")?;
        }
        std::os::unix::fs::symlink(dir.path().join("outside"), root.join("link"))?;
        std::os::unix::fs::symlink(dir.path(), root.join("a/up"))?;
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU)?;
        assert_eq!(list_files(&root), Some(vec!["a/b/one".to_owned(), "two".to_owned()]));
        for refused in ["link", "a/up/outside", "pipe", "a", "missing", "../outside"] {
            let opened = TargetPlace::of(&root, refused).and_then(|place| place.open_file());
            assert!(opened.is_err(), "{refused}");
        }
        std::fs::set_permissions(root.join("two"), Permissions::from_mode(0o000))?;
        assert!(TargetPlace::of(&root, "two")?.open_file().is_ok());
        assert_eq!(root.join("two").metadata()?.permissions().mode() & 0o777, 0, "the mode stays");
        Ok(())
    }
}
